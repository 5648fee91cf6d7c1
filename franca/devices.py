"""Where to compute, in which precision, compiled or not, and how much memory that took."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from franca.config import ConfigError


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """``auto``: this machine's accelerator, else the CPU; otherwise the named device.

    local_rank: which of several accelerators, for a name without a number; it becomes the current one.
    """
    try:
        device = _numbered(_named(name), local_rank)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name!r} can't be used here ({str(error).splitlines()[0]}); try auto") from None
    return device


def _named(name: str) -> torch.device:
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return torch.device(name)


def _numbered(device: torch.device, local_rank: int | None) -> torch.device:
    count = torch.accelerator.device_count()
    if local_rank is None or device.type == "cpu" or ":" in str(device) or not count:
        return device
    torch.accelerator.set_device_index(local_rank % count)
    return torch.device(device.type, local_rank % count)


def choose_precision(name: str, device: torch.device) -> torch.dtype | None:
    """Type for autocast, None for plain fp32. ``auto``: bf16 where the device computes in it."""
    if name == "bf16" or (name == "auto" and _computes_in_bf16(device)):
        return torch.bfloat16
    return None


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cpu":  # every CPU can emulate it, few have instructions for it
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 in torch.accelerator.get_device_capability(device)["supported_dtypes"]


@cache
def compiler_trouble(device: torch.device) -> str:
    """Why ``torch.compile`` should not be used there, "" if it works: tried once, on an addition."""
    if device.type == "cpu":
        return "compiling takes longer than a run on a CPU gains by it"
    if find_spec("triton") is None:
        return "Triton is not installed"
    try:
        torch.compile(torch.add)(torch.ones(8, device=device), 1)
    except Exception as error:  # a C compiler, headers, a driver: whatever the compiler misses
        return str(error).strip().split("\n")[0]
    return ""


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors of this process held on an accelerator; on the CPU, its largest resident set.

    0 where nobody counts, as on the CPU under Windows.
    """
    if device.type != "cpu":
        with suppress(RuntimeError):  # an allocator that keeps no count: of memory that is the process's own
            return int(torch.accelerator.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def compute_in(precision: torch.dtype | None, device: torch.device) -> Iterator[None]:
    """Autocast to ``precision``; None: as the parameters are. Entered where no gradient is asked for, if none is."""
    with ExitStack() as stack:
        if precision is not None:
            stack.enter_context(torch.autocast(device.type, dtype=precision))
            if device.type == "cpu" and torch.is_grad_enabled():
                # The fused CPU kernel's backward is three times slower in bf16 than the plain products; its forward is
                # up to three times quicker.
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
