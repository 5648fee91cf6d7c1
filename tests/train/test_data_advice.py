"""Advice on waiting for data: when it is given, and what it says."""

import os
import re
from collections.abc import Callable

import pytest
import torch

from franca.data.config import DataConfig, PartConfig
from franca.train import data_advice
from franca.train.data_advice import LINES, SECONDS, SHARE, DataAdvice, cores_of_process
from franca.train.trainer import Trainer

MUCH, LITTLE = SHARE + 0.1, SHARE - 0.1


def advice(workers: int = 2, cores: int = 8, busy: int = 1, **options: object) -> DataAdvice:
    return DataAdvice(DataConfig(workers=workers, **options), cores, busy)  # type: ignore[arg-type]


def lines_until_heard(watched: DataAdvice, seconds: float, most: int = 50) -> int:
    return next(number for number in range(1, most) if watched.heed(MUCH, seconds))


def test_it_is_given_once_waiting_lasts_several_lines_and_some_time() -> None:
    assert lines_until_heard(advice(), seconds=100.0) == LINES
    assert lines_until_heard(advice(), seconds=SECONDS / 10) == 10


def test_it_is_given_once() -> None:
    watched = advice()
    heard = [watched.heed(MUCH, SECONDS) for _ in range(20)]
    assert sum(map(bool, heard)) == 1


def test_waiting_now_and_then_is_none() -> None:
    watched = advice()
    for share in (MUCH, MUCH, LITTLE) * 5:
        assert watched.heed(share, SECONDS) == ""


@pytest.mark.parametrize(
    ("watched", "words"),
    [
        (advice(workers=0), r"data\.workers=0 prepares images between the steps: set data\.workers=7$"),
        (advice(workers=0, cores=1), r"set data\.workers=1$"),
        (advice(workers=2), r"Set data\.workers=7: it is 2, and each process has 8 cores$"),
        (advice(workers=16), r"data\.workers=16 on 8 cores for each process .* set 7$"),
        (advice(workers=7), r"More workers would not help.* smaller.*faster or local disk, or pack them into shards$"),
        (advice(workers=1, cores=2, busy=2), r"More workers would not help"),
        (advice(workers=7, source="shards", path="x.tar"), r"keep the shards on a faster or local disk$"),
        (advice(workers=7, source="mixture", parts=[PartConfig()]), r"or pack them into shards$"),
    ],
)
def test_it_names_what_to_change(watched: DataAdvice, words: str) -> None:
    assert re.search(words, watched.sentence())


def test_following_it_changes_it() -> None:
    first = advice(workers=2)
    wanted = int(re.findall(r"data\.workers=(\d+)", first.sentence())[0])
    assert "More workers would not help" in advice(workers=wanted).sentence()


def test_the_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(data_advice, "local_world_size", lambda: 8)
    assert cores_of_process() == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert cores_of_process() == 6, "a scheduler gave this process six of its own"
    monkeypatch.setattr(data_advice, "local_world_size", lambda: 128)
    assert cores_of_process() == 1


def test_a_cpu_that_trains_has_fewer_cores_to_spare() -> None:
    config = DataConfig(workers=0)
    by_device = DataAdvice.for_device(config, torch.device("xpu"))
    assert by_device.room == max(by_device.cores - 1, 1)
    assert DataAdvice.for_device(config, torch.device("cpu")).room == max(by_device.cores - torch.get_num_threads(), 1)


def test_a_run_that_waits_says_so_once(
    train: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data_advice, "SHARE", 0.0)
    monkeypatch.setattr(data_advice, "SECONDS", 0.0)
    train("steps=6", "monitor.every=0", "checkpoint.every=6")
    found = re.findall(
        r"WARNING: \d+% of the time is spent waiting for data\. data\.workers=0 .*", capsys.readouterr().out
    )
    assert len(found) == 1
