import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F

from franca.data import pixel_ops


def _generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def _noise(height: int = 40, width: int = 50, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=_generator(7))


def _coordinates(height: int, width: int) -> Tensor:
    """Row number in channel 0, column number in channel 1."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, rows]).to(torch.uint8)


@pytest.mark.parametrize("scale", [[0.32, 1.0], [0.05, 0.32]])
def test_boxes_fit_and_spread_over_areas_and_aspects(scale: list[float]) -> None:
    generator = _generator()
    boxes = [pixel_ops.random_box(300, 400, scale, generator) for _ in range(3000)]
    tops, lefts, heights, widths = torch.tensor(boxes, dtype=torch.float64).T
    assert tops.min() >= 0
    assert lefts.min() >= 0
    assert (tops + heights).max() <= 300
    assert (lefts + widths).max() <= 400
    areas, aspects = heights * widths / (300 * 400), widths / heights
    assert areas.min() == pytest.approx(scale[0], rel=0.03)
    assert areas.max() <= scale[1] * 1.01
    assert 3 / 4 * 0.97 < aspects.min() < 3 / 4 * 1.05
    assert 4 / 3 * 0.95 < aspects.max() < 4 / 3 * 1.03
    if scale[1] < 0.5:  # every drawn box fits: area uniform, log-aspect symmetric, places everywhere
        assert float(areas.mean()) == pytest.approx(sum(scale) / 2, rel=0.03)
        assert abs(float(aspects.log().mean())) < 0.01
        assert float((tops / (300 - heights)).mean()) == pytest.approx(0.5, abs=0.03)
        assert float((lefts / (400 - widths)).mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10)])
def test_strips_give_their_middle(height: int, width: int) -> None:
    top, left, box_height, box_width = pixel_ops.random_box(height, width, [0.32, 1.0], _generator())
    assert (top + box_height / 2, left + box_width / 2) == pytest.approx((height / 2, width / 2), abs=1)
    assert max(box_height, box_width) / min(box_height, box_width) == pytest.approx(4 / 3, rel=0.1)


def test_later_draws_do_not_depend_on_the_image() -> None:
    states = []
    for shape in ((300, 400), (10, 1000), (1, 1)):
        generator = _generator()
        pixel_ops.random_box(*shape, [0.32, 1.0], generator)
        states.append(generator.get_state())
    assert all(torch.equal(state, states[0]) for state in states)


def test_a_crop_shows_the_box_it_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_ops, "random_box", lambda *_: (30, 50, 64, 80))
    crop = pixel_ops.random_resized_crop(_coordinates(200, 200), 16, [0.3, 1.0], _generator())
    assert crop.dtype == torch.uint8
    # Pixel i of 16 covers rows 30 + 4 i ... 30 + 4 i + 3; the borders mirror, so look inside.
    centres = torch.arange(16) + 0.5
    assert (crop[0, 8] == crop[0, 8, 0]).all()
    torch.testing.assert_close(crop[0, 2:-2, 8].float(), (30 + 64 / 16 * centres - 0.5)[2:-2], atol=1.0, rtol=0)
    torch.testing.assert_close(crop[1, 8, 2:-2].float(), (50 + 80 / 16 * centres - 0.5)[2:-2], atol=1.0, rtol=0)


@pytest.mark.parametrize("size", [28, 150])
def test_crops_are_resampled_as_pillow_does(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original's recipe: bicubic, filtered when it shrinks."""
    monkeypatch.setattr(pixel_ops, "random_box", lambda *_: (10, 5, 100, 70))
    image = 64 + _noise(120, 90) // 2  # overshoots, which each cuts off after another pass, stay inside 0 ... 255
    crop = pixel_ops.random_resized_crop(image, size, [0.3, 1.0], _generator())
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((5, 10, 75, 110))
    expected = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(crop.numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("shift", [-0.1, -0.03, 0.0, 0.07, 0.1, 0.5])
def test_hue_equals_torchvision_to_the_rounding(shift: float) -> None:
    image = _noise()
    image[:, :5] = image[:1, :5]  # grey has no hue
    exact = 255 * F.adjust_hue(image.double() / 255, shift)
    assert (pixel_ops.shift_hue(image, shift) - exact).abs().max() < 0.5 + 1e-3


def test_hue_by_hand() -> None:
    red = torch.tensor([200, 50, 50], dtype=torch.uint8).view(3, 1, 1)
    assert pixel_ops.shift_hue(red, 1 / 3).flatten().tolist() == [50, 200, 50]
    assert pixel_ops.shift_hue(red, -1 / 3).flatten().tolist() == [50, 50, 200]
    assert pixel_ops.shift_hue(red, 1 / 6).flatten().tolist() == [200, 200, 50]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_blur_equals_torchvision(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = _noise(channels=channels)
    for share in (0.0, 0.3, 1.0):
        monkeypatch.setattr(pixel_ops, "draw", lambda *_, share=share: [share])
        blurred = pixel_ops.gaussian_blur(image, _generator())
        sigma = 0.1 + 1.9 * share
        expected = F.gaussian_blur(image, [9, 9], [sigma, sigma])
        assert blurred.dtype == torch.uint8
        assert (blurred.int() - expected.int()).abs().max() <= 1  # a half may round either way


def test_jitter_stays_within_its_strengths() -> None:
    """On grey, where hue and saturation do nothing: brightness times contrast about the (brightened) mean."""
    image = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    values = torch.stack([pixel_ops.colour_jitter(image, _generator(i)) for i in range(400)]).float()
    assert (values - values[:, :1, :1, :1]).abs().max() <= 1
    means = values.mean(dim=(1, 2, 3))
    assert 57 <= means.min() < 65  # each change may round down
    assert 135 < means.max() <= 141
    assert float(means.mean()) == pytest.approx(100, abs=5)


def test_strengths_of_the_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniform within the recipe's ranges, each change by a number of its own."""
    ranges = {
        "adjust_brightness": (0.6, 1.4),
        "adjust_contrast": (0.6, 1.4),
        "adjust_saturation": (0.8, 1.2),
        "shift_hue": (-0.1, 0.1),
    }
    drawn: dict[str, list[float]] = {name: [] for name in ranges}
    for name in ranges:
        place = pixel_ops if name == "shift_hue" else pixel_ops.F
        monkeypatch.setattr(place, name, lambda image, strength, name=name: (drawn[name].append(strength), image)[1])
    generator = _generator()
    for _ in range(1000):
        pixel_ops.colour_jitter(_noise(2, 2), generator)
    for name, (low, high) in ranges.items():
        strengths = torch.tensor(drawn[name])
        width = high - low
        assert low <= strengths.min() < low + 0.02 * width, name
        assert high - 0.02 * width < strengths.max() <= high, name
        assert float(strengths.mean()) == pytest.approx((low + high) / 2, abs=0.05 * width), name
    correlation = torch.corrcoef(torch.tensor([drawn[name] for name in ranges]))
    assert (correlation - torch.eye(len(ranges))).abs().max() < 0.15


def test_jitter_draws_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def note(name: str) -> None:
        function = lambda x, _, name=name: (called.append(name), x)[1]  # noqa: E731
        if name == "shift_hue":
            monkeypatch.setattr(pixel_ops, name, function)
        else:
            monkeypatch.setattr(pixel_ops.F, name, function)

    names = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "shift_hue")
    for name in names:
        note(name)
    generator = _generator()
    for _ in range(300):
        pixel_ops.colour_jitter(_noise(2, 2), generator)
    orders = {tuple(called[i : i + 4]) for i in range(0, len(called), 4)}
    assert len(orders) == math.factorial(4)
    assert all(sorted(order) == sorted(names) for order in orders)


def test_grayscale_keeps_three_equal_channels() -> None:
    gray = pixel_ops.grayscale(_noise())
    assert gray.shape == (3, 40, 50)
    assert torch.equal(gray[0], gray[1])
    assert torch.equal(gray[0], gray[2])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [14, 60])
def test_the_order_of_an_images_memory_changes_no_crop(channels: int, size: int) -> None:
    """Decoders leave the channels of a pixel together, other sources may not."""
    image = _noise(channels=channels)
    together = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    box = pixel_ops.Box(3, 7, 31, 29)
    assert torch.equal(pixel_ops.resized_crop(image, box, size), pixel_ops.resized_crop(together, box, size))
