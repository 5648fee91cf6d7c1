"""One rank hangs: every rank writes down where it stands, without asking the others."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from franca.data.batch import PretrainBatch
from franca.distributed import rank
from franca.metrics import read_metrics
from franca.train.rank_log import log_file
from tests.distributed.ranks import on_ranks
from tests.distributed.small_run import small_trainer

STEPS, HANGS_AFTER = 4, 2
PATIENCE = 90.0  # seconds


def train_with_a_hang(output: str, images: str) -> int:
    """The run of a rank. Rank 1's loader hangs until both ranks have written their stacks, then goes on."""
    trainer = small_trainer(output, images, f"steps={STEPS}", "log.hang_minutes=0.03")
    batches = trainer.loader.batches
    if rank() == 1:
        trainer.loader.batches = lambda: with_a_hang(batches(), Path(output))  # type: ignore[method-assign]
    trainer.run()
    return trainer.state.step


def with_a_hang(batches: Iterator[PretrainBatch], output: Path) -> Iterator[PretrainBatch]:
    for number, batch in enumerate(batches):
        if number == HANGS_AFTER:
            stuck_in_the_loader(output)
        yield batch


def whole_dump(text: str) -> bool:
    """Whether the stacks after that step are there; a loaded machine may have taken long for one before."""
    return "end of the stacks" in text.partition(f"the last was {HANGS_AFTER}, then: training")[2]


def stuck_in_the_loader(output: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not all(whole_dump(log_file(output, number).read_text()) for number in range(2)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_rank_that_hangs_in_its_loader_is_found_in_the_logs_of_all(tmp_path: Path, images: Path) -> None:
    output = tmp_path / "run"
    assert on_ranks(2, tmp_path, train_with_a_hang, str(output), str(images)) == [STEPS, STEPS]
    waits, hangs = (log_file(output, number).read_text() for number in range(2))
    for text in (waits, hangs):
        assert whole_dump(text)
        assert "it went on, and is at step" in text
    assert "in stuck_in_the_loader" in hangs
    assert "in stuck_in_the_loader" not in waits
    assert "torch/distributed/" in waits, "it stands in a call to the others"
    assert "WARNING: no step was completed" in waits
    assert "WARNING: no step" not in hangs, "rank 0 alone speaks"
    lines = read_metrics(output / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
