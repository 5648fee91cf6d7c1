"""What all tests share: reference values, images and a cluster, the count of tests that lacked them, drawn images."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDERS = ("FRANCA_PARITY", "FRANCA_DATA")
CLUSTER = "FRANCA_SLURM"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
LIMIT = 600  # seconds for one test, whatever it waits for
# Resolved once, at the start: a test may change the working directory.
_PATHS = {name: Path(os.environ[name]).resolve() for name in (*FOLDERS, CLUSTER) if os.environ.get(name)}


def _skip_reason(name: str) -> str:
    return f"{name} is not set"


def _folder(name: str) -> Path:
    if name not in _PATHS:
        pytest.skip(_skip_reason(name))
    if not _PATHS[name].is_dir():
        pytest.fail(f"{name} names {_PATHS[name]}, which is not a folder: correct it, or unset it to skip these tests")
    return _PATHS[name]


def _give_up(*_: object) -> None:
    pytest.fail(f"this test takes more than {LIMIT} seconds")


@pytest.fixture(autouse=True)
def process_is_restored() -> Iterator[None]:
    """What a test sets in this process (a job's RANK, a signal's handler) must not reach the tests after it.

    SIGINT interrupts as in a terminal, also where a shell runs the tests in the background and has it ignored. A test
    that waits for what never comes is ended.
    """
    before = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """The folder of reference values (FRANCA_PARITY); skips the test when it is not set."""
    return _folder("FRANCA_PARITY")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real images (FRANCA_DATA); skips the test when it is not set."""
    return _folder("FRANCA_DATA")


@pytest.fixture(scope="session")
def slurm_conf() -> Path:
    """slurm.conf of a cluster made for tests (FRANCA_SLURM); skips the test when it is not set."""
    if CLUSTER not in _PATHS:
        pytest.skip(f"{_skip_reason(CLUSTER)} (scripts/slurm_test_cluster.sh starts a cluster)")
    return _PATHS[CLUSTER]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten smooth images in each of two class folders."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (folder / label).mkdir()
        for number in range(10):
            coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            coarse.resize((40, 40), Image.Resampling.BICUBIC).save(folder / label / f"{number}.png")
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])]
    for name in (*FOLDERS, CLUSTER):
        count = sum(_skip_reason(name) in reason for reason in reasons)
        terminalreporter.write_line(f"{count} tests skipped because {_skip_reason(name)}")
