"""Runs the tasks of a study, several at once where asked, and stops them in time so that they can go on later."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from franca.files import replace_text
from franca.launch.follow import last_lines
from measuring.facts import ROOT
from studies.plan import DONE, Task

LOG = "log.txt"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL = 0.2  # seconds between two looks at the processes
NEWS = 60.0  # seconds between two lines about each running task
GRACE = 30.0  # seconds that a stopped task has to save
MORE = 3  # exit status while there is more to do


@dataclass
class Running:
    """A task's process."""

    task: Task
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    began: float = field(default_factory=time.monotonic)
    asked: bool = False  # to stop

    @classmethod
    def start(cls, task: Task) -> "Running":
        """In a session of its own: a Ctrl-C at the terminal reaches it as the SIGTERM on which trainings save."""
        task.folder.mkdir(parents=True, exist_ok=True)
        log = (task.folder / LOG).open("ab")
        command = [sys.executable, "-u", *task.command]
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        return cls(task, process, log)

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.began

    def ask(self) -> None:
        """To save and end."""
        self.asked = True
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Wait until it has; kill it if it doesn't, and all that it has left running."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def last_line(self) -> str:
        """The newest thing that it said."""
        return last_lines(self.task.folder / LOG, 1).strip()


class Runner:
    """Runs tasks in their order, ``jobs`` at once, until ``seconds`` are over or a signal comes.

    facts: of where they run, kept with each task that finishes. What fails is said and left; what waits for it too.
    """

    def __init__(self, tasks: Sequence[Task], jobs: int, seconds: float, facts: dict[str, str]) -> None:
        self.tasks, self.jobs, self.facts = tasks, jobs, facts
        self.ends = time.monotonic() + seconds
        self.running: list[Running] = []
        self.failed: list[Task] = []
        self.signal_number = 0
        self.news = time.monotonic() + NEWS

    def run(self) -> int:
        """Exit status: 0 where all is done, 1 where something failed, MORE in time, 128 + n after signal n."""
        before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        try:
            while not self.signal_number and time.monotonic() < self.ends and (self._start() or self.running):
                time.sleep(POLL)
                self._collect()
                self._tell()
        finally:
            for running in self.running:
                running.ask()
            for running in self.running:
                running.end()
                self._finish(running)
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.signal_number:
            return 128 + self.signal_number
        return 1 if self.failed else 0 if all(task.finished for task in self.tasks) else MORE

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number

    def _start(self) -> bool:
        """Start what can be; whether anything was."""
        started = False
        while len(self.running) < self.jobs and (task := self._next()) is not None:
            self.running.append(Running.start(task))
            self._say(task, "begins" if not task.output.exists() else "goes on")
            started = True
        return started

    def _next(self) -> Task | None:
        busy = [*self.failed, *(running.task for running in self.running)]
        for task in self.tasks:
            if not task.finished and task not in busy and all(need.finished for need in task.needs):
                return task
        return None

    def _collect(self) -> None:
        for running in [each for each in self.running if each.process.poll() is not None]:
            self.running.remove(running)
            running.end()
            self._finish(running)

    def _finish(self, running: Running) -> None:
        """Note what became of a process that has ended."""
        running.log.close()
        status, task = running.process.returncode, running.task
        seconds = running.seconds + _seconds_before(task)
        if status == 0:
            done = {"seconds": round(seconds, 1), **self.facts, "command": task.line()}
            replace_text(task.folder / DONE, json.dumps(done, indent=1) + "\n")
            self._say(task, f"done, {seconds / 60:.1f} minutes in all")
            return
        replace_text(task.folder / "seconds.txt", f"{seconds:.1f}\n")
        if running.asked:
            self._say(task, f"stopped after {seconds / 60:.1f} minutes in all; the same command goes on")
        else:
            self.failed.append(task)
            self._say(task, f"FAILED with status {status}: {running.last_line()} (all of it in {task.folder / LOG})")

    def _tell(self) -> None:
        if time.monotonic() >= self.news:
            self.news = time.monotonic() + NEWS
            for running in self.running:
                self._say(running.task, running.last_line())

    def _say(self, task: Task, what: str) -> None:
        finished = sum(each.finished for each in self.tasks)
        print(f"[{finished}/{len(self.tasks)}] {task.name}: {what}", file=sys.stderr, flush=True)


def _seconds_before(task: Task) -> float:
    """That it took before it was stopped."""
    file = task.folder / "seconds.txt"
    return float(file.read_text(encoding="utf-8")) if file.exists() else 0.0


def told(task: Task) -> dict[str, str]:
    """What was kept of a finished task: ``seconds``, and the facts of where it ran."""
    content: dict[str, str] = json.loads((task.folder / DONE).read_text(encoding="utf-8"))
    return content


def results_file(task: Task) -> Path | None:
    """What a finished score left."""
    return next(iter(task.output.glob("*/results.json")), None)
