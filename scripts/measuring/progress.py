"""What is being measured, on stderr as it begins: a step of a large network takes minutes on a CPU."""

import sys
from collections.abc import Iterator

MARK = "measuring: "  # before every line, so that a page made of a log can leave them out


def say(what: str) -> None:
    """One line, at once, also where stderr is a file or a pipe."""
    print(f"{MARK}{what}", file=sys.stderr, flush=True)


def numbered(what: str, count: int) -> Iterator[int]:
    """0 to ``count`` - 1, each said as it begins, counted from 1."""
    for number in range(count):
        say(f"{what} {number + 1} of {count}")
        yield number


def without_progress(log: str) -> str:
    """What else was printed."""
    return "\n".join(line for line in log.splitlines() if not line.startswith(MARK))
