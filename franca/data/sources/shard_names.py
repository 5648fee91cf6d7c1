"""Which shards a path names: brace ranges, patterns, folders, and commands that print a shard."""

import glob
import os
import re
import shlex

from franca.data.errors import EmptyFolder, MissingFolder

PIPE = "pipe:"
ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
FOR_SHELLS = {"|", "||", "&", "&&", ";", "<", ">", ">>", "2>", "2>&1"}


def shard_names(path: str) -> list[str]:
    """All shards, in a fixed order.

    path: "/data/{00000..00999}.tar" (ranges a..b, keeping zeros, and lists a,b; several and nested ones), a pattern
    with * ? [ ], a folder (all tars below it), or "pipe:COMMAND", in which braces work the same way. Files named by
    braces need not exist: a missing shard is skipped while training.
    Raises MissingFolder, EmptyFolder, or ValueError for a command that needs a shell.
    """
    names = expand_braces(path)
    if path.startswith(PIPE):
        for name in names:
            _require_plain_command(name)
        return names
    files = [file for name in names for file in _files(os.path.expanduser(name))]
    if not files:
        raise MissingFolder(f"data.path={path!r} names no shard; give files such as '/data/{{00000..00999}}.tar'")
    return files


def expand_braces(text: str) -> list[str]:
    """ "x{08..10}{a,b}" -> x08a, x08b, x09a, … ; braces without a range or comma stay as they are.

    Raises ValueError for a brace that is never closed.
    """
    place = _first_group(text)
    if place is None:
        return [text]
    start, end = place
    before, inside, rest = text[:start], text[start + 1 : end], expand_braces(text[end + 1 :])
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span:
        width = max(map(len, span.groups())) if any(len(n) > 1 and n[0] == "0" for n in span.groups()) else 0
        first, last = int(span[1]), int(span[2])
        middle = [f"{n:0{width}}" for n in range(first, last + 1)] or [
            f"{n:0{width}}" for n in range(first, last - 1, -1)
        ]
    else:
        parts = _split(inside)
        middle = [one for part in parts for one in expand_braces(part)]
        if len(parts) == 1:
            middle = [f"{{{one}}}" for one in middle]
    return [before + one + last_part for one in middle for last_part in rest]


def command_of(name: str) -> list[str]:
    """The arguments of "pipe:COMMAND"."""
    return shlex.split(name.removeprefix(PIPE))


def _first_group(text: str) -> tuple[int, int] | None:
    """Places of the first opening brace and of the one that closes it."""
    start, depth = text.find("{"), 0
    if start < 0:
        return None
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return start, place
    raise ValueError(f"data.path={text!r}: the brace at place {start} is never closed")


def _split(inside: str) -> list[str]:
    """Cuts at the commas that no inner brace holds."""
    parts, depth = [""], 0
    for letter in inside:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _files(name: str) -> list[str]:
    if os.path.isdir(name):
        pairs = [(folder, file) for folder, _, files in os.walk(name, followlinks=True) for file in files]
        found = sorted(os.path.join(*pair) for pair in pairs if pair[1].lower().endswith(ENDINGS))
        if not found:
            raise EmptyFolder(f"data.path={name!r} is a folder without shards: no file ends in {' '.join(ENDINGS)}")
        return found
    return sorted(glob.glob(name)) if glob.has_magic(name) else [name]


def _require_plain_command(name: str) -> None:
    try:
        words = command_of(name)
    except ValueError as error:
        raise ValueError(f"data.path={name!r} cannot be split into a command and its arguments: {error}") from None
    if not words:
        raise ValueError(f"data.path={name!r} holds no command; give one that prints a shard, such as 'pipe:cat FILE'")
    shell = FOR_SHELLS.intersection(words)
    if shell:
        raise ValueError(
            f"data.path={name!r}: {' '.join(sorted(shell))} is for a shell, and commands run without one; put the line "
            "into an executable file and name that"
        )
