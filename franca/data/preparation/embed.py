"""Embeddings of all images of a folder or of its tar shards, by any model that the hub loads."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

from franca import __version__
from franca.data.errors import UnreadableImage
from franca.data.preparation.errors import PreparationError
from franca.data.preparation.report import counts_text
from franca.data.preparation.vectors import names_file
from franca.data.preparation.work_folder import WorkFolder
from franca.devices import choose_device, choose_precision, compute_in
from franca.hub import load_model
from franca.hub.checkpoint import hash_tensors
from franca.hub.files import read_file
from franca.hub.preprocessing import IMAGENET_MEAN, IMAGENET_STD, told_normalisation
from franca.hub.progress import Progress
from franca.models import VisionTransformer

IMAGES_PER_PART = 4096
NAMED = 20  # skipped images that the report names
MEANING = {"unreadable": "could not be decoded, or has a tab or line break in its name"}


class Source(Protocol):
    """Images with numbers and names."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def load(self, index: int) -> Tensor: ...


@dataclass(frozen=True)
class Embedder:
    """A model and what its images must be like. size: pixels of the square; name: as it was asked for."""

    model: VisionTransformer
    name: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        patch = self.model.config["patch_size"]
        if self.size < patch or self.size % patch:
            raise PreparationError(f"--size {self.size}: a multiple of the model's patch size, {patch}")


def load_embedder(name: str, size: int) -> Embedder:
    """A checkpoint file or folder, or published weights by the name of their entry point. Raises as load_model."""
    path = Path(name).expanduser()
    if not path.exists():
        return Embedder(load_model(name), name, size, IMAGENET_MEAN, IMAGENET_STD)
    told = told_normalisation(path, read_file(path))
    mean, std = tuple(told.get("mean", IMAGENET_MEAN)), tuple(told.get("std", IMAGENET_STD))
    return Embedder(load_model(checkpoint=path), name, size, mean, std)


def embed(
    source: Source,
    files: Sequence[Path],
    output: str | Path,
    embedder: Embedder,
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
    restart: bool = False,
) -> dict[str, Any]:
    """Write `vectors/*.npy` (images, width) fp16, rows of length 1, `vectors/*.txt` with their names, and a report.

    An image is resized to a square as a whole, so that nothing of it is left out; its vector is the class token.

    Args:
        source: the images.
        files: those that stand for the source: when one of them changes, the step is refused or starts anew.
        output: folder of this step; the same call goes on in it.
        embedder: the model.
        batch_size, workers, device: change no result beyond rounding.
        restart: throw away what another call left in `output`.

    Raises:
        PreparationError: no image can be read, or other options than before.
    """
    options = {
        "model": hash_tensors(embedder.model.state_dict()),
        "size": embedder.size,
        "mean": embedder.mean,
        "std": embedder.std,
        "images": _hash_names(source),
    }
    with WorkFolder(Path(output), "embed", options, files, restart) as work:
        report = work.report
        if report is None:
            parts = _embed_parts(work, source, embedder, batch_size, workers, choose_device(device))
            report = _finish(work, embedder, parts)
    return report


class _Squares(Dataset[tuple[int, Tensor | str]]):
    """Image number -> its number and (C, S, S) uint8, or in words why it can't be used."""

    def __init__(self, source: Source, numbers: range, size: int) -> None:
        self.source, self.numbers, self.size = source, numbers, size

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> tuple[int, Tensor | str]:
        number = self.numbers[place]
        if {"\t", "\n"} & set(self.source.name(number)):
            return number, f"{self.source.name(number)!r}: a tab or line break in its name"
        try:
            image = self.source.load(number)
        except UnreadableImage as error:
            return number, str(error)
        side = [self.size, self.size]
        return number, F.resize(image, side, interpolation=F.InterpolationMode.BICUBIC, antialias=True)


def _embed_parts(
    work: WorkFolder, source: Source, embedder: Embedder, batch_size: int, workers: int, device: torch.device
) -> list[dict[str, Any]]:
    bounds = [*range(0, len(source), IMAGES_PER_PART), len(source)]
    width = embedder.model.embed_dim
    model = embedder.model.to(device).eval()
    told = []
    with Progress("embeddings", len(source) * 2 * width) as progress:

        def make(numbers: range, folder: Path) -> dict[str, Any]:
            squares = _Squares(source, numbers, embedder.size)
            loader = DataLoader(squares, batch_size, num_workers=workers, collate_fn=list, generator=torch.Generator())
            rows, names, skipped = [np.empty((0, width), np.float16)], [], []
            for batch in loader:
                skipped += [reason for _, reason in batch if isinstance(reason, str)]
                readable = [(number, image) for number, image in batch if isinstance(image, Tensor)]
                if readable:
                    pixels = torch.stack([image for _, image in readable])
                    rows.append(_vectors(model, pixels.to(device), embedder))
                    names += [source.name(number) for number, _ in readable]
                progress.add(len(batch) * 2 * width)
            np.save(folder / "vectors.npy", np.concatenate(rows))
            text = "".join(f"{name}\n" for name in names)
            names_file(folder / "vectors.npy").write_bytes(text.encode(errors="surrogateescape"))
            return {"images": len(names), "skipped": len(skipped), "first_skipped": skipped[:NAMED]}

        for number, (start, stop) in enumerate(pairwise(bounds)):
            done = progress.done
            told.append(work.part(f"images/{number:08}", partial(make, range(start, stop))))
            if progress.done == done:  # by an earlier run
                progress.add((stop - start) * 2 * width)
    return told


@torch.inference_mode()
def _vectors(model: nn.Module, pixels: Tensor, embedder: Embedder) -> np.ndarray[Any, np.dtype[np.float16]]:
    """(B, C, S, S) uint8 -> (B, D), rows of length 1."""
    told = (embedder.mean, embedder.std)
    shift, scale = (pixels.new_tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in told)
    with compute_in(choose_precision("auto", pixels.device), pixels.device):
        features = model((pixels.float() / 255 - shift) / scale)
    return nn.functional.normalize(features.float(), dim=1).half().cpu().numpy()


def _finish(work: WorkFolder, embedder: Embedder, parts: list[dict[str, Any]]) -> dict[str, Any]:
    images, skipped = (sum(part[name] for part in parts) for name in ("images", "skipped"))
    first = [reason for part in parts for reason in part["first_skipped"]][:NAMED]
    if not images:
        raise PreparationError(f"none of {skipped} images can be read, the first: {next(iter(first), '')}")
    files = {
        f"{number:08}{suffix}": work.folder(f"images/{number:08}") / f"vectors{suffix}"
        for number in range(len(parts))
        for suffix in (".npy", ".txt")
    }
    work.publish("vectors", files)
    report = {
        "step": "embed",
        "images": images + skipped,
        "kept": images,
        "dropped": {"unreadable": skipped},
        "first_dropped": first,
        "model": embedder.name,
        "width": embedder.model.embed_dim,
        "options": work.content["options"],
        "versions": {"franca": __version__, "torch": torch.__version__},
    }
    text = counts_text("Images", report["images"], images, report["dropped"], MEANING)
    work.finish(report, text + "".join(f"  {reason}\n" for reason in first))
    return report


def _hash_names(source: Source) -> str:
    digest = hashlib.sha256()
    for number in range(len(source)):
        digest.update(source.name(number).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()
