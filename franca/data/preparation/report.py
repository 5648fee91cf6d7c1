"""What a step kept, what it dropped and why, for people."""

from collections.abc import Iterator, Mapping
from typing import Any

from franca.data.preparation.rules import REASONS


def counts_text(title: str, total: int, kept: int, dropped: Mapping[str, int], meaning: Mapping[str, str]) -> str:
    """A table of counts and shares, the reasons in the order of `meaning`; they add up to the total."""
    rows: list[tuple[str, int, str]] = [("all", total, ""), ("kept", kept, "")]
    rows += [(reason, dropped[reason], words) for reason, words in meaning.items() if dropped.get(reason)]
    width = max(len(name) for name, _, _ in rows)
    digits = max(len(f"{count:,}") for _, count, _ in rows)
    lines = (
        f"  {name:<{width}}  {count:>{digits},}  {count / max(total, 1):>7.2%}  {words}".rstrip()
        for name, count, words in rows
    )
    return "\n".join([title, *lines]) + "\n"


def selection_text(report: Mapping[str, Any]) -> str:
    """The report of `select`."""
    table = counts_text("Rows of the metadata", report["rows"], report["kept"], report["dropped"], REASONS)
    read = "\n".join(_columns_read(report["files"]))
    return f"{table}\nColumns read\n{read}\n\nDownload the images\n  {report['command']}\n"


def _columns_read(files: list[Mapping[str, Any]]) -> Iterator[str]:
    """Once for all files that spell them alike."""
    by_columns: dict[str, list[str]] = {}
    for file in files:
        words = ", ".join(f"{role}: {name}" for role, name in file["columns"].items())
        by_columns.setdefault(words, []).append(file["name"])
    for words, names in by_columns.items():
        yield f"  {words}  ({names[0]}" + (f" and {len(names) - 1} more)" if len(names) > 1 else ")")
