"""Runs one training command again and again, killing it with SIGKILL, until it ends by itself.

    python kill_runs.py moments|saves SECONDS ARGUMENTS...

moments: SECONDS is the longest time a process lives; each dies at a random moment before. saves: each process dies at a
later call of os.fsync, of which a save makes several, before and after every file it writes. Every process is a fork of
this one, which has loaded everything but computed nothing. Prints how often it killed, and the last exit code.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable

import torch

from franca.train.__main__ import main

MOMENTS = 6


def start(arguments: list[str], prepare: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    prepare()
    os._exit(main(arguments))


def wait(child: int) -> int:
    """Exit code, or minus the signal's number."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_random_moments(arguments: list[str], longest: float) -> tuple[int, int]:
    chance = random.Random(0)
    for kills in range(MOMENTS):
        child = start(arguments, lambda: None)
        time.sleep(chance.uniform(0.3, 1.0) * longest)
        os.kill(child, signal.SIGKILL)
        if wait(child) != -signal.SIGKILL:
            return kills, 0
    return MOMENTS, wait(start(arguments, lambda: None))


def kill_inside_saves(arguments: list[str], _: float) -> tuple[int, int]:
    kills = 0
    while True:
        code = wait(start(arguments, lambda survived=kills: die_after(survived)))
        if code != -signal.SIGKILL:
            return kills, code
        kills += 1


def die_after(calls: int) -> None:
    """This process dies when it calls os.fsync after so many calls."""
    fsync, made = os.fsync, 0

    def counting(handle: int) -> None:
        nonlocal made
        if made == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        made += 1
        fsync(handle)

    os.fsync = counting


if __name__ == "__main__":
    torch.set_num_threads(1)
    how, seconds, *command = sys.argv[1:]
    kill = {"moments": kill_at_random_moments, "saves": kill_inside_saves}[how]
    print("killed {} times, then exit code {}".format(*kill(command, float(seconds))))
