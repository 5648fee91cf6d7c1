"""The folder of one step: finished parts are kept, so that the same command goes on after any interruption."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from franca.data.preparation.errors import PreparationError
from franca.files import held, sync, write_atomically

MANIFEST = "step.json"
REPORT = "report.json"
# What steps make in their folder: all else is never removed, such as the images that a list was downloaded to.
MADE = ("parts", "list", "vectors", "images", "kept.txt", "dropped.tsv", "report.txt", REPORT)


class WorkFolder:
    """What a step leaves: `step.json` (the step, its options and inputs), `parts/` until it is finished, its results.

    Used as a context: inside it the folder belongs to this process alone.

    Args:
        path: the folder, made when it isn't there.
        step: name of the step.
        options: all that changes the result, in plain types.
        inputs: the files that are read.
        restart: throw away what steps made here, instead of going on or refusing.

    Raises:
        PreparationError: the folder holds something else, or a step with other options or inputs.
    """

    def __init__(
        self, path: Path, step: str, options: Mapping[str, Any], inputs: Sequence[Path], restart: bool = False
    ) -> None:
        self.path = path.expanduser()
        self.path.mkdir(parents=True, exist_ok=True)
        self.content = json.loads(json.dumps({"step": step, "options": options, "inputs": list(map(_told, inputs))}))
        self.restart = restart

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            try:
                stack.enter_context(held(self.path))
            except BlockingIOError:
                raise PreparationError(f"another process is at work in {self.path}: wait for it, or stop it") from None
            self._open()
            self._lock = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    @property
    def report(self) -> dict[str, Any] | None:
        """The report of a finished step."""
        file = self.path / REPORT
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def part(self, name: str, make: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
        """What is told of a part, made now unless an earlier run did.

        Args:
            name: unique within the step, such as "filter/00012".
            make: writes files into the empty folder that it is given, and tells of them in plain types.
        """
        folder = self.folder(name)
        if not folder.is_dir():
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            (partial / "part.json").write_text(json.dumps(make(partial)))
            for file in [*(path for path in partial.rglob("*") if path.is_file()), partial]:
                sync(file)
            os.replace(partial, folder)
            sync(folder.parent)
        return self.told(name)

    def told(self, name: str) -> dict[str, Any]:
        """What is told of a finished part."""
        told: dict[str, Any] = json.loads((self.folder(name) / "part.json").read_text(encoding="utf-8"))
        return told

    def folder(self, name: str) -> Path:
        """Where the files of a part lie."""
        return self.path / "parts" / name

    def publish(self, name: str, files: Mapping[str, Path]) -> None:
        """Files become a folder of results, all of them or none, without a copy where there are hard links.

        files: path below that folder -> the file.
        """
        partial = self.path / f".{name}.partial"
        for folder in (partial, self.path / name):
            shutil.rmtree(folder, ignore_errors=True)
        partial.mkdir()
        for target, file in files.items():
            (partial / target).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.resolve(), partial / target)
            except OSError:  # a file system without hard links
                shutil.copyfile(file, partial / target)
        os.replace(partial, self.path / name)

    def write(self, name: str, write: Callable[[BinaryIO], None]) -> None:
        """Put a result into the folder, whole or not at all."""
        write_atomically(self.path / name, write)

    def finish(self, report: Mapping[str, Any], text: str) -> None:
        """Write `report.txt`, then `report.json`, which marks the step as finished; the parts are no longer needed."""
        self.write("report.txt", lambda file: _put(file, text))
        self.write(REPORT, lambda file: _put(file, json.dumps(report, indent=2, ensure_ascii=False) + "\n"))
        shutil.rmtree(self.path / "parts", ignore_errors=True)

    def _open(self) -> None:
        file = self.path / MANIFEST
        others = sorted(entry.name for entry in self.path.iterdir() if entry.name not in (MANIFEST, ".lock"))
        if not file.is_file():
            if others:
                raise PreparationError(
                    f"{self.path} holds files that no step of the preparation made, such as {others[0]}: "
                    "name a new or empty folder"
                )
        elif self.restart:
            for path in [*(self.path / name for name in MADE), *self.path.glob(".*.partial")]:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        else:
            self._refuse_another(json.loads(file.read_text(encoding="utf-8")))
        self.write(MANIFEST, lambda out: _put(out, json.dumps(self.content, indent=2) + "\n"))

    def _refuse_another(self, there: dict[str, Any]) -> None:
        if there == self.content:
            return
        raise PreparationError(
            f"{self.path} holds a step with other options or inputs ({_difference(there, self.content)}): name another "
            "folder, or throw away what is there with --restart"
        )


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """In words, the first thing that differs."""
    if there["step"] != here["step"]:
        return f"there {there['step']}, here {here['step']}"
    for key in sorted({*there["options"], *here["options"]}):
        if there["options"].get(key) != here["options"].get(key):
            return f"{key}: there {there['options'].get(key)}, here {here['options'].get(key)}"
    first, second = ({file["name"]: file for file in content["inputs"]} for content in (there, here))
    for name in sorted({*first, *second}):
        if first.get(name) != second.get(name):
            return f"{name} " + ("is new" if name not in first else "is gone" if name not in second else "was changed")
    return "the order of the inputs"


def _told(file: Path) -> dict[str, Any]:
    status = file.stat()
    return {"name": str(file.absolute()), "bytes": status.st_size, "changed_ns": status.st_mtime_ns}


def _put(file: BinaryIO, text: str) -> None:
    file.write(text.encode())
