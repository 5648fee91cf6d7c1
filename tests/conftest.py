"""What all tests share: the folders of reference values and images, and the count of tests that lacked them."""

import os
from pathlib import Path

import pytest

FOLDERS = ("FRANCA_PARITY", "FRANCA_DATA")
# Resolved once, at the start: a test may change the working directory.
_PATHS = {name: Path(os.environ[name]).resolve() for name in FOLDERS if os.environ.get(name)}


def _skip_reason(name: str) -> str:
    return f"{name} is not set"


def _folder(name: str) -> Path:
    if name not in _PATHS:
        pytest.skip(_skip_reason(name))
    if not _PATHS[name].is_dir():
        pytest.fail(f"{name} names {_PATHS[name]}, which is not a folder: correct it, or unset it to skip these tests")
    return _PATHS[name]


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """The folder of reference values (FRANCA_PARITY); skips the test when it is not set."""
    return _folder("FRANCA_PARITY")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real images (FRANCA_DATA); skips the test when it is not set."""
    return _folder("FRANCA_DATA")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])]
    for name in FOLDERS:
        count = sum(_skip_reason(name) in reason for reason in reasons)
        terminalreporter.write_line(f"{count} tests skipped because {_skip_reason(name)}")
