"""`torchrun … -m franca.train`: real images, real launcher; two processes equal one that accumulates two batches."""

import shutil
from pathlib import Path

import pytest

from franca.metrics import read_metrics
from franca.train.__main__ import main
from franca.train.rank_log import log_file
from tests.distributed.small_run import SMALL
from tests.warm import Command, captured

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4


@pytest.fixture
def arguments(images: Path) -> list[str]:
    """The small run on image files. KoLeo looks within a micro-batch, as two processes and accumulation both do."""
    options = (f"data.path={images}", "data.batch_size=4", f"steps={STEPS}", "checkpoint.every=2", "device=cpu")
    return [*SMALL, *options, "objective.koleo_over=rank", "parallel.strategy=shard", "evaluation.every=4"]


@pytest.mark.slow
def test_two_processes_equal_one_that_accumulates(arguments: list[str], tmp_path: Path) -> None:
    arguments += ["evaluation.image_size=56", "evaluation.ks=[3]"]
    launcher = ["--standalone", "--nproc-per-node", "2", "-m", "franca.train"]
    done = captured(
        Command("torch.distributed.run", [*launcher, *arguments, f"output={tmp_path / 'two'}"]), folder=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 2 × cpu (shard)" in done.stdout
    assert done.stdout.count("done: 4 steps") == 1, "rank 0 alone speaks"
    for number in range(2):
        assert f"rank {number} of 2, process " in log_file(tmp_path / "two", number).read_text()
    half = shutil.copytree(tmp_path / "two", tmp_path / "half")
    shutil.rmtree(half / "checkpoints" / f"step_{STEPS:07d}")
    for folder in (tmp_path / "one", half):  # `half` goes on from step 2, which two processes saved
        assert main([*arguments, "accumulate=2", f"output={folder}"]) == 0
    expected = read_metrics(tmp_path / "one" / "metrics.jsonl")
    for folder in (tmp_path / "two", half):
        found = read_metrics(folder / "metrics.jsonl")
        assert [line["step"] for line in found] == [line["step"] for line in expected]
        for line, other in zip(found, expected, strict=True):
            assert line.keys() == other.keys()
            if "loss" in line:
                assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
                assert line["images"] == other["images"]


def test_batches_may_be_cut_another_way_but_not_have_another_size(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*arguments, f"output={tmp_path / 'run'}", "evaluation.every=0"]
    assert main([*command, "accumulate=2", "steps=3"]) == 0
    assert main([*command, "data.batch_size=8", "steps=3"]) == 0
    assert main([*command, "steps=3"]) == 2
    assert "effective batch: there 8, here 4" in capsys.readouterr().err
