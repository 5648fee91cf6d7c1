"""What devices can do at most, as their makers state it, and how much of that a run uses."""

import re
import time
from dataclasses import dataclass
from functools import cache

import torch

SIDE = 1024  # of the matrices that measure an unknown device
MEASURING = 0.3  # seconds


@dataclass(frozen=True)
class Peak:
    """TFLOP/s of matrix products without sparsity, accumulated in fp32; memory in GB (10^9 bytes).

    bf16 is None where the device has no units for it; fp32 is plain fp32, not TF32.
    """

    bf16: float | None
    fp32: float
    memory: float


# Data sheets; "H100" and "A100" are the SXM modules. All words of a name must occur in the device's own name.
PEAKS = {
    "B200": Peak(2250.0, 75.0, 180),
    "H200": Peak(989.4, 66.9, 141),
    "H100": Peak(989.4, 66.9, 80),
    "H100 PCIe": Peak(756.0, 51.2, 80),
    "H100 NVL": Peak(835.0, 60.0, 94),
    "A100": Peak(312.0, 19.5, 80),
    "L40S": Peak(362.0, 91.6, 48),
    "L4": Peak(121.0, 30.3, 24),
    "RTX 4090": Peak(165.2, 82.6, 24),
    "RTX 3090": Peak(71.0, 35.6, 24),
    "V100": Peak(None, 15.7, 32),
    "MI300X": Peak(1307.4, 163.4, 192),
}


def find_peak(name: str) -> Peak | None:
    """The entry that a device's name or a short form of it means; None when the table has none.

    "NVIDIA A100-SXM4-40GB", "a100" and "4090" are found; a size of memory in the name counts. A laptop's chip and a
    part of a device (MIG) are others than their name says.
    """
    words = set(re.split(r"[\s-]+", name.upper()))
    if words & {"LAPTOP", "MIG", "MAX-Q"}:
        return None
    entries = {frozenset(entry.upper().split()): peak for entry, peak in PEAKS.items()}
    within = sorted((entry for entry in entries if entry <= words), key=len)
    shortened = [entry for entry in entries if words <= entry]
    if not within and len(shortened) != 1:
        return None
    found = entries[(within or shortened)[-1]]
    stated = re.search(r"(\d+)\s?GB", name, re.IGNORECASE)
    return Peak(found.bf16, found.fp32, float(stated[1])) if stated else found


def name_of(device: torch.device) -> str:
    """What the device calls itself; "CPU" for the CPU."""
    return "CPU" if device.type == "cpu" else str(torch.get_device_module(device).get_device_name(device))


def stated_flops(device: torch.device, precision: torch.dtype | None) -> float | None:
    """FLOP/s that ``device`` reaches at most in bf16 or, for None and other types, fp32; None where PEAKS has none."""
    known = find_peak(name_of(device))
    stated = known and (known.bf16 if precision == torch.bfloat16 else known.fp32)
    return stated * 1e12 if stated else None


def peak_flops(device: torch.device, precision: torch.dtype | None) -> float:
    """The same, measured where it is not stated."""
    return stated_flops(device, precision) or measured_flops(device, precision)


@cache
def measured_flops(device: torch.device, precision: torch.dtype | None) -> float:
    """FLOP/s of the quickest of some square products, in a third of a second."""
    matrix = torch.ones(SIDE, SIDE, device=device, dtype=precision or torch.float32)
    quickest, began = float("inf"), time.perf_counter()
    while quickest == float("inf") or time.perf_counter() - began < MEASURING:
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for the result
        quickest = min(quickest, time.perf_counter() - start)
    return float(2 * SIDE**3 / quickest)


def utilisation(flops: float, seconds: float, device: torch.device, precision: torch.dtype | None) -> float | None:
    """Share of the stated peak of one device that ``flops`` operations of its own in ``seconds`` are; None without one.

    precision: what the products compute in, None for fp32; as ``franca.devices.choose_precision`` gives it.
    """
    stated = stated_flops(device, precision)
    return flops / seconds / stated if stated else None
