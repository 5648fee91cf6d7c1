"""The parts of linear segmentation by themselves: crops, head, windows, schedule, against loops and other libraries."""

import colorsys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from franca.eval.datasets import VOID
from franca.eval.protocols.linear_segmentation_crops import (
    CropSettings,
    crop_batches,
    distort_colours,
    multiply_saturation,
    random_crop,
    resize_image,
)
from franca.eval.protocols.linear_segmentation_head import LinearHead, accumulate_gradients, enlarge
from franca.eval.protocols.linear_segmentation_training import Recipe
from franca.eval.protocols.linear_segmentation_windows import WindowSettings, predict, slide, starts
from tests.eval.segmentation_case import Stripes

FILL = (124, 116, 104)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestHead:
    def test_enlarging_scores_is_enlarging_features(self) -> None:
        """The paper resizes features and then applies the layer; both are linear, in different dimensions."""
        head = LinearHead(6, 3, random()).eval()
        head.norm.running_mean.normal_(generator=random(1))
        patches = torch.randn(2, 4, 5, 8, generator=random(2))
        features = enlarge(patches[..., :6].permute(0, 3, 1, 2), 28, 35).permute(0, 2, 3, 1)
        torch.testing.assert_close(enlarge(head(patches), 28, 35), head(features))

    def test_batch_norm_is_over_all_patches(self) -> None:
        head = LinearHead(5, 2, random()).train()
        patches = 3 + 2 * torch.randn(4, 3, 3, 5, generator=random())
        reference = nn.BatchNorm2d(5)
        maps = reference(patches.permute(0, 3, 1, 2))
        expected = nn.functional.conv2d(maps, head.linear.weight[..., None, None], head.linear.bias)
        torch.testing.assert_close(head(patches), expected)
        torch.testing.assert_close(head.norm.running_var, reference.running_var)

    def test_the_loss_is_the_mean_over_all_pixels_void_ones_included(self) -> None:
        """As mmsegmentation's CrossEntropyLoss, with gradients of all images together."""
        masks = torch.randint(3, (4, 28, 28), dtype=torch.uint8, generator=random())
        masks[0], masks[1, :20] = VOID, VOID
        scores = torch.randn(4, 3, 2, 2, generator=random(), requires_grad=True)
        enlarged = interpolate(scores, (28, 28), mode="bilinear")
        loss = cross_entropy(enlarged, masks.long(), ignore_index=VOID, reduction="none").mean()
        (expected,) = torch.autograd.grad(loss, scores)
        assert accumulate_gradients(scores, masks) == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(scores.grad, expected)

    def test_void_alone_teaches_nothing(self) -> None:
        scores = torch.randn(1, 3, 2, 2, requires_grad=True)
        assert accumulate_gradients(scores, torch.full((1, 14, 14), VOID, dtype=torch.uint8)) == 0.0
        assert not scores.grad.any()


class TestCrops:
    SETTINGS = CropSettings(28, (0.5, 2.0), FILL)

    def test_the_mask_goes_with_the_image(self, monkeypatch) -> None:
        """Red is ten times the class: true in every crop, however it is resized, cut and mirrored."""
        monkeypatch.setattr("franca.eval.protocols.linear_segmentation_crops.distort_colours", lambda image, _: image)
        mask = (torch.arange(80) // 5).expand(40, -1).to(torch.uint8)
        image = (10 * mask).expand(3, -1, -1)
        mirrored = []
        for seed in range(30):
            pixels, crop = random_crop(image, mask, self.SETTINGS, random(seed))
            assert pixels.shape == (3, 28, 28)
            inside = crop != VOID
            assert (pixels[0].int() - 10 * crop.int())[inside].abs().max() <= 11
            assert (pixels[:, ~inside] == torch.tensor(FILL, dtype=torch.uint8)[:, None]).all()
            mirrored.append(bool(crop[0, 0] > crop[0, inside[0].sum() - 1]))
        assert 5 <= sum(mirrored) <= 25

    def test_scales_lie_in_their_range(self) -> None:
        """A mask with one mark of 8 x 8 pixels in 28: the mark's size tells the scale."""
        image, mask = torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(28, 28, dtype=torch.uint8)
        for seed in range(30):
            _, crop = random_crop(image, mask, CropSettings(56, (0.5, 1.0), FILL), random(seed))
            side = int((crop != VOID)[0].sum())
            assert 28 <= side <= 56
        assert resize_image(torch.zeros(3, 30, 60), 28, 1.5).shape == (3, 42, 84)
        assert resize_image(torch.zeros(3, 100, 2000), 512, 1.0).shape == (3, 102, 2048), "not longer than 2048"

    def test_a_crop_of_several_classes_is_preferred(self) -> None:
        mask = torch.zeros(28, 280, dtype=torch.uint8)
        mask[:, 140:] = 1
        image = torch.zeros(3, 28, 280, dtype=torch.uint8)
        settings = CropSettings(28, (1.0, 1.0), FILL)
        mixed = sum(len(random_crop(image, mask, settings, random(seed))[1].unique()) > 1 for seed in range(100))
        assert mixed > 30, "one attempt finds a mixture in about one case of ten"

    def test_order_and_crops_are_a_function_of_the_seed(self) -> None:
        source = Stripes(5, seed=0)
        first = list(crop_batches(source, self.SETTINGS, 0, 2, range(7), workers=0))
        with_workers = list(crop_batches(source, self.SETTINGS, 0, 2, range(7), workers=2))
        later = list(crop_batches(source, self.SETTINGS, 0, 2, range(4, 7), workers=0))
        other = list(crop_batches(source, self.SETTINGS, 1, 2, range(7), workers=0))
        for one, two in [*zip(first, with_workers, strict=True), *zip(first[4:], later, strict=True)]:
            assert torch.equal(one[0], two[0])
            assert torch.equal(one[1], two[1])
        assert not all(torch.equal(one[0], two[0]) for one, two in zip(first, other, strict=True))

    def test_an_epoch_holds_every_image_once(self) -> None:
        source = Stripes(6, seed=0)
        seen: list[int] = []
        source.load = lambda index: seen.append(index) or torch.zeros(3, 28, 56, dtype=torch.uint8)
        list(crop_batches(source, self.SETTINGS, 0, 3, range(4), workers=0))
        assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
        assert seen[:6] != seen[6:]

    def test_broken_images_leave_smaller_batches(self) -> None:
        source = Stripes(3, seed=0, broken=(0, 1))
        sizes = [len(pixels) for pixels, _ in crop_batches(source, self.SETTINGS, 0, 1, range(6), workers=0)]
        assert sorted(sizes) == [0, 0, 0, 0, 1, 1]


class TestColours:
    @pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.5])
    def test_saturation_is_that_of_hsv(self, factor: float) -> None:
        image = torch.randint(256, (3, 6, 6), dtype=torch.uint8, generator=random())
        found = multiply_saturation(image, factor)
        for row in range(6):
            for column in range(6):
                hue, saturation, value = colorsys.rgb_to_hsv(*(image[:, row, column] / 255).tolist())
                expected = torch.tensor(colorsys.hsv_to_rgb(hue, min(1.0, saturation * factor), value)) * 255
                assert (found[:, row, column] - expected).abs().max() <= 0.51

    def test_each_of_four_changes_comes_in_half_of_the_cases(self) -> None:
        image = torch.randint(60, 190, (3, 8, 8), dtype=torch.uint8, generator=random())
        same = sum(torch.equal(distort_colours(image, random(seed)), image) for seed in range(160))
        assert 2 <= same <= 25, "one case of sixteen changes nothing"


class TestWindows:
    @pytest.mark.parametrize(
        ("length", "size", "stride", "expected"),
        [(28, 28, 14, [0]), (29, 28, 14, [0, 1]), (56, 28, 14, [0, 14, 28]), (60, 28, 14, [0, 14, 28, 32])],
    )
    def test_windows_reach_the_end(self, length: int, size: int, stride: int, expected: list[int]) -> None:
        assert starts(length, size, stride) == expected

    @staticmethod
    def score(windows: Tensor) -> dict[str, Tensor]:
        """Depends on the whole window, so that what a pixel gets depends on the windows that hold it."""
        pixels = windows.float() / 255
        maps = pixels - pixels.mean(dim=(1, 2, 3), keepdim=True) ** 2
        return {"d": interpolate(maps, scale_factor=1 / 14, mode="area")}

    def test_one_window_is_the_whole_image(self) -> None:
        image = torch.randint(256, (3, 28, 28), dtype=torch.uint8, generator=random())
        settings = WindowSettings(28, 14, (1.0,), False, FILL)
        whole = enlarge(self.score(image[None])["d"], 28, 28)[0]
        torch.testing.assert_close(slide(image, self.score, settings, batch=2)["d"], whole)
        predicted = predict(image, (28, 28), self.score, settings, batch=1)["d"]
        assert torch.equal(predicted, whole.argmax(dim=0))

    @pytest.mark.parametrize("batch", [1, 4, 100])
    def test_windows_are_averaged_pixel_by_pixel(self, batch: int) -> None:
        image = torch.randint(256, (3, 33, 50), dtype=torch.uint8, generator=random())
        total, count = torch.zeros(3, 33, 50), torch.zeros(33, 50)
        for top in (0, 5):
            for left in (0, 14, 22):
                part = image[None, :, top : top + 28, left : left + 28]
                total[:, top : top + 28, left : left + 28] += enlarge(self.score(part)["d"], 28, 28)[0]
                count[top : top + 28, left : left + 28] += 1
        found = slide(image, self.score, WindowSettings(28, 14, (1.0,), False, FILL), batch)["d"]
        torch.testing.assert_close(found, total / count)

    def test_an_image_smaller_than_a_window_is_continued(self) -> None:
        image = torch.randint(256, (3, 20, 40), dtype=torch.uint8, generator=random())
        found = slide(image, self.score, WindowSettings(28, 14, (1.0,), False, FILL), 2)["d"]
        assert found.shape == (3, 20, 40)
        assert found.isfinite().all()

    def test_a_mirrored_image_gets_the_mirrored_prediction(self) -> None:
        """With mirroring averaged in, up to ties."""
        image = torch.randint(256, (3, 28, 56), dtype=torch.uint8, generator=random())
        settings = WindowSettings(28, 14, (1.0, 1.5), True, FILL)
        straight = predict(image, (28, 56), self.score, settings, 3)["d"]
        mirrored = predict(image.flip(-1), (28, 56), self.score, settings, 3)["d"].flip(-1)
        assert (straight == mirrored).float().mean() > 0.999


class TestSchedule:
    def test_by_iteration(self) -> None:
        """DINOv2: 40,000 steps, of which 1,500 warm up, on a straight line to 0."""
        recipe = Recipe("adamw", 1e-3, 0.9, 1e-4, steps=40_000, steps_per_epoch=1, warm_up=1500 / 40_000)
        assert recipe.lr_at(0) == pytest.approx(1e-9)
        assert recipe.lr_at(750) == pytest.approx(1e-3 * 0.5 * (1 - 750 / 40_000))
        assert recipe.lr_at(20_000) == pytest.approx(5e-4)
        assert recipe.lr_at(39_999) == pytest.approx(1e-3 / 40_000)

    def test_by_epoch(self) -> None:
        recipe = Recipe("sgd", 1e-3, 0.9, 0.0, steps=50 * 7, steps_per_epoch=7, warm_up=0.0)
        rates = [recipe.lr_at(step) for step in range(350)]
        assert len(set(rates)) == 50
        assert rates[:7] == [1e-3] * 7
        assert rates[-1] == pytest.approx(1e-3 / 50)
