"""The processes of one run on this machine, without SLURM."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from franca.launch.follow import Tail, last_lines

STOPPED = 128 + signal.SIGTERM  # status of a run that was asked to stop, and has saved its state
POLL = 0.2  # seconds between two looks at the processes
GRACE = 20.0  # seconds that the others have to end by themselves when one process has failed


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

    SIGTERM, Ctrl-C and the time limit are passed on once, as SIGTERM: the run saves its state and stops. A second
    signal kills. When one process fails, the others, which wait for it, are killed after ``GRACE`` seconds.
    """

    def __init__(self, arguments: list[str], processes: int, folder: Path, minutes: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.command = [sys.executable, "-u", "-m", "franca.train", *arguments]
        self.logs = log_files(folder, processes)
        self.tail = Tail(self.logs[0])
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.children: list[subprocess.Popen[bytes]] = []

    def run(self, follow: bool = False) -> int:
        """Exit status of the run: that of the process that failed first, else STOPPED or 0."""
        with self._signals_passed_on():
            for log, environment in zip(self.logs, environments(len(self.logs)), strict=True):
                self._start(log, environment)
            try:
                return self._watch(follow)
            finally:
                self._send(signal.SIGKILL)

    def _start(self, log: Path, environment: dict[str, str]) -> None:
        # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
        with log.open("ab") as file:
            self.children.append(
                subprocess.Popen(
                    self.command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
                )
            )

    def _watch(self, follow: bool) -> int:
        failed: int | None = None
        while True:
            statuses = [child.poll() for child in self.children]
            if follow:
                self.tail.show()
            if failed is None:
                failed = next((rank for rank, status in enumerate(statuses) if status not in (None, 0, STOPPED)), None)
                if failed is not None:
                    self.deadline = time.monotonic() + GRACE
            if None not in statuses:
                return (STOPPED if STOPPED in statuses else 0) if failed is None else self._report(failed)
            if self.deadline is not None and time.monotonic() > self.deadline:
                self._send(signal.SIGTERM if failed is None else signal.SIGKILL)
                self.deadline = None
            time.sleep(POLL)

    def _report(self, rank: int) -> int:
        status, log = self.children[rank].returncode, self.logs[rank]
        status = status if status >= 0 else 128 - status
        print(f"process {rank} ended with status {status}; {log} ends with\n{last_lines(log)}", file=sys.stderr)
        return status

    def _send(self, number: int) -> None:
        for child in self.children:
            if child.poll() is None:
                child.send_signal(number)

    @contextlib.contextmanager
    def _signals_passed_on(self) -> Iterator[None]:
        received: list[int] = []

        def pass_on(number: int, _: FrameType | None) -> None:
            self._send(signal.SIGKILL if received else signal.SIGTERM)
            received.append(number)

        earlier = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
