"""The processes of one run on this machine, without SLURM."""

import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from franca.children import POLL, STOPPED, Child, Children
from franca.launch.follow import Tail, last_lines

GRACE = 20.0  # seconds that processes have to end, when one has failed or watching them has


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environments(processes: int) -> list[dict[str, str]]:
    """The environment of each process: what torch.distributed reads, and its share of the cores."""
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    if processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        shared["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // processes, 1))
    return [{**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def log_files(folder: Path, processes: int) -> list[Path]:
    """One log per process; those of a run that is continued are appended to."""
    return [folder / f"rank_{rank}.log" for rank in range(processes)]


class LocalRun:
    """Starts every process of ``arguments`` (of franca.train), and ends when all have ended.

    A signal (see `Children`) and the time limit ask the run to save its state and stop; Ctrl-C after it kills. When one
    process fails, the others, which wait for it, are killed after ``GRACE`` seconds.
    """

    def __init__(self, arguments: list[str], processes: int, folder: Path, minutes: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.arguments = ["-m", "franca.train", *arguments]
        self.logs = log_files(folder, processes)
        self.tail = Tail(self.logs[0])
        self.deadline = float("inf") if minutes is None else time.monotonic() + 60 * minutes
        self.children = Children(GRACE)

    def run(self, follow: bool = False) -> int:
        """Exit status of the run: that of the process that failed first, else STOPPED or 0."""
        with self.children as children:
            for log, environment in zip(self.logs, environments(len(self.logs)), strict=True):
                with log.open("ab") as file:
                    children.add(Child(self.arguments, file, environment))
            return self._watch(follow)

    def _watch(self, follow: bool) -> int:
        while True:
            statuses = [child.poll() for child in self.children.all]
            failed = [rank for rank, child in enumerate(self.children.all) if _failed(child)]
            if failed:
                self.children.wait(GRACE)
            if follow:
                self.tail.show()
            if failed:
                return self._report(failed[0])
            if None not in statuses:
                return STOPPED if any(statuses) else 0
            if time.monotonic() > self.deadline:
                self.children.ask()
            time.sleep(POLL)

    def _report(self, rank: int) -> int:
        child, log = self.children.all[rank], self.logs[rank]
        with suppress(OSError):  # the terminal is gone
            said = f"process {rank} ended with {child.ending}; {log} ends with\n{last_lines(log)}"
            print(said, file=sys.stderr)
        return child.poll() or 0


def _failed(child: Child) -> bool:
    """Also where someone's signal ended it before it listened: the others, who weren't told, wait for it."""
    untold = child.killed_by is not None and not child.asked
    return bool(child.poll()) and (child.stopped_by is None or untold)
