"""A run's outcome, small enough to leave a machine with a time limit: numbers, options, teacher in fp16.

    python scripts/bring_back.py pack RUN FOLDER [--piece-mb 15]
    python scripts/bring_back.py join FOLDER RUN

pack writes metrics.jsonl, config.yaml and the teacher's backbone in fp16, in files of at most --piece-mb megabytes,
with their hashes. join makes them a folder that `franca eval --model` and `franca.load_model` take; it refuses pieces
that are missing or damaged. Both write to a new folder, or an empty one.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

import torch

from franca.files import write_atomically
from franca.hub import CheckpointError, save_teacher

TEACHER, PIECES = "teacher.pth", "pieces.json"
KEPT = ("metrics.jsonl", "config.yaml")
MEGABYTE = 10**6


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Command line of this script."""
    about, _, text = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("pack", "join"))
    parser.add_argument("source", type=Path, help="of pack: the run's folder; of join: the folder with the pieces")
    parser.add_argument("target", type=Path, help="folder to write; made where it is not there")
    parser.add_argument("--piece-mb", type=float, default=15, help="most megabytes of a piece (default: %(default)s)")
    return parser.parse_args(arguments)


def pack(run: Path, target: Path, piece_bytes: int) -> list[Path]:
    """Write the pieces of a run. Raises OSError, CheckpointError; the folder must be new, or empty."""
    if piece_bytes < 1:
        raise CheckpointError(f"--piece-mb {piece_bytes / MEGABYTE:g}: a piece holds one byte or more")
    _require_empty(target)
    _require_file(run / TEACHER, "name the folder of a run of franca train")
    content = _teacher(run / TEACHER)
    backbone = {name: tensor for name, tensor in content["teacher"].items() if name.startswith("backbone.")}
    small = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in backbone.items()}
    beyond = [name for name, tensor in small.items() if not torch.isfinite(tensor).all()]
    if beyond:
        raise CheckpointError(f"{run / TEACHER}: {beyond[0]} is not finite in fp16; the teacher can't be packed so")
    target.mkdir(parents=True, exist_ok=True)
    whole = target / TEACHER
    save_teacher(whole, small, content["description"] | {"stored_as": "fp16, without heads"})
    data = whole.read_bytes()
    whole.unlink()
    pieces: dict[str, bytes] = {}
    for number, start in enumerate(range(0, len(data), piece_bytes)):
        pieces[f"{TEACHER}.{number:02}"] = data[start : start + piece_bytes]
    pieces |= {name: (run / name).read_bytes() for name in KEPT if (run / name).is_file()}
    for name, part in pieces.items():
        _write(target / name, part)
    hashes = {name: hashlib.sha256(part).hexdigest() for name, part in pieces.items()}
    _write(target / PIECES, json.dumps(hashes, indent=1).encode() + b"\n")
    return [target / name for name in [*pieces, PIECES]]


def join(source: Path, run: Path) -> list[Path]:
    """The run's folder again, as far as it was brought back. Raises OSError, CheckpointError, as `pack` does."""
    _require_empty(run)
    _require_file(source / PIECES, "name the folder that pack wrote")
    try:
        hashes = dict(json.loads((source / PIECES).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{source / PIECES} can't be read ({error}); bring it again") from None
    files: dict[str, bytes] = {}
    for name, digest in hashes.items():
        if Path(name).name != name or not (name in KEPT or name.startswith(f"{TEACHER}.")):
            raise CheckpointError(
                f"{source / PIECES} names {name!r}: a piece lies in the same folder, and is of {TEACHER}, "
                f"{' or '.join(KEPT)}; bring all that pack wrote again"
            )
        part = (source / name).read_bytes()
        if hashlib.sha256(part).hexdigest() != digest:
            raise CheckpointError(f"{source / name} is damaged: its SHA-256 is not that in {PIECES}; bring it again")
        whole = name if name in KEPT else TEACHER
        files[whole] = files.get(whole, b"") + part
    if not files.get(TEACHER):
        raise CheckpointError(f"{source / PIECES} names no piece of {TEACHER}; bring all that pack wrote again")
    run.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        _write(run / name, content)
    return [run / name for name in files]


def _require_empty(folder: Path) -> None:
    """Raises CheckpointError for a folder that holds something, which would be replaced or mixed with what comes."""
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(
            f"{folder} is not empty: name a new folder, so that old files aren't lost or mixed with new"
        )


def _require_file(path: Path, advice: str) -> None:
    """Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not there; {advice}")


def _teacher(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if not {"teacher", "description"} <= content.keys():
        raise CheckpointError(f"{path} is no teacher file of franca.train; name the folder of a run")
    return content


def _write(path: Path, data: bytes) -> None:
    def write(file: BinaryIO) -> None:
        file.write(data)

    write_atomically(path, write)


def main(arguments: list[str] | None = None) -> int:
    """Pack or join; 2 where a file is missing or damaged."""
    options = parse_arguments(arguments)
    try:
        if options.what == "pack":
            written = pack(options.source, options.target, int(options.piece_mb * MEGABYTE))
        else:
            written = join(options.source, options.target)
    except (OSError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"{path.stat().st_size / MEGABYTE:8.2f} MB  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
