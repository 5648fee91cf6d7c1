"""On real images a short run of the shipped recipe learns something; that it learns much is measured in training.md."""

from pathlib import Path

import pytest

from franca.eval.figures.curves import uniform_losses
from franca.metrics import read_metrics
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


@pytest.fixture
def real_images(data_dir: Path) -> Path:
    """A training folder with a subfolder per class."""
    folders = [f / "train" for f in sorted(data_dir.iterdir()) if (f / "train").is_dir()]
    return next(folder for folder in folders if sum(child.is_dir() for child in folder.iterdir()) > 1)


@pytest.mark.slow
def test_the_student_predicts_the_teacher_better_than_a_guess(real_images: Path, tmp_path: Path) -> None:
    """Sinkhorn balances the teacher's answers, so whoever knows nothing of the image pays log K at every level."""
    config = load_config(RECIPE, [f"data.path={real_images}", f"output={tmp_path / 'run'}", *SMALL])
    trainer = Trainer(config)
    trainer.run()
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    counts = {head: getattr(trainer.pair.student, head).prototypes for head in ("dino_head", "ibot_head")}
    uniform = uniform_losses(counts, config.data.crops.local_count, config.data.mask.probability)
    for term, value in uniform.items():
        assert lines[-1][term] < 0.99 * value < lines[0][term], f"{term}: {lines[0][term]} -> {lines[-1][term]}"
    readings = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "verdict" in line]
    assert max(readings[-1][f"assignment_information/{level}"] for level in range(5)) > 0.05
    assert not readings[-1]["complaint"]
