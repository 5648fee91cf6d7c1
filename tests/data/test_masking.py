import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from franca.data import masking
from franca.data.masking import MASKS, BlockMask, CyclicMask, InverseBlockMask, MaskConfig, RandomMask

GRIDS = [(16, 16), (7, 7), (3, 20), (20, 2), (1, 9), (1, 1)]
DRAWS = 20_000
MIN_ASPECTS = {"code_train": 0.3, "code_class_default": 0.5}  # of the masks in masking.json


def _generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def _visibility(mask: masking.Mask, n_masked: int, draws: int = DRAWS, seed: int = 0) -> Tensor:
    """Share of the draws in which each cell is visible, (h, w)."""
    generator = _generator(seed)
    visible = torch.zeros(mask.height, mask.width)
    for _ in range(draws):
        visible += ~mask(n_masked, generator)
    return visible / draws


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", MASKS)
def test_count_is_exact_on_every_draw(kind: str, grid: tuple[int, int]) -> None:
    mask, generator = MASKS[kind](grid), _generator()
    for n_masked in range(mask.n_cells + 1):
        drawn = mask(n_masked, generator)
        assert drawn.shape == grid
        assert drawn.dtype == torch.bool
        assert int(drawn.sum()) == n_masked


@pytest.mark.parametrize("kind", MASKS)
def test_counts_outside_the_grid_mask_nothing_or_everything(kind: str) -> None:
    mask = MASKS[kind]((4, 5))
    assert not mask(-3).any()
    assert mask(21).all()


@pytest.mark.parametrize("kind", MASKS)
def test_the_generator_decides(kind: str) -> None:
    mask = MASKS[kind]((16, 16))
    first, again, other = (torch.stack([mask(90, g) for _ in range(4)]) for g in map(_generator, (1, 1, 2)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("ratio", [0.1, 0.65])
@pytest.mark.parametrize("kind", ["cyclic", "random"])
def test_every_cell_is_visible_equally_often(kind: str, ratio: float) -> None:
    mask = MASKS[kind]((16, 16))
    n_masked = int(256 * ratio)
    assert (_visibility(mask, n_masked) - (1 - n_masked / 256)).abs().max() < 0.02


def test_cyclic_is_uniform_on_a_long_grid_too() -> None:
    assert (_visibility(CyclicMask((4, 9)), 12) - 2 / 3).abs().max() < 0.02


def test_inverse_block_is_cyclic_without_the_shift() -> None:
    """Every inverse block is one of the cyclic mask's pictures, and it stays in one piece."""
    for seed in range(50):
        mask = InverseBlockMask((10, 12))(70, _generator(seed))
        rows, columns = (~mask).any(dim=1).nonzero().flatten(), (~mask).any(dim=0).nonzero().flatten()
        assert rows[-1] - rows[0] + 1 == len(rows)
        assert columns[-1] - columns[0] + 1 == len(columns)
        cyclic = CyclicMask((10, 12))(70, _generator(seed))  # draws the same block first
        assert any(torch.equal(mask.roll((i, j), (0, 1)), cyclic) for i in range(10) for j in range(12))


def test_inverse_block_favours_the_centre() -> None:
    visible = _visibility(InverseBlockMask((16, 16)), 128, draws=3000)
    assert visible[4:12, 4:12].mean() > 0.6
    assert visible[0].mean() < 0.4


def test_block_masks_hang_together_more_than_random_ones() -> None:
    """Share of a masked cell's right-hand neighbours that are masked too: 0.3 for cells drawn one by one."""

    def neighbours(mask: masking.Mask) -> float:
        generator = _generator()
        drawn = torch.stack([mask(77, generator) for _ in range(200)])
        return float((drawn[:, :, 1:] & drawn[:, :, :-1]).sum() / drawn[:, :, :-1].sum())

    assert neighbours(RandomMask((16, 16))) == pytest.approx(0.3, abs=0.03)
    assert neighbours(BlockMask((16, 16))) > 0.6


def test_aspects_lie_in_the_range() -> None:
    """A visible area of 36 cells on a large grid: no side limits the block."""
    mask, generator = InverseBlockMask((40, 40), min_aspect=0.5), _generator()
    sides = []
    for _ in range(2000):
        visible = ~mask(1600 - 36, generator)
        sides.append((int(visible.any(dim=1).sum()), int(visible.any(dim=0).sum())))
    heights, widths = np.array(sides, dtype=float).T
    # sqrt(36 * 2) = 8.49 and sqrt(36 / 2) = 4.24, rounded up: 9 x 5 or 5 x 9, of which the 36 cells leave a row out.
    assert (heights.min(), heights.max()) == (4, 8)
    assert (widths.min(), widths.max()) == (5, 9)


def test_blocks_that_cannot_keep_the_aspect_still_fit() -> None:
    """30 of 40 cells in a grid of two rows: at most 2 high, so at least 15 wide, whatever the aspect range."""
    for seed in range(20):
        visible = ~InverseBlockMask((2, 20), min_aspect=0.9)(10, _generator(seed))
        assert int(visible.any(dim=0).sum()) == 15


@pytest.fixture
def reference(parity_dir: Path) -> dict:
    return json.loads((parity_dir / "masking.json").read_text())


@pytest.fixture
def maps(parity_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(parity_dir / "masking_maps.npz"))


class TestReferenceValues:
    """masking.json and masking_maps.npz: the original's masks."""

    def _cases(self, reference: dict) -> list[tuple[str, masking.Mask, int, dict]]:
        cases = []
        for key, values in reference["results"].items():
            name, _, roll = key.split("/")
            if name in MIN_ASPECTS:
                kind = CyclicMask if roll == "roll=True" else InverseBlockMask
                mask = kind(tuple(reference["grid"]), MIN_ASPECTS[name])
                cases.append((key, mask, values["num_masking_patches"], values))
        return cases

    def test_literal_masks(self, reference: dict, maps: dict, monkeypatch: pytest.MonkeyPatch) -> None:
        """With the same numbers drawn in the same order, the same mask."""
        examples = [key for key in maps if key.startswith("example/")]
        assert examples
        for key in examples:
            options = dict(part.split("=") for part in key.split("/")[1:])
            numbers = random.Random(int(options["python_seed"]))
            monkeypatch.setattr(masking, "_uniform", lambda low, high, _, numbers=numbers: numbers.uniform(low, high))
            monkeypatch.setattr(
                masking, "_below", lambda count, _, numbers=numbers: numbers.randrange(count) if count > 1 else 0
            )
            kind = CyclicMask if options["roll"] == "True" else InverseBlockMask
            drawn = kind(tuple(reference["grid"]), min_aspect=0.3)(int(options["n"]))
            assert np.array_equal(drawn.numpy(), maps[key]), key

    @pytest.mark.slow
    def test_visibility_of_every_cell(self, reference: dict, maps: dict) -> None:
        """Means over many draws, of standard error 0.0035 (theirs) and 0.005 (ours): 0.03 is 5 sigma of the difference,
        so that of thousands of cells none passes it by chance, in this set of reference values or another."""
        for key, mask, n_masked, values in self._cases(reference):
            ours = _visibility(mask, n_masked, draws=10_000)
            assert np.abs(ours.numpy() - maps[key]).max() < 0.03, key
            assert float(ours.mean()) == pytest.approx(values["visibility_mean"], abs=1e-6)

    def test_shape_of_the_visible_region(self, reference: dict) -> None:
        for key, mask, n_masked, values in self._cases(reference):
            generator = _generator()
            visible = torch.stack([~mask(n_masked, generator) for _ in range(3000)])
            rows, columns = visible.any(dim=2), visible.any(dim=1)
            shares = {
                "frac_visible_wraps_rows": _wraps(rows).float().mean(),
                "frac_visible_wraps_cols": _wraps(columns).float().mean(),
                "frac_visible_wraps_any": (_wraps(rows) | _wraps(columns)).float().mean(),
            }
            for name, share in shares.items():
                assert float(share) == pytest.approx(values[name], abs=0.04), (key, name)  # 4 standard errors
            assert float(rows.sum(1).float().mean()) == pytest.approx(values["mean_visible_rows"], abs=0.25), key
            assert float(columns.sum(1).float().mean()) == pytest.approx(values["mean_visible_cols"], abs=0.25), key
            for name, lengths in (("rows", rows.sum(1)), ("cols", columns.sum(1))):
                assert int(lengths.min()) == pytest.approx(values[f"min_visible_{name}"], abs=1), key
                assert int(lengths.max()) == pytest.approx(values[f"max_visible_{name}"], abs=1), key


def _wraps(occupied: Tensor) -> Tensor:
    """Whether the occupied rows (or columns) form more than one run, (draws, side) -> (draws,)."""
    padded = torch.nn.functional.pad(occupied.int(), (1, 1))
    return (padded.diff(dim=1) == 1).sum(dim=1) > 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kind": "cyclc"}, "data.mask.kind='cyclc'.*cyclic"),
        ({"probability": 1.5}, "data.mask.probability=1.5"),
        ({"ratio": [0.5, 0.1]}, "data.mask.ratio="),
        ({"ratio": [0.5]}, "data.mask.ratio="),
        ({"min_aspect": 0.0}, "data.mask.min_aspect=0.0"),
    ],
)
def test_bad_options_are_named(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MaskConfig(**options)


def test_bad_grids_and_aspects_are_named() -> None:
    with pytest.raises(ValueError, match=r"grid=\(0, 4\)"):
        CyclicMask((0, 4))
    with pytest.raises(ValueError, match="min_aspect=2"):
        CyclicMask((4, 4), min_aspect=2)


@pytest.mark.parametrize("kind", MASKS)
def test_config_builds_every_kind(kind: str) -> None:
    mask = MaskConfig(kind=kind, min_aspect=0.4).build((5, 6))
    assert type(mask) is MASKS[kind]
    assert (mask.height, mask.width, mask.min_aspect) == (5, 6, 0.4)
