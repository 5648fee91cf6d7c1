"""Commands let torch's threads sleep where they wait, unless the user says otherwise."""

import importlib
import os
import sys
from types import SimpleNamespace

import pytest

from franca.openmp import sleep_while_waiting

POLICY = "OMP_WAIT_POLICY"


@pytest.fixture
def before_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process; what is set is taken back."""
    monkeypatch.setenv(POLICY, "")
    monkeypatch.delenv(POLICY)
    monkeypatch.delitem(sys.modules, "torch", raising=False)


@pytest.mark.parametrize("command", ["train", "eval"])
def test_commands_say_so_before_they_bring_torch(
    command: str, before_torch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = importlib.import_module(f"franca.{command}.__main__").main
    found: list[str | None] = []

    def run(_: object) -> int:
        found.append(os.environ.get(POLICY))
        return 0

    monkeypatch.setitem(sys.modules, f"franca.{command}.command", SimpleNamespace(run=run))
    assert main({"train": [], "eval": ["knn", "--model", "pixels", "--data", "x"]}[command]) == 0
    assert found == ["PASSIVE"]


def test_what_the_user_set_stays(before_torch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POLICY, "ACTIVE")
    sleep_while_waiting()
    assert os.environ[POLICY] == "ACTIVE"


def test_a_program_that_has_torch_keeps_its_environment(before_torch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    sleep_while_waiting()
    assert POLICY not in os.environ
