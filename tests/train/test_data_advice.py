"""Advice on waiting for data: when it is given, and what it says."""

import os
import re
from collections.abc import Callable

import pytest
import torch

from franca.data.config import DataConfig, PartConfig, cores_of_process
from franca.train import data_advice
from franca.train.data_advice import LINES, SECONDS, SHARE, DataAdvice
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


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
SRUN = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}


@pytest.mark.parametrize(
    ("variables", "allowed", "cores"),
    [
        ({}, 16, 16),
        ({"RANK": "0", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", **TORCHRUN}, 16, 4),
        ({"RANK": "0", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", **TORCHRUN}, 4, 1),
        ({**SRUN, "SLURM_CPUS_PER_TASK": "16"}, 16, 16),
        (SRUN, 16, 4),
        ({**SRUN, "SLURM_CPUS_PER_TASK": "4"}, 16, 4),
        ({"RANK": "0", "WORLD_SIZE": "4", **TORCHRUN, "SLURM_PROCID": "0", "SLURM_CPUS_PER_TASK": "16"}, 16, 4),
        ({"RANK": "0", "WORLD_SIZE": "4"}, 16, 16),
    ],
)
def test_processes_share_the_cores_that_they_have_in_common(
    variables: dict[str, str], allowed: int, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Advice and default agree on it, and leave one of them to the training."""
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    assert cores_of_process() == cores
    assert DataConfig().workers == min(cores - 1, 8)
    assert DataAdvice.for_device(DataConfig(), torch.device("xpu")).cores == cores


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
