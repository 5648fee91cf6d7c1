"""On real images a short run of the shipped recipe learns something; that it learns much is measured in training.md."""

from pathlib import Path
from typing import Any

import pytest

from franca.eval.figures.curves import uniform_losses
from franca.hub import save_teacher
from franca.metrics import read_metrics
from franca.train.build import describe_teacher
from franca.train.config import load_config
from franca.train.trainer import Trainer

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "recipes" / "imagenette_cpu.yaml"
SMALL = [
    "steps=60",
    "log.every=20",
    "precision=fp32",
    "optimizer.warmup_steps=20",
    "evaluation.every=0",
    "monitor.every=20",
    "model.embed_dim=96",
    "model.depth=3",
    "model.num_heads=3",
    "heads.hidden_dim=128",
    "heads.dino.prototypes=64",
    "heads.ibot.prototypes=64",
    "data.batch_size=32",
    "data.crops.global_size=56",
    "data.crops.local_size=28",
]


@pytest.fixture(scope="module")
def real_images(data_dir: Path) -> Path:
    """A training folder with a subfolder per class."""
    folders = [f / "train" for f in sorted(data_dir.iterdir()) if (f / "train").is_dir()]
    return next(folder for folder in folders if sum(child.is_dir() for child in folder.iterdir()) > 1)


def train(output: Path, images: Path, *overrides: str) -> Trainer:
    trainer = Trainer(load_config(RECIPE, [f"data.path={images}", f"output={output}", *SMALL, *overrides]))
    trainer.run()
    return trainer


@pytest.fixture(scope="module")
def trained(real_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A short run from scratch."""
    return train(tmp_path_factory.mktemp("learning") / "run", real_images)


def losses(trainer: Trainer) -> list[dict[str, Any]]:
    return [line for line in read_metrics(trainer.output / "metrics.jsonl") if "loss" in line]


def guesses(trainer: Trainer) -> dict[str, float]:
    """What whoever knows nothing of the image pays: log K at every level, for Sinkhorn balances the answers."""
    counts = {head: getattr(trainer.pair.student, head).prototypes for head in ("dino_head", "ibot_head")}
    data = trainer.config.data
    return uniform_losses(counts, data.crops.local_count, data.mask.probability)


@pytest.mark.slow
def test_the_student_predicts_the_teacher_better_than_a_guess(trained: Trainer) -> None:
    lines = losses(trained)
    for term, value in guesses(trained).items():
        assert lines[-1][term] < 0.99 * value < lines[0][term], f"{term}: {lines[0][term]} -> {lines[-1][term]}"
    readings = [line for line in read_metrics(trained.output / "metrics.jsonl") if "verdict" in line]
    assert max(readings[-1][f"assignment_information/{level}"] for level in range(5)) > 0.05
    assert not readings[-1]["complaint"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [56, 84])
def test_a_run_that_begins_with_a_trained_file_keeps_what_it_knows(
    size: int, trained: Trainer, real_images: Path, tmp_path: Path
) -> None:
    """From its first steps on it has most of what the first run gained, at a larger resolution too, and keeps it.

    The file holds the student: the teacher of so short a run is half of what it began as.
    """
    description = describe_teacher(trained.config, trained.pair, 60, 60 * 32, {})
    save_teacher(tmp_path / "trained.pth", trained.pair.student.state_dict(), description)
    options = (f"init_from={tmp_path / 'trained.pth'}", "init_heads=loaded", f"data.crops.global_size={size}", "seed=1")
    short = ("steps=10", "log.every=5", "optimizer.warmup_steps=2", "monitor.every=0", "optimizer.lr=1e-4")
    continued = losses(train(tmp_path / "continued", real_images, *options, *short))
    start, end = losses(trained)[0], losses(trained)[-1]
    for term, guess in guesses(trained).items():
        for line in continued:
            gain = (start[term] - line[term]) / (start[term] - end[term])
            assert line[term] < guess, f"{term} at step {line['step']}: {line[term]}, a guess {guess}"
            assert gain > 0.5, f"{term} at step {line['step']}: {start[term]} -> {end[term]} -> {line[term]}"
