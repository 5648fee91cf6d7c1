"""Photometric changes, against torchvision's by value, and the pipeline against torchvision's by distribution."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from franca.data import photometric
from franca.data.changes import (
    BLACK,
    COLUMNS,
    DRAWS,
    FLIP,
    GREY,
    GREYSCALE,
    MEAN,
    SIGMA,
    SLOTS,
    SOLARIZE,
    TURN,
    draw_changes,
)
from franca.data.decode import decode_image
from franca.data.photometric import finish, turn_hue

AS_IT_IS = torch.tensor([[0.0], [255.0]], dtype=torch.float64)  # a norm that leaves values between 0 and 1
ALL = torch.tensor([0.5, 0.8, 0.2, 0.5, 0.2])  # chances


def _noise(count: int = 1, size: int = 20, channels: int = 3) -> Tensor:
    """With some grey, black and white, where a hue is undefined."""
    random = torch.Generator().manual_seed(7)
    crops = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=random)
    crops[:, :, :4] = crops[:, :1, :4]
    crops[:, :, 4, :5], crops[:, :, 5, :5] = 0, 255
    return crops


def _rows(count: int, chances: Tensor = ALL, seed: int = 0) -> Tensor:
    draws = torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draw_changes(draws, chances)


def _row(**values: float) -> Tensor:
    row = torch.zeros(1, COLUMNS)
    for name, value in values.items():
        row[0, globals()[name]] = value
    return row


def _exact(crops: Tensor) -> Tensor:
    return crops.double() / 255


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"FLIP": 1}, F.horizontal_flip),
        ({"BLACK": 0.375}, lambda x: F.adjust_brightness(x, 0.625)),
        ({"BLACK": -0.375}, lambda x: F.adjust_brightness(x, 1.375)),
        ({"MEAN": 0.25}, lambda x: F.adjust_contrast(x, 0.75)),
        ({"MEAN": -0.375}, lambda x: F.adjust_contrast(x, 1.375)),
        ({"GREY": 0.125}, lambda x: F.adjust_saturation(x, 0.875)),
        ({"GREY": -0.125}, lambda x: F.adjust_saturation(x, 1.125)),
        ({"TURN": 0.0625}, lambda x: F.adjust_hue(x, 0.0625)),
        ({"TURN": -0.09375}, lambda x: F.adjust_hue(x, -0.09375)),
        ({"GREYSCALE": 1}, lambda x: F.rgb_to_grayscale(x, num_output_channels=3)),
        ({"SIGMA": 0.125}, lambda x: F.gaussian_blur(x, [9, 9], [0.125, 0.125])),
        ({"SIGMA": 0.75}, lambda x: F.gaussian_blur(x, [9, 9], [0.75, 0.75])),
        ({"SIGMA": 2}, lambda x: F.gaussian_blur(x, [9, 9], [2.0, 2.0])),
        ({"SOLARIZE": 1}, lambda x: F.solarize(x, 128 / 255)),
    ],
    ids=lambda each: str(each) if isinstance(each, dict) else "",
)
def test_each_change_equals_torchvisions(row: dict[str, float], expected: Callable[[Tensor], Tensor]) -> None:
    crops = _noise(3)
    found = finish(crops, _row(**row).expand(3, -1), AS_IT_IS)
    torch.testing.assert_close(found, expected(_exact(crops)), atol=2e-6, rtol=0)


def _by_torchvision(crop: Tensor, row: Tensor) -> Tensor:
    """One crop (1, 3, S, S) of values between 0 and 1, changed as a row says by torchvision's functions in turn."""
    change = {
        BLACK: lambda x, share: F.adjust_brightness(x, 1 - share),
        MEAN: lambda x, share: F.adjust_contrast(x, 1 - share),
        GREY: lambda x, share: F.adjust_saturation(x, 1 - share),
    }
    values = row.tolist()
    crop = F.horizontal_flip(crop) if values[FLIP] else crop
    for place, value in enumerate(values[: 3 * SLOTS]):
        if place == 3 * SLOTS // 2:
            crop = F.adjust_hue(crop, values[TURN])
        crop = change[place % 3](crop, value) if value else crop
    crop = F.rgb_to_grayscale(crop, num_output_channels=3) if values[GREYSCALE] else crop
    crop = F.gaussian_blur(crop, [9, 9], [values[SIGMA]] * 2) if values[SIGMA] else crop
    return F.solarize(crop, 128 / 255) if values[SOLARIZE] else crop


@pytest.mark.parametrize("size", [8, 20, 37])
def test_a_whole_row_equals_torchvisions_functions_in_turn(size: int) -> None:
    crops, rows = _noise(25, size), _rows(25)
    rows[rows[:, SOLARIZE] != 0, SIGMA] = 0  # at the threshold the last digit decides
    found = finish(crops, rows, AS_IT_IS)
    for place, (crop, row) in enumerate(zip(_exact(crops).split(1), rows, strict=True)):
        expected = _by_torchvision(crop, row)[0]
        near_threshold = (expected - 127.5 / 255).abs() < 1e-3 if row[SOLARIZE] else torch.zeros_like(expected)
        different = (found[place] - expected).abs() > 5e-6
        assert not (different & ~near_threshold.bool()).any(), place


def test_one_by_one_and_all_at_once_are_the_same() -> None:
    """On an accelerator every operation meets every crop, on the CPU only those that its row asks for."""
    crops, rows = _noise(60), _rows(60)
    norm = torch.tensor([[120.0, 110, 100], [60, 50, 55]], dtype=torch.float64)
    blurs = photometric._blurs(crops, norm)
    at_once = photometric._finish(crops, rows, norm, blurs, [True] * COLUMNS)
    torch.testing.assert_close(finish(crops, rows, norm), at_once, atol=1e-9, rtol=0)
    one_by_one = [finish(crop, row, norm) for crop, row in zip(crops.split(1), rows.split(1), strict=True)]
    torch.testing.assert_close(finish(crops, rows, norm), torch.cat(one_by_one), atol=1e-9, rtol=0)


def test_shapes_of_the_batched_form_do_not_depend_on_values() -> None:
    """It runs where no value can be read, so nothing in it can wait for one."""
    for size in (8, 21):
        crops, rows, norm = (t.to("meta") for t in (_noise(5, size), _rows(5), AS_IT_IS.float()))
        assert finish(crops, rows, norm).shape == (5, 3, size, size)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_the_batched_form_compiles_to_one_graph_of_the_same_values() -> None:
    crops, rows, norm = _noise(5), _rows(5), AS_IT_IS.float()

    def batched(crops: Tensor) -> Tensor:
        return photometric._finish(crops, rows, norm, photometric._blurs(crops, norm), [True] * COLUMNS)

    compiled = torch.compile(batched, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(crops), batched(crops), atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_images_keep_their_colours(channels: int) -> None:
    """With other than three channels blur and flip remain."""
    crops, rows = _noise(4, 12, channels), _rows(4, torch.tensor([0.5, 1.0, 1.0, 0.0, 0.0]))
    flips = rows[:, FLIP].view(-1, 1, 1, 1) != 0
    norm = AS_IT_IS.expand(2, channels)
    found = finish(crops, rows, norm)
    torch.testing.assert_close(found, _exact(torch.where(flips, crops.flip(-1), crops)))
    blurred = finish(crops, _row(SIGMA=1.5).expand(4, -1), norm)
    torch.testing.assert_close(blurred, F.gaussian_blur(_exact(crops), [9, 9], [1.5, 1.5]), atol=2e-6, rtol=0)


def test_the_norm_is_applied_by_channel_and_gives_its_type() -> None:
    crops = _noise()
    norm = 255 * torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    for dtype in (torch.float32, torch.float64):
        found = finish(crops, _row(), norm.to(dtype))
        assert found.dtype == dtype
        assert found.is_contiguous()
        expected = F.normalize(crops / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        torch.testing.assert_close(found, expected.to(dtype), atol=1e-5, rtol=0)


def test_what_it_is_given_stays_as_it_is() -> None:
    crops, rows, norm = _noise(8), _rows(8), AS_IT_IS.clone()
    before = [t.clone() for t in (crops, rows, norm)]
    finish(crops, rows, norm)
    assert all(torch.equal(a, b) for a, b in zip(before, (crops, rows, norm), strict=True))


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.07, 0.5])
def test_hue_keeps_value_and_saturation(turn: float) -> None:
    pixels = _noise().double()
    turned = turn_hue(pixels, turn)
    torch.testing.assert_close(turned.amax(1), pixels.amax(1))
    torch.testing.assert_close(turned.amin(1), pixels.amin(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(turn_hue(turned, -turn), pixels, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_crops_are_distributed_as_those_of_torchvision(photographs: list[bytes]) -> None:
    """The same changes drawn by torchvision's own transforms, of 8-bit images: moments of the crops agree.

    torchvision rounds 8-bit values down after each change, which takes half a level from its mean each time.
    """
    count = 300
    transforms = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], 0.5),
            v2.RandomSolarize(128, 0.2),
        ]
    )
    crop = F.resize(decode_image(photographs[0], "a.jpg"), [24, 24])[None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.cat([transforms(crop) for _ in range(count)]).double() / 255
    ours = finish(crop.expand(count, -1, -1, -1), _rows(count), AS_IT_IS)
    for ours_of, theirs_of in zip(_statistics(ours), _statistics(theirs), strict=True):
        error = math.sqrt((float(ours_of.var()) + float(theirs_of.var())) / count)
        assert abs(float(ours_of.mean() - theirs_of.mean())) < 4 * error + 1.5 / 255
        assert float(ours_of.std()) == pytest.approx(float(theirs_of.std()), rel=0.2, abs=0.5 / 255)


def _statistics(crops: Tensor) -> list[Tensor]:
    """Of each crop: mean of each channel, contrast, colourfulness, detail, and the balance of left and right."""
    detail = (crops[..., 1:] - crops[..., :-1]).abs().mean((1, 2, 3))
    sides = crops[..., :12].mean((1, 2, 3)) - crops[..., 12:].mean((1, 2, 3))
    colours = (crops - crops.mean(1, keepdim=True)).abs().mean((1, 2, 3))
    return [*crops.mean((2, 3)).T, crops.std((1, 2, 3)), colours, detail, sides]
