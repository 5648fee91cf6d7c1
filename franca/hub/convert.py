"""Command line: ``python -m franca.hub.convert FILE OUTPUT --to LAYOUT``: a checkpoint in another layout."""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from franca.hub.files import rasa_beside, read_file, weights_file
from franca.hub.layouts import Recognised, build, recognise
from franca.hub.preprocessing import told_normalisation
from franca.hub.registry import LICENCE, is_published
from franca.hub.targets import TARGETS, Plan, Writer

PROG: str = globals().get("PROG", "python -m franca.hub.convert")  # `franca convert` gives its own name
EPILOG = f"""\
layouts:
  franca        this project's teacher file: describes itself, keeps pretraining heads and RASA
  upstream      the authors' layout, blocks in four chunks; a RASA head goes into OUTPUT_rasa.pth
  safetensors   one file with our names, its description in the metadata
  transformers  a folder for transformers.AutoModel (Dinov2, with registers Dinov2WithRegisters)
  timm          a folder for timm.create_model("local-dir:…")

examples:
  {PROG} franca_vitb14_In21K.pth vitb14 --to transformers --img-size 224
  {PROG} runs/mine/teacher.pth mine.safetensors --to safetensors

FILE is any checkpoint that the hub reads. transformers and timm resample positions by other rules than this project:
there features agree at the stored size alone, and --img-size stores the positions for another one.
"""


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote, the line of code that loads it, and what to know about it."""

    files: list[Path]
    load: str
    notes: list[str]


def convert(
    checkpoint: str | Path,
    output: str | Path,
    to: str,
    img_size: int | None = None,
    num_heads: int | None = None,
    with_rasa: bool = True,
    force: bool = False,
) -> Converted:
    """Write a checkpoint in another layout.

    Args:
        checkpoint: any file or folder that the hub reads.
        output: the file, or for transformers and timm the folder, to write; the folder above it must exist.
        to: a name of TARGETS.
        img_size: side in pixels for whose grid positions are stored; None keeps the file's.
        num_heads: attention heads, where the file doesn't tell.
        with_rasa: False leaves out a RASA head, or the map into which one was folded.
        force: replace files of those names. Other files in a folder stay.

    Raises:
        FileExistsError: the output is there, and `force` is False; or a RASA head of other weights would pass for its.
        CheckpointError, FileNotFoundError: the checkpoint can't be read, or the layout has no place for it.
        OSError: writing failed, see write_together.
        ValueError: there is no such layout, or `img_size` is not a multiple of the patch.
    """
    if to not in TARGETS:
        raise ValueError(f"to={to!r} is no layout; choose from {', '.join(TARGETS)}")
    content = read_file(checkpoint)
    weights = _described(recognise(content, str(checkpoint), num_heads), told_normalisation(Path(checkpoint), content))
    weights = _at_resolution(weights if with_rasa else _without_rasa(weights), img_size)
    plan = TARGETS[to](weights, Path(output))
    _refuse_existing(plan, Path(output), force)
    write_together(plan.files)
    return Converted(list(plan.files), plan.load, weights.notes + plan.notes + _licence(Path(checkpoint)))


def write_together(files: Mapping[Path, Writer]) -> None:
    """Write files of one folder: all of them are written elsewhere first, then renamed to their places.

    The folder is made where it's missing. A failure to write, a full disk say, leaves everything as it was. A failure
    while files are renamed, or a power cut then, leaves each file whole, but some of them new and some old.

    Raises:
        OSError: writing or renaming failed.
    """
    folder = next(iter(files)).parent
    made = not folder.exists()
    if made:
        folder.mkdir()
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".convert-") as staging:
            staged = {path: Path(staging) / path.name for path in files}
            for path, write in files.items():
                _write(path, staged[path], write)
            for path, partial in staged.items():
                os.replace(partial, path)
    except BaseException:
        if made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _write(path: Path, partial: Path, write: Writer) -> None:
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    # torch reports a full disk as RuntimeError
    except (OSError, RuntimeError) as error:
        raise OSError(f"{path} could not be written ({error}); check the free space. Nothing was changed") from error


def _described(weights: Recognised, normalisation: dict[str, list[float]]) -> Recognised:
    """The weights with a description, and a note where it doesn't tell how images were normalised."""
    description = (weights.description or {"converted_from": weights.layout}) | normalisation
    notes = [] if normalisation else ["how images were normalised isn't told: mean and std are taken to be ImageNet's"]
    return replace(weights, description=description, notes=weights.notes + notes)


def _at_resolution(weights: Recognised, img_size: int | None) -> Recognised:
    """The weights, known to fit, with every argument of their model, and positions for `img_size`."""
    model = build(weights)
    backbone = dict(weights.backbone)
    if img_size is not None:
        model.set_resolution(img_size)
        backbone["pos_embed"] = model.pos_embed.detach().to(backbone["pos_embed"].dtype)
    return replace(weights, backbone=backbone, config=model.config)


def _without_rasa(weights: Recognised) -> Recognised:
    backbone = {name: tensor for name, tensor in weights.backbone.items() if name != "patch_map.weight"}
    described = {name: value for name, value in (weights.description or {}).items() if name != "rasa_rounds"}
    if described.get("stage") == "rasa":
        del described["stage"]
    return replace(weights, backbone=backbone, rasa=None, description=described)


def _refuse_existing(plan: Plan, output: Path, force: bool) -> None:
    one_file = output in plan.files
    if output.exists() and output.is_dir() == one_file:
        found, needed = ("a folder", "one file") if one_file else ("a file", "a folder")
        raise FileExistsError(f"{output} is {found}, and this layout is {needed}: name another output")
    there = [path for path in plan.files if path.exists()]
    if there and not force:
        raise FileExistsError(f"{there[0]} exists; name another output, or add --force to replace what is there")
    other = rasa_beside(output) if one_file or output.is_dir() else None
    if other and not any(path.exists() and path.samefile(other) for path in plan.files):
        raise FileExistsError(
            f"{other} would pass for the RASA head of {output}, and it isn't among what is to be written: remove or "
            "rename it first, or name another output"
        )


def _licence(checkpoint: Path) -> list[str]:
    """What to know about a file that was made from published weights."""
    name = weights_file(checkpoint).name
    return [f"{LICENCE}. It says, too, what holds for files made from them"] if is_published(name) else []


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Write a checkpoint in another layout.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="checkpoint to read")
    parser.add_argument("output", metavar="OUTPUT", help="file, or for transformers and timm folder, to write")
    parser.add_argument("--to", required=True, choices=TARGETS, metavar="LAYOUT", help=" | ".join(TARGETS))
    parser.add_argument("--img-size", type=int, metavar="N", help="store positions for images of N x N pixels")
    parser.add_argument("--num-heads", type=int, metavar="N", help="attention heads, where the file doesn't tell")
    parser.add_argument("--without-rasa", action="store_true", help="leave out the RASA head, or the map it became")
    parser.add_argument("--force", action="store_true", help="replace files of those names")
    return parser.parse_args(arguments)


def main() -> None:
    """Convert as sys.argv says. Exits with status 2 and the reason when that can't be done."""
    given = parse()
    try:
        done = convert(
            given.file,
            given.output,
            given.to,
            img_size=given.img_size,
            num_heads=given.num_heads,
            with_rasa=not given.without_rasa,
            force=given.force,
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for path in done.files:
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    for note in done.notes:
        print(f"note: {note}")
    print(f"load it: {done.load}")


if __name__ == "__main__":
    main()
