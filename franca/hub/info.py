"""Command line: ``python -m franca.hub.info FILE``: what a checkpoint is."""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from franca.hub.checkpoint import CheckpointError
from franca.hub.files import find_in_folder, read_file
from franca.hub.layouts import Recognised, rasa_depth, recognise, recognise_rasa
from franca.hub.names import State
from franca.hub.preprocessing import told_normalisation
from franca.hub.progress import Progress

EPILOG = """\
FILE is any checkpoint that the hub reads: this project's teacher files, the authors' releases, DINOv2's files, files
and folders of transformers and timm, safetensors, a RASA head by itself.

examples:
  python -m franca.hub.info runs/mine/teacher.pth
  python -m franca.hub.info franca_vitb14_In21K.pth --json

This project's teacher files carry a hash of their tensors, which is checked here as it is at loading. For all others
the SHA-256 of the file is shown, as sha256sum gives it; --hash shows it for teacher files too.
"""
SIZES = ("embed_dim", "depth", "num_heads", "ffn", "patch_size", "num_register_tokens", "in_chans")
DESCRIBED = ("stage", "data", "step", "images_seen", "hash", "converted_from")


LIBRARY_FILES = ("model.safetensors", "pytorch_model.bin")  # of transformers and timm
HEADS_UNKNOWN = "the number of attention heads can't be told: loading it needs num_heads=…, converting --num-heads"
HEADS_GUESSED = "the file doesn't hold the number of attention heads: width / 64 is taken"


def inspect(path: str | Path, num_heads: int | None = None, sha256: bool = False) -> dict[str, Any]:
    """What a checkpoint is, in plain types; None stands for what it doesn't tell.

    Args:
        path: any file or folder that the hub reads.
        num_heads: attention heads, where the file doesn't tell.
        sha256: read the whole file for its SHA-256, also where the file carries a hash of its own.

    Raises:
        FileNotFoundError, CheckpointError: there is no such file, it isn't a checkpoint, or it is damaged.
    """
    content = read_file(path)
    file = _weights_file(Path(path))
    about: dict[str, Any] = {"file": str(path), "bytes": file.stat().st_size}
    weights, heads_note = _recognise(content, str(path), num_heads)
    if weights is None:
        rasa = recognise_rasa(content, str(path))
        about |= {"layout": "RASA head", "rasa": _about_rasa(rasa, "by itself"), "notes": []}
    else:
        normalisation = dict.fromkeys(("mean", "std")) | told_normalisation(Path(path), content)
        about |= _about_model(weights, heads_note) | normalisation | {"rasa": _find_rasa(weights, file)}
    return about | {"sha256": _sha256(file) if sha256 or not about.get("hash") else None}


def lines(about: Mapping[str, Any]) -> Iterator[str]:
    """What `inspect` gave, for people: a table of what is known, then the notes."""
    rows = {"file": f"{about['file']} ({about['bytes'] / 1e6:.1f} MB)", "layout": about["layout"]}
    if "architecture" in about:
        rows |= _model_rows(about)
    if about["rasa"]:
        planes, width, place = (about["rasa"][key] for key in ("planes", "width", "place"))
        rows["RASA"] = f"{f'{planes} planes' if planes else 'a map'} of features of width {width}, {place}"
    rows["SHA-256"] = about["sha256"]
    for name, value in rows.items():
        if value is not None:
            yield f"{name:<14}{value}"
    for note in about["notes"]:
        yield f"{'note':<14}{note}"


def _recognise(content: Any, origin: str, num_heads: int | None) -> tuple[Recognised | None, str]:
    """The weights, None for a RASA head by itself; and a note where the file doesn't tell its attention heads."""
    try:
        weights = recognise(content, origin, num_heads)
    except CheckpointError:
        if _is_rasa(content, origin):
            return None, ""
        if num_heads is not None:
            raise
        # Heads are all that the width may fail to tell, and one fits every width; any other fault is raised again.
        return recognise(content, origin, num_heads=1), HEADS_UNKNOWN
    told = num_heads is not None or any(f"{library}_config" in content for library in ("transformers", "timm"))
    return weights, "" if told or weights.description else HEADS_GUESSED


def _is_rasa(content: Any, origin: str) -> bool:
    try:
        recognise_rasa(content, origin)
    except CheckpointError:
        return False
    return True


def _about_model(weights: Recognised, heads_note: str) -> dict[str, Any]:
    described = weights.description or {}
    backbone = weights.backbone
    sizes: dict[str, Any] = {name: weights.config.get(name) for name in SIZES}
    arch = weights.arch
    if heads_note == HEADS_UNKNOWN:
        arch, sizes["num_heads"] = "custom", None
    return {
        "layout": weights.layout,
        "architecture": {"name": arch, **sizes},
        "parameters": sum(tensor.numel() for tensor in backbone.values()),
        "dtype": ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in backbone.values()})),
        "grid": weights.config["img_size"] // weights.config["patch_size"],
        "img_size": weights.config["img_size"],
        "heads": {name: _levels(state) for name, state in weights.heads.items()},
        **{name: described.get(name) for name in DESCRIBED},
        "versions": {name: described.get(name) for name in ("format", "franca", "torch")},
        "notes": weights.notes + ([heads_note] if heads_note else []),
    }


def _levels(head: State) -> list[dict[str, int]]:
    """Features that each Matryoshka level reads and its prototypes, narrowest first; empty for other heads."""
    levels: list[dict[str, int]] = []
    while (first := head.get(f"matryoshka_projections.{len(levels)}.weight")) is not None:
        prototypes = head.get(f"last_layers.{len(levels)}.weight_v")
        levels.append({"width": len(first), "prototypes": 0 if prototypes is None else len(prototypes)})
    return levels


def _find_rasa(weights: Recognised, file: Path) -> dict[str, Any] | None:
    """The RASA head inside, folded in, or in the file beside that conversions and releases give it."""
    if "patch_map.weight" in weights.backbone:
        planes = (weights.description or {}).get("rasa_rounds")
        return {"place": "folded in (patch_map)", "planes": planes, "width": weights.config["embed_dim"]}
    if weights.rasa is not None:
        return _about_rasa(weights.rasa, "inside")
    in_folder = file.name in LIBRARY_FILES
    beside = file.with_name("rasa.pth" if in_folder else f"{file.stem}_rasa.pth")
    if beside.is_file():
        return _about_rasa(recognise_rasa(read_file(beside), str(beside)), f"beside: {beside.name}")
    return None


def _about_rasa(rasa: State, place: str) -> dict[str, Any]:
    planes = rasa_depth(rasa) + ("pos_pred.weight" in rasa)
    return {"place": place, "planes": planes, "width": next(iter(rasa.values())).shape[-1]}


def _model_rows(about: Mapping[str, Any]) -> dict[str, str | None]:
    sizes, versions = about["architecture"], about["versions"]
    trained = [
        about["stage"],
        f"on {about['data']}" if about["data"] else None,
        f"{about['step']} steps" if about["step"] is not None else None,
        f"{about['images_seen']} images seen" if about["images_seen"] is not None else None,
    ]
    heads = "; ".join(f"{name} {_level_text(levels)}".strip() for name, levels in about["heads"].items())
    known = [f"{name} {version}" for name, version in versions.items() if version is not None]
    return {
        "architecture": f"{sizes['name']}: width {sizes['embed_dim']}, blocks {sizes['depth']}, "
        f"heads {'unknown' if sizes['num_heads'] is None else sizes['num_heads']}, {sizes['ffn']}, "
        f"patch {sizes['patch_size']}, registers {sizes['num_register_tokens']}, channels {sizes['in_chans']}",
        "parameters": f"{about['parameters'] / 1e6:.2f} M, {about['dtype']}",
        "positions": f"{about['grid']} x {about['grid']}, for images of {about['img_size']} pixels",
        "trained": ", ".join(part for part in trained if part) or None,
        "converted": f"from {about['converted_from']}" if about["converted_from"] else None,
        "heads": heads or None,
        "mean, std": f"{about['mean']}, {about['std']}" if about["mean"] else None,
        "hash": about["hash"],
        "written by": ", ".join(known) or None,
    }


def _level_text(levels: Sequence[Mapping[str, int]]) -> str:
    if not levels:
        return ""
    columns = [", ".join(str(level[key]) for level in levels) for key in ("width", "prototypes")]
    return f"({len(levels)} levels: features {columns[0]}; prototypes {columns[1]})"


def _weights_file(path: Path) -> Path:
    """The file itself, or the one of a folder that holds the tensors."""
    if not path.is_dir():
        return path
    found = [path / name for name in LIBRARY_FILES if (path / name).is_file()]
    return found[0] if found else find_in_folder(path)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream, Progress(f"SHA-256 of {file.name}", file.stat().st_size) as progress:
        while block := stream.read(1 << 22):
            digest.update(block)
            progress.add(len(block))
    return digest.hexdigest()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m franca.hub.info",
        description="Say what a checkpoint is.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="checkpoint file or folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--hash", action="store_true", help="show the file's SHA-256 although it carries a hash")
    parser.add_argument("--num-heads", type=int, metavar="N", help="attention heads, where the file doesn't tell")
    return parser.parse_args(arguments)


def main() -> None:
    """Print what the file in sys.argv is. Exits with status 2 and the reason where that can't be told."""
    given = parse()
    try:
        about = inspect(given.file, given.num_heads, sha256=given.hash)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(about, indent=2, ensure_ascii=False) if given.json else "\n".join(lines(about)))


if __name__ == "__main__":
    main()
