"""Command line: ``python -m franca.hub.info FILE``: what a checkpoint is."""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from franca.hub.checkpoint import CheckpointError, mismatches
from franca.hub.description import describe_rasa, facts
from franca.hub.files import is_library_folder, rasa_beside, read_file, weights_file
from franca.hub.layouts import Recognised, recognise, recognise_rasa, skeleton
from franca.hub.names import State
from franca.hub.preprocessing import told_normalisation
from franca.hub.progress import Progress

PROG: str = globals().get("PROG", "python -m franca.hub.info")  # `franca info` gives its own name
EPILOG = f"""\
FILE is any checkpoint that the hub reads: this project's teacher files, the authors' releases, DINOv2's files, files
and folders of transformers and timm, safetensors, a RASA head by itself.

examples:
  {PROG} runs/mine/teacher.pth
  {PROG} franca_vitb14_In21K.pth --json

This project's teacher files carry a hash of their tensors, which is checked here as it is at loading. For all others
the SHA-256 of the file is shown, as sha256sum gives it; --hash shows it for teacher files too.
"""
DESCRIBED = ("stage", "data", "step", "images_seen", "initialised_from", "hash", "converted_from")
HEADS_UNKNOWN = "the number of attention heads can't be told: loading it needs num_heads=…, converting --num-heads"


def inspect(path: str | Path, num_heads: int | None = None, sha256: bool = False) -> dict[str, Any]:
    """What a checkpoint is, in plain types: `describe`'s words and more; None stands for what it doesn't tell.

    Args:
        path: any file or folder that the hub reads.
        num_heads: attention heads, where the file doesn't tell.
        sha256: read the whole file for its SHA-256, also where the file carries a hash of its own.

    Raises:
        FileNotFoundError, CheckpointError: there is no such file, it isn't a checkpoint, or it is damaged.
    """
    content, place = read_file(path), Path(path)
    file = weights_file(place)
    about: dict[str, Any] = {"file": str(path), "bytes": file.stat().st_size}
    weights = _recognise(content, str(path), num_heads)
    if weights is None:
        rasa = recognise_rasa(content, str(path))
        about |= {"layout": "rasa", "rasa": _about_rasa(rasa, "by itself"), "notes": []}
    else:
        about |= _about_model(weights) | dict.fromkeys(("mean", "std")) | told_normalisation(place, content)
        about["rasa"] = _find_rasa(weights, place if is_library_folder(place) else file)
    return about | {"sha256": _sha256(file) if sha256 or not about.get("hash") else None}


def lines(about: Mapping[str, Any]) -> Iterator[str]:
    """What `inspect` gave, for people: a table of what is known, then the notes."""
    rows = {"file": f"{about['file']} ({about['bytes'] / 1e6:.1f} MB)", "layout": about["layout"]}
    if "backbone" in about:
        rows |= _model_rows(about)
    if about["rasa"]:
        planes, width, place = (about["rasa"][key] for key in ("planes", "input_dim", "place"))
        rows["RASA"] = f"{f'{planes} planes' if planes else 'a map'} of features of width {width}, {place}"
    rows["SHA-256"] = about["sha256"]
    for name, value in rows.items():
        if value is not None:
            yield f"{name:<14}{value}"
    for note in about["notes"]:
        yield f"{'note':<14}{note}"


def _recognise(content: Any, origin: str, num_heads: int | None) -> Recognised | None:
    """The weights, without their heads where nothing tells them; None for a RASA head by itself."""
    try:
        return recognise(content, origin, num_heads)
    except CheckpointError:
        if _is_rasa(content, origin):
            return None
        if num_heads is not None:
            raise
    # Heads are all that the width may fail to tell, and one fits every width; any other fault is raised again.
    weights = recognise(content, origin, num_heads=1)
    return replace(
        weights, arch="custom", config=weights.config | {"num_heads": None}, notes=[*weights.notes, HEADS_UNKNOWN]
    )


def _is_rasa(content: Any, origin: str) -> bool:
    try:
        recognise_rasa(content, origin)
    except CheckpointError:
        return False
    return True


def _about_model(weights: Recognised) -> dict[str, Any]:
    described, tensors = weights.description or {}, weights.backbone.values()
    return facts(weights) | {
        "parameters": sum(tensor.numel() for tensor in tensors),
        "dtype": ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
        "grid": weights.config["img_size"] // weights.config["patch_size"],
        **{name: described.get(name) for name in DESCRIBED},
        "versions": {name: described.get(name) for name in ("format", "franca", "torch")},
        "notes": weights.notes + _misfits(weights),
    }


def _misfits(weights: Recognised) -> list[str]:
    """In words, why loading will be refused; nothing where all tensors fit."""
    try:
        rows = mismatches(skeleton(_with_some_heads(weights)), weights.backbone)
    except CheckpointError as error:
        return [str(error)]
    if not rows:
        return []
    first = " ".join(rows[0].split())
    return [f"incomplete or damaged: {len(rows)} tensors don't fit, such as {first}; loading refuses it"]


def _with_some_heads(weights: Recognised) -> Recognised:
    """With a number of attention heads, which no tensor's shape depends on."""
    return replace(weights, config=weights.config | {"num_heads": weights.config["num_heads"] or 1})


def _find_rasa(weights: Recognised, place: Path) -> dict[str, Any] | None:
    """The RASA head inside, folded in, or in the file beside that conversions and releases give it."""
    if "patch_map.weight" in weights.backbone:
        planes = (weights.description or {}).get("rasa_rounds")
        return {"place": "folded in (patch_map)", "planes": planes, "input_dim": weights.config["embed_dim"]}
    if weights.rasa is not None:
        return _about_rasa(weights.rasa, "inside")
    beside = rasa_beside(place)
    if beside is None:
        return None
    return _about_rasa(recognise_rasa(read_file(beside), str(beside)), f"beside: {beside.name}")


def _about_rasa(rasa: State, place: str) -> dict[str, Any]:
    about = describe_rasa(rasa)
    return {"place": place, "planes": about["n_pos_layers"] + ("pos_pred.weight" in rasa), **about}


def _model_rows(about: Mapping[str, Any]) -> dict[str, str | None]:
    sizes, versions = about["backbone"], about["versions"]
    trained = [
        about["stage"],
        f"on {about['data']}" if about["data"] else None,
        f"{about['step']} steps" if about["step"] is not None else None,
        f"{about['images_seen']} images seen" if about["images_seen"] is not None else None,
    ]
    began = about["initialised_from"]
    heads = "; ".join(f"{name} {_level_text(head)}".strip() for name, head in about["heads"].items())
    known = [f"{name} {version}" for name, version in versions.items() if version is not None]
    return {
        "architecture": f"{about['arch']}: width {sizes['embed_dim']}, blocks {sizes['depth']}, "
        f"heads {'unknown' if sizes['num_heads'] is None else sizes['num_heads']}, {sizes['ffn']}, "
        f"patch {sizes['patch_size']}, registers {sizes['num_register_tokens']}, channels {sizes['in_chans']}",
        "parameters": f"{about['parameters'] / 1e6:.2f} M, {about['dtype']}",
        "positions": f"{about['grid']} x {about['grid']}, for images of {sizes['img_size']} pixels",
        "trained": ", ".join(part for part in trained if part) or None,
        "began with": f"{began['name']}, hash {began['hash']}" if began else None,
        "converted": f"from {about['converted_from']}" if about["converted_from"] else None,
        "heads": heads or None,
        "mean, std": f"{about['mean']}, {about['std']}" if about["mean"] else None,
        "hash": about["hash"],
        "written by": ", ".join(known) or None,
    }


def _level_text(head: Mapping[str, Any]) -> str:
    """Of a Matryoshka head; empty for others."""
    widths, prototypes = (", ".join(map(str, head[key])) for key in ("widths", "prototypes"))
    return f"({len(head['widths'])} levels: features {widths}; prototypes {prototypes})" if widths else ""


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream, Progress(f"SHA-256 of {file.name}", file.stat().st_size) as progress:
        while block := stream.read(1 << 22):
            digest.update(block)
            progress.add(len(block))
    return digest.hexdigest()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=PROG,
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
