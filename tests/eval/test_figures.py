"""Pictures mean what they claim; files are written, the same each time."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from franca.data.batch import Crops, PretrainBatch, Sample, collate
from franca.data.masking import MASKS, MaskConfig
from franca.eval.figures.attention import attention_figure, attention_rows, heat
from franca.eval.figures.curves import health_figure, loss_figure, score_figure, series, smooth, uniform_losses
from franca.eval.figures.masks import hide, masks_figure, visibility, visibility_figure
from franca.eval.figures.pca import foreground, otsu, patch_pca, pca_figure, shared_pca
from franca.eval.figures.slice_curves import slice_figure
from franca.eval.figures.widths import width_figure
from franca.eval.result import Score
from franca.models import MatryoshkaHead, VisionTransformer
from franca.objective import Encoder, ObjectiveConfig, PretrainingObjective, StudentTeacher


def patches(seed: int = 0, dim: int = 12) -> torch.Tensor:
    """Features with clearly different, skewed strengths along random directions, (3, 5, 4, dim)."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.empty(3, 5, 4, dim).exponential_(generator=generator) * torch.arange(dim, 0, -1).pow(2)
    return scores @ torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q


# six settings of one metric, in panels by k; another, below 0, without settings
RECORDS = [
    asdict(score) | {"spread": score.spread, "elsewhere": False}
    for place, name in enumerate(("d", "d/2", "d/4"))
    for score in (
        *(Score("top1", 40.0 - 9 * place + k, "28", {"k": k, "voting": voting}, name)
          for k in (1, 5, 9) for voting in ("soft", "majority")),
        Score("r2", -0.5, "28", slice=name, unit="", values=(-0.6, -0.4), seeds=(0, 1)),
    )
]  # fmt: skip


class TestPatchPca:
    def test_colours_lie_between_0_and_1_and_use_the_range(self) -> None:
        colours = patch_pca(patches())
        assert colours.shape == (3, 5, 4, 3)
        for component in colours.unbind(-1):
            assert component.min() == 0
            assert component.max() == 1

    @pytest.mark.parametrize("change", ["negate", "rotate", "shift", "scale", "reverse"])
    def test_the_basis_of_the_features_plays_no_part(self, change) -> None:
        features = patches()
        rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(5))).Q
        changed = {
            "negate": -features,
            "rotate": features @ rotation,
            "shift": features + 7,
            "scale": features * 0.01,
            "reverse": features.flip(-1),
        }[change]
        torch.testing.assert_close(patch_pca(changed), patch_pca(features), atol=1e-3, rtol=0)

    def test_first_component_is_the_direction_of_greatest_variance(self) -> None:
        features = torch.zeros(1, 10, 10, 4)
        features[0, :2, :, 2] = 5.0  # the rarer side: bright
        features += 0.01 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
        red = patch_pca(features)[0, ..., 0]
        assert red[:2].min() > 0.9
        assert red[2:].max() < 0.1

    def test_images_share_their_colours(self) -> None:
        features = patches()
        both = patch_pca(torch.cat([features, features]))
        torch.testing.assert_close(both[:3], both[3:])

    def test_directions_without_variation_are_grey(self) -> None:
        flat = torch.ones(1, 4, 4, 8)
        assert (patch_pca(flat) == 0.5).all()
        line = torch.arange(16.0).view(1, 4, 4, 1) * torch.ones(8)
        assert (patch_pca(line)[..., 1:] == 0.5).all()
        assert patch_pca(torch.randn(1, 4, 4, 2)).shape == (1, 4, 4, 3)


def objects(seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Grids of several sizes with a thing inside, of two parts that differ, and which patches are the thing."""
    generator = torch.Generator().manual_seed(seed)
    grids, things = [], []
    for h, w in ((8, 12), (10, 6), (9, 9)):
        thing = torch.zeros(h, w, dtype=torch.bool)
        thing[2 : h - 2, 2 : w - 2] = True
        grid = 0.05 * torch.randn(h, w, 10, generator=generator)
        grid[..., 3] += 4 * thing
        grid[: h // 2, :, 5] += 1.0 * thing[: h // 2]
        grids.append(grid)
        things.append(thing)
    return grids, things


class TestForeground:
    @pytest.mark.parametrize("threshold", [None, 0.5])
    def test_the_thing_inside_is_the_foreground(self, threshold) -> None:
        grids, things = objects()
        for found, thing in zip(foreground(grids, threshold), things, strict=True):
            assert torch.equal(found, thing)

    @pytest.mark.parametrize("sign", [1, -1])
    def test_sign_and_rotation_of_the_features_play_no_part(self, sign) -> None:
        grids, things = objects()
        rotation = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(5))).Q
        changed = [sign * grid @ rotation + 3 for grid in grids]
        assert all(torch.equal(*pair) for pair in zip(foreground(changed), things, strict=True))
        before, after = (shared_pca(one, things) for one in (grids, changed))
        for one, other in zip(before, after, strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=0, equal_nan=True)

    def test_colours_are_those_of_the_foreground_alone(self) -> None:
        grids, things = objects()
        colours = shared_pca(grids, things)
        for colour, thing in zip(colours, things, strict=True):
            assert torch.equal(~colour.isnan().any(-1), thing)
            upper, lower = colour[2, 3, 0], colour[thing.shape[0] - 3, 3, 0]
            assert (upper - lower).abs() > 0.5
        assert all(one.isnan().all() for one in shared_pca(grids, [torch.zeros_like(thing) for thing in things]))

    def test_one_pca_for_images_of_all_sizes(self) -> None:
        grids, _ = objects()
        together = patch_pca(torch.cat([grid.flatten(0, 1) for grid in grids]))
        torch.testing.assert_close(torch.cat([one.flatten(0, 1) for one in shared_pca(grids)]), together)

    def test_degenerate_images_are_drawn(self) -> None:
        assert all(one.all() for one in foreground([torch.ones(2, 3, 4)]))
        row = torch.tensor([0.0, 0, 0, 0, 5]).view(1, 5, 1) * torch.ones(3)
        assert foreground([row])[0].tolist() == [[False] * 4 + [True]]  # no inside: the rarer side

    def test_otsu_is_scikit_images(self) -> None:
        from skimage.filters import threshold_otsu

        generator = torch.Generator().manual_seed(0)
        low, high = (torch.randn(count, generator=generator) * 0.06 for count in (700, 300))
        values = torch.cat([0.3 + low, 0.7 + high]).clamp(0, 1)
        assert otsu(values) == pytest.approx(threshold_otsu(values.numpy(), nbins=256), abs=0.05)
        assert 0.4 < otsu(values) < 0.6
        assert otsu(torch.tensor([0.0, 0.0, 1.0])) == pytest.approx(0.5, abs=0.01)


class TestAttention:
    def test_rows_are_the_mean_and_single_heads(self) -> None:
        attention = torch.rand(2, 6, 4, 4)
        rows = attention_rows(attention, heads=3)
        assert list(rows) == ["mean of heads", "head 1", "head 2", "head 3"]
        torch.testing.assert_close(torch.stack(rows["mean of heads"]), attention.mean(1))
        torch.testing.assert_close(torch.stack(rows["head 2"]), attention[:, 1])
        assert list(attention_rows([torch.rand(2, 3, 4), torch.rand(2, 5, 4)], heads=9)) == list(rows)[:3]

    def test_brightest_where_attention_is_highest(self) -> None:
        attention = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
        brightness = heat(attention).sum(-1)
        assert (brightness.argmax(), brightness.argmin()) == (attention.argmax(), attention.argmin())
        assert np.corrcoef(brightness.flatten(), attention.flatten().numpy())[0, 1] > 0.97
        np.testing.assert_allclose(heat(attention * 7 + 3), heat(attention), atol=0.02)  # where, not how much
        assert (heat(torch.full((2, 2), 0.25)) == heat(torch.zeros(1, 1))).all()  # all equal: no division by 0


class TestMasks:
    def test_hides_exactly_the_masked_patches(self) -> None:
        image = np.random.default_rng(0).random((12, 20, 3))
        mask = torch.tensor([[True, False], [False, False], [False, True]])
        hidden = hide(image, mask)
        assert (hidden[:4, :10] == hidden[0, 0, 0]).all()
        assert (hidden[8:, 10:] == hidden[0, 0, 0]).all()
        np.testing.assert_array_equal(hidden[4:8], image[4:8])
        np.testing.assert_array_equal(hidden[:4, 10:], image[:4, 10:])

    @pytest.mark.parametrize("kind", MASKS)
    def test_visibility_averages_to_the_visible_share(self, kind) -> None:
        shown = visibility(kind, (6, 5), 12, 0.3, draws=200)
        assert shown.shape == (6, 5)
        assert shown.mean().item() == pytest.approx(18 / 30)

    def test_cyclic_masks_show_all_patches_alike_and_inverse_blocks_do_not(self) -> None:
        spread = {kind: visibility(kind, (8, 8), 32, 0.3, draws=1500).std() for kind in ("cyclic", "inverse_block")}
        assert spread["cyclic"] < 0.03 < 0.15 < spread["inverse_block"]


def encoder(levels: list[int]) -> Encoder:
    backbone = VisionTransformer(img_size=28, patch_size=14, embed_dim=16, depth=1, num_heads=2)
    nesting = [0.5, 1.0][-len(levels) :]
    heads = [MatryoshkaHead(16, levels, nesting, hidden_dim=8, bottleneck_dim=4) for _ in range(2)]
    return Encoder(backbone, *heads)


def batch(local_count: int) -> PretrainBatch:
    """Four images, half of their global crops masked."""
    crops = Crops([torch.randn(3, 28, 28)] * 2, [torch.randn(3, 14, 14)] * local_count)
    mask = MaskConfig(probability=0.5, ratio=[0.3, 0.8])
    return collate([Sample(crops, number) for number in range(4)], mask.build((2, 2)), mask, torch.Generator())


class TestCurves:
    LINES = (
        {"step": 10, "loss": 3.0, "lr": 0.1, "effective_rank": 4.0, "prototypes_used/0": 5.0, "verdict": "healthy"},
        {"step": 20, "loss": math.nan, "knn_cls@20": 30.0},
        {"step": 30, "loss": 1, "skipped": None, "knn_cls@20": 40.0, "knn_patch@20": 41.0},
    )

    def test_series_keeps_what_is_there_and_finite(self) -> None:
        assert series(self.LINES, "loss") == ([10, 30], [3.0, 1.0])
        assert series(self.LINES, "verdict") == ([], [])

    def test_smoothing_keeps_lines_and_ends(self) -> None:
        line = [float(value) for value in range(20)]
        assert smooth(line, 7) == pytest.approx(line)
        noisy = [(-1) ** i + 5.0 for i in range(21)]
        assert np.std(smooth(noisy, 8)[5:-5]) < 0.2
        assert smooth([2.0], 5) == [2.0]

    @pytest.mark.parametrize(("levels", "local_count", "weights"), [([4, 8], 3, (1, 1)), ([16], 0, (0.5, 2))])
    def test_uniform_losses_are_those_of_a_student_that_knows_nothing(self, levels, local_count, weights) -> None:
        """Against the objective itself, with a gain of 0 at all prototypes of the student."""
        torch.manual_seed(0)
        student, teacher = (encoder(levels) for _ in range(2))
        for head in (student.dino_head, student.ibot_head):
            for last in head.last_layers:
                torch.nn.init.zeros_(last.weight_g)
        pair = StudentTeacher(student, teacher)
        config = ObjectiveConfig(crop_weight=weights[0], patch_weight=weights[1])
        terms = PretrainingObjective(pair, config)(batch(local_count), 0.07).terms
        found = uniform_losses({"dino_head": levels, "ibot_head": levels}, local_count, 0.5, *weights)
        assert {key: float(terms[key]) for key in found} == pytest.approx(found)

    def test_no_score_figure_from_a_single_evaluation(self, tmp_path) -> None:
        assert not score_figure(tmp_path / "scores.png", self.LINES[:2])
        assert list(tmp_path.iterdir()) == []
        assert score_figure(tmp_path / "scores.png", self.LINES)


def test_figures_are_readable_files_the_same_each_time(tmp_path) -> None:
    images = [np.random.default_rng(seed).random((30, 30, 3)) for seed in range(3)]
    lines = TestCurves.LINES
    scores = {"trained": {8: 60.0, 4: 50.0, 1: 20.0}, "untrained": {8: 30.0, 4: 30.0, 1: 10.0}}
    for folder in (tmp_path / "a", tmp_path / "b"):
        pca_figure(folder / "pca.png", images, {"trained": patches(), "un-\ntrained": patches(1)}, "Title")
        attention_figure(folder / "attention.png", images, attention_rows(torch.rand(3, 2, 5, 5) * 0 + 0.1), "Title")
        masks_figure(folder / "masks.png", images, (5, 5), MaskConfig())
        visibility_figure(folder / "visibility.png", (5, 5), MaskConfig(), draws=20)
        loss_figure(folder / "losses.png", lines, {"crop_local": 3.0})
        health_figure(folder / "health.png", lines)
        score_figure(folder / "scores.png", lines)
        assert slice_figure(folder / "slices.png", RECORDS, "Title")
        width_figure(folder / "widths.png", scores, {"raw pixels": 40.0, "chance": 10.0}, [4, 8], "%")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 9
    for name in files:
        with Image.open(tmp_path / "a" / name) as picture:
            assert picture.width >= 1000
            assert picture.convert("L").getextrema() != (255, 255)
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_one_slice_makes_no_curve(tmp_path) -> None:
    assert not slice_figure(tmp_path / "slices.png", [each for each in RECORDS if each["slice"] == "d"], "Title")
    assert list(tmp_path.iterdir()) == []


def test_curves_of_an_empty_run_are_drawn(tmp_path) -> None:
    """A run that was stopped before its first logged line still gets its report."""
    loss_figure(tmp_path / "losses.png", [], {"crop_local": 3.0})
    assert not health_figure(tmp_path / "health.png", [])
    assert [path.name for path in tmp_path.iterdir()] == ["losses.png"]
