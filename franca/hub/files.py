"""Files and folders to what they hold: dictionaries of tensors, in whatever layout. No code in a file is ever run."""

import itertools
import json
import pickle
import re
import string
import zipfile
from pathlib import Path
from typing import Any

import torch

from franca.hub import safetensors
from franca.hub.cache import unpacked
from franca.hub.checkpoint import CheckpointError
from franca.hub.registry import PUBLISHED, Published, refusal

READABLE = "a .pth or .safetensors file, a .tar.gz that holds a .pth, or a folder that holds one of them"
ARCHIVE = re.compile(r"(?P<archive>.+\.(tar\.gz|tgz))(?P<part>\.part_\w+)?", re.IGNORECASE)
LONGEST_ENDING = 4  # of a piece
LIBRARY_FILES = ("model.safetensors", "pytorch_model.bin")  # of transformers and timm, beside config.json


def read_file(path: str | Path) -> Any:
    """What a checkpoint file or folder holds.

    A .pth gives what torch.load gives; a .safetensors file {"state_dict": …} and, where it has one, its "description";
    a folder of transformers or timm {"state_dict": …, "transformers_config" or "timm_config": …}.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it can't be read, is known to be bad, needs code to be run, or the folder holds no checkpoint
            or several.
    """
    path = Path(path)
    if path.is_dir():
        return _read_library_folder(path) if is_library_folder(path) else read_file(find_in_folder(path))
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; give {READABLE}")
    if reason := refusal(path.name):
        raise CheckpointError(f"{path} is refused by its name: {reason}. To use it all the same, rename it")
    if ARCHIVE.fullmatch(path.name):
        return _load(unpacked(archive_parts(path)))
    return _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _load(path)


def is_library_folder(path: Path) -> bool:
    """Whether transformers or timm saved this folder."""
    return (path / "config.json").is_file()


def weights_file(path: Path) -> Path:
    """The file itself, or the one of a folder that holds the tensors. Raises CheckpointError as find_in_folder."""
    if not path.is_dir():
        return path
    if is_library_folder(path):
        return next((path / name for name in LIBRARY_FILES if (path / name).is_file()), path)
    return find_in_folder(path)


def find_in_folder(folder: Path, published: Published | None = None, rasa: bool = False) -> Path:
    """The checkpoint in a folder: the file of that published name, in any case, or the only one there is.

    Args:
        folder: where to look.
        published: the weights that are wanted.
        rasa: look for a RASA head (`rasa.pth`, `…_rasa.pth`) instead of a backbone.

    Raises:
        CheckpointError: there is none, or there are several.
    """
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    if published:
        wanted = ([published.rasa] if published.rasa else []) if rasa else published.files
        names = [file.name.lower() for file in wanted] + ([] if rasa else [published.name.lower()])
        for path in files:
            if path.name.lower() in names:
                return path
    found = [path for path in files if _is_checkpoint(path) and _is_rasa(path) == rasa]
    archives = {ARCHIVE.sub(r"\g<archive>", path.name): path for path in reversed(found)}
    if len(archives) != 1:
        what = "RASA head (a file …_rasa.pth, or rasa.pth)" if rasa else "checkpoint"
        listed = ", ".join(sorted(archives)) or "none"
        raise CheckpointError(f"{folder} should hold one {what}, found: {listed}. Name the file itself")
    return next(iter(archives.values()))


def rasa_beside(path: Path) -> Path | None:
    """The RASA head where releases and conversions put it: `<name>_rasa.pth` beside a file, rasa.pth in a folder."""
    folder, name = (path, "rasa.pth") if path.is_dir() else (path.parent, f"{_stem(path)}_rasa.pth")
    return next((other for other in sorted(folder.iterdir()) if other.name.lower() == name.lower()), None)


def archive_parts(path: Path) -> list[Path]:
    """All pieces of the archive that `path` is one piece of, in order; itself where it is whole.

    Pieces that should be there count, so that whoever reads them can name the missing one.
    """
    found = ARCHIVE.fullmatch(path.name)
    if not found or not found["part"]:
        return [path]
    there = {other.name.lower(): other for other in path.parent.iterdir()}
    prefix = f"{found['archive']}.part_".lower()
    names = [name for name in there if name.startswith(prefix)]
    for published in PUBLISHED:
        files = [file.name for file in published.files]
        if path.name.lower() in [name.lower() for name in files]:
            return [there.get(name.lower(), path.parent / name) for name in files]
    ends = {name.removeprefix(prefix) for name in [*names, path.name.lower()] if len(name) == len(path.name)}
    stem = path.name[: -len(max(ends))]
    return [there.get(f"{prefix}{end}", path.parent / f"{stem}{end}") for end in _complete(ends)]


def _complete(ends: set[str]) -> list[str]:
    """The endings that `split` gives to pieces, up to the last of these: aa, ab, … or 00, 01, …"""
    last = max(ends)
    letters = string.digits if last.isdigit() else string.ascii_lowercase
    if len(last) > LONGEST_ENDING or set(last) - set(letters):
        return sorted(ends)
    every = ("".join(end) for end in itertools.product(letters, repeat=len(last)))
    return list(itertools.takewhile(lambda end: end <= last, every))


def _stem(path: Path) -> str:
    """A checkpoint's name without what says how it is packed."""
    found = ARCHIVE.fullmatch(path.name)
    return re.sub(r"(_chunked)?\.(tar\.gz|tgz)$", "", found["archive"], flags=re.IGNORECASE) if found else path.stem


def _is_rasa(path: Path) -> bool:
    return _stem(path).lower() == "rasa" or _stem(path).lower().endswith("_rasa")


def _is_checkpoint(path: Path) -> bool:
    return path.suffix.lower() in (".pth", ".pt", ".bin", ".safetensors") or bool(ARCHIVE.fullmatch(path.name))


def _read_safetensors(path: Path) -> dict[str, Any]:
    tensors, notes = safetensors.read(path)
    content: dict[str, Any] = {"state_dict": tensors}
    if "description" in notes:
        try:
            content["description"] = json.loads(notes["description"])
        except ValueError as error:
            raise CheckpointError(f"{path}: the description in its metadata is no JSON ({error})") from error
    return content


def _read_library_folder(folder: Path) -> dict[str, Any]:
    """A folder that transformers or timm saved."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'} is no JSON ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / 'config.json'} holds no table of settings")
    file = weights_file(folder)
    if file == folder:
        raise CheckpointError(f"{folder} holds a config.json, but neither {' nor '.join(LIBRARY_FILES)}")
    content = read_file(file)
    library = "timm" if "architecture" in config else "transformers"
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    return {"state_dict": state, f"{library}_config": config}


def _load(path: Path) -> Any:
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip and _is_program(path):
            raise CheckpointError(
                f"{path} is a TorchScript program, not a checkpoint: save the state_dict of its model"
            )
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except CheckpointError:
        raise
    except OSError as error:
        raise _unreadable(path, error.strerror) from None
    except Exception as error:  # damaged bytes make torch raise anything, and advise to switch its safeguard off
        needs = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if needs is None:
            raise _unreadable(path) from None
        raise CheckpointError(
            f"{path} holds Python objects ({needs[1]}) beside tensors; reading them could run code, so it is refused. "
            "Where you trust the file, load it with torch and save its state_dict alone"
        ) from error


def _is_program(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _unreadable(path: Path, reason: str | None = None) -> CheckpointError:
    return CheckpointError(
        f"{path} ({path.stat().st_size} bytes) can't be read: truncated, damaged, or no PyTorch checkpoint"
        f"{f' ({reason})' if reason else ''}; copy or save it again"
    )
