"""The table of devices: which names find which entry, and what stands in when none does."""

import pytest
import torch

from franca.peaks import PEAKS, find_peak, measured_flops, name_of, peak_flops, stated_flops, utilisation

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("h100", "H100"),
        ("Tesla V100-SXM2-32GB", "V100"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_names_that_devices_give_themselves_are_found(name: str, entry: str) -> None:
    assert find_peak(name) == PEAKS[entry]


@pytest.mark.parametrize(
    "name", ["CPU", "RTX", "H1000", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", ""]
)
def test_other_devices_are_not_taken_for_known_ones(name: str) -> None:
    assert find_peak(name) is None


def test_memory_stated_in_the_name_counts() -> None:
    small = find_peak("NVIDIA A100-SXM4-40GB")
    assert small is not None
    assert (small.memory, small.bf16) == (40, PEAKS["A100"].bf16)


def test_an_unknown_device_is_measured() -> None:
    assert name_of(CPU) == "CPU"
    measured = peak_flops(CPU, None)
    assert measured == measured_flops(CPU, None)
    assert 1e8 < measured < 1e15


def test_a_known_device_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("franca.peaks.name_of", lambda device: "NVIDIA A100-SXM4-80GB")
    assert peak_flops(CPU, torch.bfloat16) == 312e12
    assert peak_flops(CPU, None) == 19.5e12
    assert utilisation(624e12, 4.0, CPU, torch.bfloat16) == 0.5


def test_what_is_not_stated_has_no_utilisation() -> None:
    assert stated_flops(CPU, None) is None
    assert utilisation(1e9, 1.0, CPU, None) is None
