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


@pytest.mark.parametrize(("batch", "warned"), [(20, False), (21, True)])
def test_fewer_images_than_a_step_takes_are_said(tiny: Callable[..., TrainConfig], batch: int, warned: bool) -> None:
    config = tiny(f"data.batch_size={batch}", "accumulate=1")
    lines = opening_lines(config, build_pair(config), torch.device("cpu"), None, build_source(config))
    assert any("20 images are fewer than a step takes (21)" in line for line in lines) == warned
