"""Triton's kernels: their arithmetic in Triton's interpreter, that they compile, and when they are chosen."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from franca.objective import chunked, passes
from franca.objective.assignments import Scores

ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@needs_triton
@pytest.mark.slow
def test_kernels_in_the_interpreter():
    """In a process of its own: the interpreter has to be asked for before Triton is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/objective/interpreted_triton.py"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("target", [("cuda", 90, 32), ("hip", "gfx942", 64)], ids=lambda target: f"{target[1]}")
def test_kernels_compile(target, tmp_path, monkeypatch):
    """Without a device: by the compiler's types, which the interpreter doesn't know, and within the shared memory."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget

    for kernel, constants, warps in _launches():
        signature = {name: _kind(kernel.__name__, name) for name in kernel.arg_names}
        signature |= dict.fromkeys(constants, "constexpr")
        source = triton.compiler.ASTSource(
            kernel, signature, {(kernel.arg_names.index(n),): constants[n] for n in constants}
        )
        compiled = triton.compile(source, target=GPUTarget(*target), options={"num_warps": warps})
        assert compiled.metadata.shared <= 48 * 1024


def _launches() -> list[tuple]:
    """Every kernel with its tiles and warps."""
    from franca.objective import triton_cross_entropy, triton_kernels
    from franca.objective import triton_passes as given

    tile = {"HAS_VALID": True, "PART": given.PART, "ROWS": given.ROWS, "COLUMNS": given.COLUMNS}
    group = {"ROWS": given.GROUP, "COLUMNS": given.GROUP_COLUMNS}
    predict = {"HAS_VALID_A": True, "HAS_VALID_B": True, "GRADIENT": True, "COLUMNS": given.ROW}
    return [
        (triton_kernels.store_kernel, {"HAS_VALID": True, "COLUMNS": given.STORED_ROW}, given.STORED_ROW_WARPS),
        (triton_kernels.column_logsumexp_kernel, tile, given.WARPS),
        (triton_kernels.row_statistics_kernel, group, given.GROUP_WARPS),
        (triton_kernels.column_sums_kernel, tile, given.WARPS),
        *(
            (
                triton_cross_entropy.cross_entropy_kernel,
                predict | {"LEARN_FROM_A": a, "LEARN_FROM_B": b},
                given.ROW_WARPS,
            )
            for a, b in ((1, 0), (6, 5))
        ),
    ]


def _kind(kernel: str, name: str) -> str:
    """The type of a kernel's argument on a device in mixed precision."""
    if name in ("rows", "width", "views"):
        return "i32"
    if name == "lowest" or (name == "scale" and kernel == "cross_entropy_kernel"):
        return "fp32"
    if name.startswith("valid"):
        return "*i1"
    return "*fp16" if name.startswith(("values", "gradient")) else "*fp32"


def test_plain_pytorch_on_the_cpu():
    """Unless the interpreter is asked for; Triton is not even imported."""
    program = """
import sys, torch
from franca.objective import passes, sinkhorn_assignments
sinkhorn_assignments(torch.randn(3, 4), 0.1)
assert passes._of_device("cpu") is passes.chunked
assert "triton" not in sys.modules
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def afresh():
    """The choice is made once per kind of device: again for a test, and after it."""
    passes._of_device.cache_clear()
    yield
    passes._of_device.cache_clear()


def _missing_compiler(kind: str) -> bool:
    raise subprocess.CalledProcessError(1, ["cc", "driver.c"])


@needs_triton
@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize("has_driver", [lambda kind: True, _missing_compiler], ids=["kernels", "driver"])
def test_whatever_keeps_kernels_from_running_is_announced_and_done_without(monkeypatch, has_driver):
    """Kernels can't run on the CPU, which has no driver; a driver may itself need a compiler that isn't there."""
    monkeypatch.setattr(passes, "_has_driver", has_driver)
    with pytest.warns(UserWarning, match=r"Triton doesn't work on cpu \(.+\): the objective is computed without it"):
        scores = Scores.of_logits(torch.tensor([[1.0, 3.0]]))
    assert scores.values.tolist() == [[-2.0, 0.0]]
    assert passes._of_device("cpu") is chunked


@pytest.mark.usefixtures("afresh")
def test_without_triton_passes_are_plain_pytorch(monkeypatch):
    monkeypatch.setattr(passes, "find_spec", lambda name: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert passes._of_device("cpu") is chunked
