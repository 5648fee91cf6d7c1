"""Runs the tasks of a study, several at once where asked, and stops them in time so that they can go on later."""

import json
import sys
import textwrap
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from franca.children import POLL, Child, Children
from franca.files import replace_text
from franca.launch.follow import last_lines
from measuring.facts import ROOT
from studies.plan import DONE, FAILURE, Task

LOG, SECONDS = "log.txt", "seconds.txt"  # in the folder of a task, besides those of studies.plan
NEWS = 60.0  # seconds between two lines about each running task
GRACE = 30.0  # seconds that a stopped task has to save
WHY = 400  # characters of an error that are told
MORE = 3  # exit status while there is more to do


class Runner:
    """Runs tasks in their order, ``jobs`` at once, until ``seconds`` are over or a signal comes (see `Children`).

    facts: of where they run, kept with each task that finishes. before: how many tasks that are asked for, or needed by
    what is, need not be run any more; they count as finished in what is said. What fails is said, marked as failed in
    its folder, and left; what waits for it too.
    """

    def __init__(self, tasks: Sequence[Task], jobs: int, seconds: float, facts: dict[str, str], before: int) -> None:
        self.tasks, self.jobs, self.facts, self.before = tasks, jobs, facts, before
        self.ends = time.monotonic() + seconds
        self.children = Children(GRACE)
        self.running: dict[Task, Child] = {}
        self.logs_from: dict[Task, int] = {}  # place in its log where what it says in this try begins
        self.left: list[Task] = []  # ended before they were finished
        self.failed = False
        self.news = time.monotonic() + NEWS

    def run(self) -> int:
        """Exit status: 0 where all is done, 1 where something failed, MORE in time, 128 + n after signal n."""
        try:
            with self.children as children:
                while not children.signal_number and time.monotonic() < self.ends and (self._start() or self.running):
                    time.sleep(POLL)
                    self._collect()
                    self._tell()
        finally:
            self._collect()
        if self.children.signal_number:
            return 128 + self.children.signal_number
        return 1 if self.failed else 0 if all(task.finished for task in self.tasks) else MORE

    def _start(self) -> bool:
        """Start what can be; whether anything was."""
        started = False
        while len(self.running) < self.jobs and (task := self._next()) is not None:
            task.folder.mkdir(parents=True, exist_ok=True)
            (task.folder / FAILURE).unlink(missing_ok=True)  # of an earlier try
            with (task.folder / LOG).open("ab") as log:
                self.logs_from[task] = log.tell()
                self.running[task] = self.children.add(Child(task.command, log, folder=ROOT))
            self._say(task, "begins" if not task.output.exists() else "goes on")
            started = True
        return started

    def _next(self) -> Task | None:
        tried = [*self.left, *self.running]
        for task in self.tasks:
            if not task.finished and task not in tried and all(need.finished for need in task.needs):
                return task
        return None

    def _collect(self) -> None:
        """Note what became of the processes that have ended."""
        for task, child in list(self.running.items()):
            if child.poll() is not None:
                del self.running[task]
                self._finish(task, child)

    def _finish(self, task: Task, child: Child) -> None:
        seconds = child.seconds + _seconds_before(task)
        took = f"{seconds / 60:.1f} minutes in all"
        if child.poll() == 0:
            done = {"seconds": round(seconds, 1), **self.facts, "command": task.line()}
            replace_text(task.folder / DONE, json.dumps(done, indent=1) + "\n")
            self._say(task, f"done, {took}")
            return
        self.left.append(task)
        replace_text(task.folder / SECONDS, f"{seconds:.1f}\n")
        if child.stopped_by is not None:
            self._say(task, f"stopped after {took}; the same command goes on")
        elif child.killed:
            patience = f"{GRACE:.0f} s after it was asked to, or by a second Ctrl-C"
            self._say(task, f"killed before it had saved, {patience}; {took}, left for the next call")
        else:
            why = f"{child.ending}: {_why(task, self.logs_from[task])}"
            self.failed = True
            replace_text(task.folder / FAILURE, f"{why}\n")
            self._say(task, f"FAILED with {why} (all of it in {task.folder / LOG})")

    def _tell(self) -> None:
        if time.monotonic() >= self.news:
            self.news = time.monotonic() + NEWS
            for task in self.running:
                self._say(task, _last_line(task))

    def _say(self, task: Task, what: str) -> None:
        finished = self.before + sum(each.finished for each in self.tasks)
        with suppress(OSError):  # the terminal is gone; what the other tasks have done is still to be noted
            print(f"[{finished}/{self.before + len(self.tasks)}] {task.name}: {what}", file=sys.stderr, flush=True)


def _last_line(task: Task) -> str:
    """The newest thing that it said."""
    return last_lines(task.folder / LOG, 1).strip()


def _why(task: Task, begins: int) -> str:
    """Its error, in a line; its last line where it gave none. begins: place in its log where this try does."""
    lines = (task.folder / LOG).read_bytes()[begins:].decode(errors="replace").splitlines()
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if not errors:
        return _last_line(task)
    return textwrap.shorten(" ".join(lines[errors[-1] :]).removeprefix("error: "), WHY, placeholder=" …")


def _seconds_before(task: Task) -> float:
    """That it took before it was stopped."""
    file = task.folder / SECONDS
    return float(file.read_text(encoding="utf-8")) if file.exists() else 0.0


def told(task: Task) -> dict[str, str]:
    """What was kept of a finished task: ``seconds``, and the facts of where it ran."""
    content: dict[str, str] = json.loads((task.folder / DONE).read_text(encoding="utf-8"))
    return content


def results_file(task: Task) -> Path | None:
    """What a finished score left."""
    return next(iter(task.output.glob("*/results.json")), None)
