"""Which patches of a crop the student does not see.

Every mask is called as ``mask(n_masked, generator)`` and returns a bool tensor (h, w), True = masked,
with exactly ``n_masked`` True cells. h, w: height and width of the patch grid.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor


def _uniform(low: float, high: float, generator: Generator | None) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _below(count: int, generator: Generator | None) -> int:
    """A whole number from 0 to count - 1; nothing is drawn when there is one choice."""
    return int(torch.randint(count, (), generator=generator)) if count > 1 else 0


class Mask:
    """What all masks share: the grid, the aspect range, the two trivial counts.

    grid: (h, w), patches. min_aspect: blocks have height / width between min_aspect and 1 / min_aspect,
    as far as the grid allows.
    """

    def __init__(self, grid: tuple[int, int], min_aspect: float = 0.3) -> None:
        if min(grid) < 1:
            raise ValueError(f"grid={tuple(grid)}: a mask needs at least one row and one column of patches")
        if not 0 < min_aspect <= 1:
            raise ValueError(f"min_aspect={min_aspect}: choose a number above 0 and at most 1")
        self.height, self.width = grid
        self.n_cells = self.height * self.width
        self.min_aspect = min_aspect

    def __call__(self, n_masked: int, generator: Generator | None = None) -> Tensor:
        """Draws one mask, (h, w) bool. n_masked <= 0 masks nothing, n_masked >= h * w everything."""
        if not 0 < n_masked < self.n_cells:
            return torch.full((self.height, self.width), n_masked > 0)
        return self._draw(n_masked, generator)

    def _draw(self, n_masked: int, generator: Generator | None) -> Tensor:
        raise NotImplementedError

    def _block(self, area: int, generator: Generator | None) -> tuple[slice, slice]:
        """A rectangle inside the grid with at least ``area`` cells, its log-aspect and place uniform."""
        low = max(math.log(self.min_aspect), math.log(area / self.width**2))
        high = min(-math.log(self.min_aspect), math.log(self.height**2 / area))
        if low > high:  # a grid too long for the aspect range: the block has to fit first
            low = high = high if high < math.log(self.min_aspect) else low
        aspect = math.exp(_uniform(low, high, generator))
        height = min(math.ceil(math.sqrt(area * aspect)), self.height)
        width = min(math.ceil(math.sqrt(area / aspect)), self.width)
        top = _below(self.height - height + 1, generator)
        left = _below(self.width - width + 1, generator)
        return slice(top, top + height), slice(left, left + width)


class InverseBlockMask(Mask):
    """One visible block, everything around it masked; the block favours the centre of the grid.

    The block's sides are rounded up; of its cells only the first h * w - n_masked in reading order stay visible.
    """

    def _draw(self, n_masked: int, generator: Generator | None) -> Tensor:
        n_visible = self.n_cells - n_masked
        rows, columns = self._block(n_visible, generator)
        in_block = torch.zeros(self.height, self.width, dtype=torch.bool)
        in_block[rows, columns] = True
        return ~_first_cells(in_block, n_visible)


class CyclicMask(InverseBlockMask):
    """InverseBlockMask, then a uniform cyclic shift along both axes: every cell is visible equally often.

    Source: the paper's section on CyclicMask, with the count kept exact (Algorithm 1 as printed does not).
    """

    def _draw(self, n_masked: int, generator: Generator | None) -> Tensor:
        mask = super()._draw(n_masked, generator)
        shifts = _below(self.height, generator), _below(self.width, generator)
        return mask.roll(shifts, dims=(0, 1))


class BlockMask(Mask):
    """Masked blocks laid one over another until n_masked cells are covered, as in BEiT and iBOT.

    A block covers at least 4 cells and at most half the grid; the last one is cut, in reading order, to the count.
    """

    smallest_block = 4
    attempts = 100

    def _draw(self, n_masked: int, generator: Generator | None) -> Tensor:
        mask = torch.zeros(self.height, self.width, dtype=torch.bool)
        missing = n_masked
        for _ in range(self.attempts):
            largest = min(missing, max(1, self.n_cells // 2))
            area = int(_uniform(min(self.smallest_block, largest), largest, generator))
            fresh = torch.zeros_like(mask)
            fresh[self._block(area, generator)] = True
            mask |= _first_cells(fresh & ~mask, missing)
            missing = n_masked - int(mask.sum())
            if missing == 0:
                return mask
        return mask | _random_cells(~mask, missing, generator)


class RandomMask(Mask):
    """Cells drawn one by one, all equally likely. The aspect range plays no part."""

    def _draw(self, n_masked: int, generator: Generator | None) -> Tensor:
        return _random_cells(torch.ones(self.height, self.width, dtype=torch.bool), n_masked, generator)


def _first_cells(cells: Tensor, count: int) -> Tensor:
    """Keeps the first ``count`` True cells in reading order, (h, w) -> (h, w)."""
    return cells & (cells.flatten().cumsum(0).view_as(cells) <= count)


def _random_cells(cells: Tensor, count: int, generator: Generator | None) -> Tensor:
    """Keeps ``count`` of the True cells at random, (h, w) -> (h, w)."""
    candidates = cells.flatten().nonzero().squeeze(1)
    kept = candidates[torch.randperm(len(candidates), generator=generator)[:count]]
    return torch.zeros_like(cells.flatten()).index_fill(0, kept, True).view_as(cells)


MASKS: dict[str, type[Mask]] = {
    "cyclic": CyclicMask,
    "inverse_block": InverseBlockMask,
    "block": BlockMask,
    "random": RandomMask,
}


@dataclass
class MaskConfig:
    """Options of masking.

    kind: one of MASKS. probability: share of the global crops that are masked.
    ratio: least and largest share of a masked crop's patches that are hidden; the masked crops of a batch
    are spread over it in equal strata. min_aspect: see Mask.
    """

    kind: str = "cyclic"
    probability: float = 0.5
    ratio: list[float] = field(default_factory=lambda: [0.1, 0.65])
    min_aspect: float = 0.3

    def __post_init__(self) -> None:
        if self.kind not in MASKS:
            raise ValueError(f"data.mask.kind={self.kind!r}: choose one of {', '.join(MASKS)}")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"data.mask.probability={self.probability}: choose a share from 0 to 1")
        if len(self.ratio) != 2 or not 0 <= self.ratio[0] <= self.ratio[1] <= 1:
            raise ValueError(
                f"data.mask.ratio={self.ratio}: give two shares [least, largest], 0 <= least <= largest <= 1"
            )
        if not 0 < self.min_aspect <= 1:
            raise ValueError(f"data.mask.min_aspect={self.min_aspect}: choose a number above 0 and at most 1")

    def build(self, grid: tuple[int, int]) -> Mask:
        """The mask of this kind on a patch grid (h, w)."""
        return MASKS[self.kind](grid, min_aspect=self.min_aspect)
