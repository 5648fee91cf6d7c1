"""What a run says first: warnings where accelerators stay idle, or images are few."""

from collections.abc import Callable

import pytest
import torch

from franca.train import announcement
from franca.train.announcement import few_images, opening_lines
from franca.train.build import build_pair, build_source
from franca.train.config import TrainConfig


@pytest.fixture
def idle_warnings(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, int, int], list[str]]:
    """`idle_warnings(device, visible, processes)`: the warnings about idle devices of such a run on this machine."""

    def say(device: str, visible: int, processes: int) -> list[str]:
        monkeypatch.setattr(announcement.torch.accelerator, "device_count", lambda: visible)
        monkeypatch.setattr(announcement, "local_world_size", lambda: processes)
        config = tiny()
        lines = opening_lines(config, build_pair(config), torch.device(device), None, build_source(config))
        return [line for line in lines if "accelerators are visible" in line]

    return say


def test_one_process_beside_idle_devices_is_told_the_command_for_all(
    idle_warnings: Callable[[str, int, int], list[str]],
) -> None:
    (warning,) = idle_warnings("xpu", 8, 1)
    assert warning.startswith("WARNING: 8 accelerators are visible, this run uses 1: ")
    assert "torchrun --nproc-per-node 8 -m franca.train" in warning
    (warning,) = idle_warnings("xpu", 8, 4)
    assert "this run uses 4" in warning


@pytest.mark.parametrize(
    ("device", "visible", "processes"), [("xpu", 8, 8), ("xpu", 1, 1), ("xpu", 1, 8), ("cpu", 8, 1)]
)
def test_no_word_where_every_device_works_or_none_was_wanted(
    device: str, visible: int, processes: int, idle_warnings: Callable[[str, int, int], list[str]]
) -> None:
    """A scheduler may show each process only the device that is its own."""
    assert idle_warnings(device, visible, processes) == []


@pytest.mark.parametrize(
    ("count", "overrides", "says"),
    [
        (20, ["steps=100"], ""),
        (20, ["steps=101"], "20 images, each taken 101 times in the run, which a network from scratch"),
        (20, ["steps=101", "init_from=some"], ""),
        (999, ["steps=10000"], "999 images, each taken 200 times"),
        (1000, ["steps=10000"], ""),
        (19, ["steps=19"], "19 images are fewer than a step takes (20): lower data.batch_size"),
        (19, ["steps=1900", "init_from=some"], "19 images are fewer than a step takes"),
    ],
)
def test_few_images_taken_often_are_said(
    tiny: Callable[..., TrainConfig], count: int, overrides: list[str], says: str
) -> None:
    said = few_images(count, tiny("data.batch_size=20", "accumulate=1", *overrides))
    assert said.startswith(says)
    assert bool(said) == bool(says)


def test_few_images_are_said_at_the_start_of_a_run(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny("data.batch_size=21", "accumulate=1")
    lines = opening_lines(config, build_pair(config), torch.device("cpu"), None, build_source(config))
    assert "WARNING: 20 images are fewer than a step takes (21): lower data.batch_size" in lines
