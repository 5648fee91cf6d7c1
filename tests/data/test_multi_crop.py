import math

import pytest
import torch
from torch import Generator, Tensor

from franca.data import multi_crop
from franca.data.changes import FLIP, GREYSCALE, JITTER, SIGMA, SOLARIZE
from franca.data.multi_crop import CropConfig, MultiCrop
from franca.data.photometric import finish
from franca.data.pixel_ops import BOX_DRAWS, box_from, resized_crop


def _generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def _image(channels: int = 3, height: int = 60, width: int = 70) -> Tensor:
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=_generator(7))


def _finished(config: CropConfig, image: Tensor, seed: int = 0) -> list[Tensor]:
    """All crops of one image as the network reads them, (C, S, S)."""
    multi = MultiCrop(config)
    crops = multi(image, _generator(seed))
    rows = multi.changes_of([crops]).unbind(0)
    return [finish(cut[None], row, multi.norm)[0] for cut, row in zip(crops.global_ + crops.local, rows, strict=True)]


def _plain(**options) -> CropConfig:
    """No change but cropping."""
    return CropConfig(**{"flip": 0, "colour_jitter": 0, "grayscale": 0, "solarize": 0, "blur": "off"} | options)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_shapes(channels: int) -> None:
    config = CropConfig(global_size=28, local_size=14, local_count=3, mean=[0.5] * channels, std=[0.2] * channels)
    multi = MultiCrop(config)
    crops = multi(_image(channels), _generator())
    assert [crop.shape for crop in crops.global_] == [(channels, 28, 28)] * 2
    assert [crop.shape for crop in crops.local] == [(channels, 14, 14)] * 3
    assert all(crop.dtype == torch.uint8 for crop in crops.global_ + crops.local)
    assert multi.changes_of([crops] * 4).shape[:2] == (5, 4)
    finished = _finished(config, _image(channels))
    assert all(crop.dtype == torch.float32 and crop.isfinite().all() for crop in finished)


def test_the_generator_decides_everything() -> None:
    multi = MultiCrop(CropConfig(global_size=28, local_size=14))
    torch.manual_seed(0)
    first = multi(_image(), _generator(1))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again, other = multi(_image(), _generator(1)), multi(_image(), _generator(2))
    assert torch.equal(torch.get_rng_state(), state)  # the run's own random numbers are left alone
    parts = ([*crops.global_, *crops.local, multi.changes_of([crops])] for crops in (first, again, other))
    for a, b, c in zip(*parts, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_crops_of_one_image_differ() -> None:
    crops = MultiCrop(CropConfig(global_size=28, local_size=28))(_image(), _generator())
    every = crops.global_ + crops.local
    assert not any(torch.equal(a, b) for i, a in enumerate(every) for b in every[:i])


def test_each_crop_is_the_box_of_its_kind() -> None:
    config = _plain(global_size=28, global_scale=[0.4, 0.9], local_size=14, local_scale=[0.1, 0.3], local_count=3)
    crops = MultiCrop(config)(_image(), _generator(3))
    draws = torch.rand(5, BOX_DRAWS + crops.draws.shape[1], generator=_generator(3), dtype=torch.float64)
    for place, crop in enumerate(crops.global_ + crops.local):
        size, scale = (28, [0.4, 0.9]) if place < 2 else (14, [0.1, 0.3])
        box = box_from(draws[place, :BOX_DRAWS].tolist(), 60, 70, scale)
        assert torch.equal(crop, resized_crop(_image(), box, size))
    assert torch.equal(crops.draws, draws[:, BOX_DRAWS:])  # what decides the box decides nothing else


def test_normalisation() -> None:
    """A plain crop is (value / 255 - mean) / std, channel by channel."""
    image = torch.tensor([255, 0, 51], dtype=torch.uint8).view(3, 1, 1).expand(3, 20, 20)
    crop = _finished(_plain(global_size=14, local_count=0), image)[0]
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    torch.testing.assert_close(crop, torch.tensor(expected).view(3, 1, 1).expand(3, 14, 14))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3000), (3000, 1)])
def test_the_smallest_and_thinnest_images(height: int, width: int) -> None:
    """One colour stays one colour, whatever is enlarged, blurred or mirrored at borders on the way."""
    image = torch.tensor([200, 90, 10], dtype=torch.uint8).view(3, 1, 1).expand(3, height, width)
    for seed in range(5):
        for crop in _finished(CropConfig(global_size=28, local_size=14), image, seed):
            assert crop.isfinite().all()
            assert (crop - crop[:, :1, :1]).abs().max() < 1e-5


def test_flip_mirrors_left_and_right() -> None:
    sizes = {"global_size": 28, "local_count": 0}
    plain, flipped = (_finished(_plain(flip=flip, **sizes), _image()) for flip in (0, 1))
    assert torch.equal(plain[0].flip(-1), flipped[0])
    assert torch.equal(plain[1].flip(-1), flipped[1])


def _shares(config: CropConfig, channels: int = 3, images: int = 600) -> dict[str, list[float]]:
    """How often each change reaches the first global, the second global, and the local crops."""
    multi, generator = MultiCrop(config), _generator()
    rows = multi.changes_of([multi(_image(channels, 8, 8), generator) for _ in range(images)])
    happens = {"colour_jitter": rows[..., JITTER].any(-1)}
    columns = {"flip": FLIP, "grayscale": GREYSCALE, "blur": SIGMA, "solarize": SOLARIZE}
    happens |= {name: rows[..., column] != 0 for name, column in columns.items()}
    places = slice(0, 1), slice(1, 2), slice(2, None)
    return {name: [float(found[place].float().mean()) for place in places] for name, found in happens.items()}


@pytest.mark.parametrize(("blur", "blurred"), [("intended", (1, 0.1, 0.5)), ("inverted", (0, 0.9, 0.5))])
def test_probabilities_of_the_recipe(blur: str, blurred: tuple) -> None:
    shares = _shares(CropConfig(global_size=8, local_size=8, blur=blur, local_count=4))
    assert shares["flip"] == pytest.approx([0.5] * 3, abs=0.06)
    assert shares["colour_jitter"] == pytest.approx([0.8] * 3, abs=0.06)
    assert shares["grayscale"] == pytest.approx([0.2] * 3, abs=0.06)
    assert shares["blur"] == pytest.approx(blurred, abs=0.06)
    assert shares["blur"][0] == blurred[0]  # always, or never
    assert shares["solarize"] == pytest.approx([0, 0.2, 0], abs=0.06)


def test_colour_changes_turn_off_without_three_channels() -> None:
    config = CropConfig(global_size=8, local_size=8, local_count=2, mean=[0.5], std=[0.2])
    shares = _shares(config, channels=4, images=50)
    assert shares["colour_jitter"] == shares["grayscale"] == shares["solarize"] == [0, 0, 0]
    assert shares["blur"][0] == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"global_size": 0}, "data.crops.global_size=0"),
        ({"local_size": 7}, "data.crops.local_size=7"),
        ({"local_count": -1}, "data.crops.local_count=-1"),
        ({"global_scale": [0.5, 0.4]}, "data.crops.global_scale="),
        ({"local_scale": [0.0, 0.4]}, "data.crops.local_scale="),
        ({"flip": 1.1}, "data.crops.flip=1.1"),
        ({"solarize": -0.1}, "data.crops.solarize=-0.1"),
        ({"blur": "intendet"}, "data.crops.blur='intendet'.*intended"),
        ({"mean": [0.5]}, "data.crops.mean="),
        ({"std": [0.0, 1, 1]}, r"data.crops.*std=\[0.0, 1, 1\]"),
        ({"std": [math.nan, 1, 1]}, r"data.crops.*std=\[nan, 1, 1\]"),
        ({"mean": [0.5, math.inf, 0.5]}, "data.crops.mean=.*inf"),
    ],
)
def test_bad_options_are_named(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        CropConfig(**options)


def test_defaults_are_the_papers() -> None:
    config = CropConfig()
    assert (config.global_size, config.global_scale, config.local_size, config.local_scale) == (
        *(224, [0.32, 1.0]),
        *(98, [0.05, 0.32]),
    )
    assert config.local_count == 8
    assert config.std[2] == 0.225  # not 0.255, as parts of the original have it
    assert multi_crop.BLURS[config.blur] == (1.0, 0.1, 0.5)
