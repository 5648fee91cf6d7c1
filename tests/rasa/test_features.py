"""The backbone at work: what it is given, what is wrong with what it gives, how far it has come."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rasa import RasaError, progress
from rasa.backbones import Backbone
from rasa.crops import Crops, CropsConfig
from rasa.features import Engine
from rasa.progress import PassProgress

CPU = torch.device("cpu")


def crops_of(images: Any) -> Crops:
    return Crops(images, range(len(images)), CropsConfig(size=28, batch_size=4, workers=0), seed=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite_name_the_image(value: float, drawn_images: type[Any]) -> None:
    crops = crops_of(drawn_images(10))
    names = [name for batch in crops.batches() for name in batch.names]
    seen = 0

    def spoilt(images: Tensor) -> Tensor:
        nonlocal seen
        maps = nn.functional.avg_pool2d(images, 7)
        if seen == 4:
            maps[2, 1, 3, 0] = value
        seen += len(images)
        return maps

    with pytest.raises(RasaError, match=rf"^mine gives features that are not finite .* for {names[6]}: check the w"):
        list(Engine(Backbone(spoilt, name="mine"), CPU, None).batches(crops))


def test_pixels_are_normalised_as_the_backbone_says() -> None:
    given: list[Tensor] = []

    def look(images: Tensor) -> Tensor:
        given.append(images)
        return images

    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1).expand(-1, -1, 4, 4)
    Engine(Backbone(look, [0.5, 0.5, 0.2], [0.5, 0.25, 0.1]), CPU, None).features(pixels)
    torch.testing.assert_close(given[0][0, :, 0, 0], torch.tensor([-1.0, 2.0, 0.0]))


def test_features_are_single_precision_whatever_the_network_computes_in(network: Callable[..., nn.Module]) -> None:
    pixels = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    model = network("franca")
    whole, half = (Engine(Backbone(model), CPU, kind).features(pixels) for kind in (None, torch.bfloat16))
    assert whole.dtype == half.dtype == torch.float32
    assert not torch.equal(whole, half)
    torch.testing.assert_close(whole, half, rtol=0, atol=0.2)


def test_progress_is_told_without_a_terminal(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    ticks = iter(range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))
    with PassProgress("images", 12) as told:
        told.add(4)
        told.add(4)
    assert "images: 4 of 12 crops, 4.0 a second, 2 s left" in caplog.text
    assert "images: 8 of 12 crops, 4.0 a second, 1 s left" in caplog.text
    assert "images: 8 crops in 3.0 s" in caplog.text
