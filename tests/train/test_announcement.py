"""What a run says first: warnings where accelerators stay idle, or images are few."""

from collections.abc import Callable

import pytest
import torch

from franca.train import announcement
from franca.train.announcement import opening_lines
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
    ("overrides", "says"),
    [
        (["data.batch_size=20", "steps=100"], ""),
        (["data.batch_size=20", "steps=101"], "20 images, 20 a step, each taken 101 times in the run; a network from"),
        (["data.batch_size=21", "steps=20"], "20 images, 21 a step, each taken 21 times in the run; a network from"),
        (["data.batch_size=20", "steps=101", "init_from=some"], ""),
        (
            ["data.batch_size=21", "steps=20", "init_from=some"],
            "20 images, 21 a step, each taken 21 times in the run\n",
        ),
    ],
)
def test_few_images_taken_often_are_said(tiny: Callable[..., TrainConfig], overrides: list[str], says: str) -> None:
    config = tiny(*overrides, "accumulate=1")
    said = "\n".join(opening_lines(config, build_pair(config), torch.device("cpu"), None, build_source(config))) + "\n"
    assert says in said
    assert (" times in the run" in said) == bool(says)
