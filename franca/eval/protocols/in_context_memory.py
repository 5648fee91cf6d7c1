"""The memory of in-context segmentation: patch features, and how many pixels of each class lie in each patch.

Legend: N images, h x w patches each (R in all), S x S pixels of a mask, p x p of a patch, C classes, D features, M
rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from franca.eval.datasets import VOID
from franca.eval.errors import EvalError
from franca.eval.neighbours import Rows


@dataclass(frozen=True)
class Memory:
    """Patches that are searched: those of all patches that the features' rows stand for."""

    features: Rows  # (M, D), read from disk in pieces; compared by cosine, so their length doesn't matter
    counts: Tensor  # (R, C) integers, of all patches: pixels of each class (4 GB for ADE20K: never copied)
    patch_pixels: int  # p * p

    def first(self, width: int) -> "Memory":
        """The same with the first ``width`` features alone."""
        return replace(self, features=replace(self.features, parts=(self.features.parts[0][:, :width],)))

    def votes(self, rows: Tensor) -> Tensor:
        """Share of each class in the pixels of some patches, (…) row numbers -> (…, C) fp32.

        Void pixels vote for nothing, so that a row sums to less than 1 where there are some.
        """
        which = self.features.numbers(rows)
        return self.counts[which].float() / self.patch_pixels


def count_classes(masks: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """Pixels of each class in each patch, without void ones: (N, S, S) and (h, w) -> (N, h, w, C) of `count_type`.

    Raises EvalError unless patches divide the mask evenly.
    """
    images, height, width = masks.shape
    if height % grid[0] or width % grid[1]:
        raise EvalError(
            f"masks of {height}x{width} pixels and a grid of {grid[0]}x{grid[1]} patches: patches must have whole "
            "pixels; choose a size that is a multiple of the model's patch"
        )
    rows = torch.arange(height, device=masks.device) * grid[0] // height
    columns = torch.arange(width, device=masks.device) * grid[1] // width
    patch = (torch.arange(images, device=masks.device)[:, None, None] * grid[0] + rows[:, None]) * grid[1] + columns
    counted = masks != VOID
    cells = images * grid[0] * grid[1] * classes
    counts = torch.bincount(patch[counted] * classes + masks[counted], minlength=cells)
    return counts.view(images, *grid, classes).to(count_type(height * width // (grid[0] * grid[1])))


def count_type(patch_pixels: int) -> torch.dtype:
    """The least that holds so many pixels."""
    return torch.uint8 if patch_pixels < 256 else torch.int16


def sampling_scores(counts: Tensor) -> Tensor:
    """How common the classes of each patch are in its image, (h, w, C) -> (h, w) fp32.

    The sum over the classes in the patch of the number of patches of the image that hold that class
    (open-hummingbird-eval). Infinite where all pixels are void.
    """
    present = counts > 0
    frequency = present.flatten(0, 1).sum(dim=0)
    scores = (present * frequency).sum(dim=2).float()
    return scores.masked_fill(~present.any(dim=2), torch.inf)


def sample_patches(counts: Tensor, wanted: int, noise: Tensor) -> Tensor:
    """The ``wanted`` patches of an image with the smallest score times noise, the smallest first, (n,) int64.

    Patches of rare classes are likelier to be kept. Patches that are all void never are, so n may be less.

    Args:
        counts: (h, w, C). noise: (h * w,) uniform in [0, 1), in reading order.
    """
    scores = sampling_scores(counts).flatten()
    known = scores.isfinite()
    scores = torch.where(known, scores * noise, torch.inf)
    return scores.topk(min(wanted, int(known.sum())), largest=False).indices


def choose_rows(counts: Tensor, limit: int, generators: Iterator[Generator]) -> Tensor:
    """Numbers of the patches to remember, counted through all images, (N, h, w, C) -> (M,) int64.

    Args:
        limit: most patches in all, shared evenly by the images (at least one each); 0: every patch that isn't all void.
        generators: one for each image.
    """
    per_image = counts.shape[1] * counts.shape[2]
    wanted = max(1, limit // len(counts)) if limit else per_image
    if wanted >= per_image:
        return counts.flatten(0, 2).any(dim=1).nonzero()[:, 0]
    chosen = []
    for number, (of_image, generator) in enumerate(zip(counts, generators, strict=False)):
        noise = torch.rand(per_image, generator=generator)
        chosen.append(sample_patches(of_image, wanted, noise) + number * per_image)
    return torch.cat(chosen)


def remember(features: Tensor, counts: Tensor, chosen: Tensor, patch_pixels: int) -> Memory:
    """The chosen rows of (R, D) features, which stay where they are, and (R, C) counts.

    Raises EvalError when no row is chosen.
    """
    if not len(chosen):
        raise EvalError("no patch to remember: every pixel of every training mask is void")
    rows = Rows((features,), chosen=None if len(chosen) == len(features) else chosen)
    return Memory(rows, counts, patch_pixels)
