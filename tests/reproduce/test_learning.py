"""Real runs of a tiny network, judged by the command: a further seed is reproduced, a run that is broken differs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from franca.reproduce import command
from franca.reproduce.__main__ import main
from franca.train.build import claim_run_folder
from franca.train.config import load_config
from franca.train.trainer import Trainer
from tests.tiny import write_tiny

SETTINGS = (
    *("steps=40", "log.every=4", "monitor.every=0", "checkpoint.every=100000", "data.batch_size=16"),
    *("data.crops.global_size=28", "data.crops.local_size=14", "data.crops.local_count=1", "optimizer.lr=5e-3"),
)
Train = Callable[..., Path]


@pytest.fixture(scope="module")
def recipe(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its file; nothing is recorded yet."""
    return write_tiny(tmp_path_factory.mktemp("learning") / "tiny.yaml", images, *SETTINGS)


@pytest.fixture(scope="module")
def train(recipe: Path) -> Train:
    """`train(name, "seed=1", …)`: that run's folder, below the recipe's."""

    def run(name: str, *overrides: str) -> Path:
        output = recipe.parent / name
        Trainer(load_config(recipe, [*overrides, f"output={output}"])).run()
        return output

    return run


@pytest.fixture(scope="module")
def recorded(recipe: Path, train: Train) -> Path:
    """The recipe with the record of seeds 0, 1, 2."""
    for seed in range(3):
        train(f"rec-seed{seed}", f"seed={seed}")
    assert main([str(recipe), "--record", "0,1,2", f"output={recipe.parent / 'rec'}"]) == 0
    return recipe


@pytest.fixture(autouse=True)
def nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "can_draw", lambda: False)


@pytest.mark.slow
def test_a_further_seed_is_reproduced(recorded: Path, train: Train) -> None:
    assert main([str(recorded), "seed=3", f"output={train('further', 'seed=3')}"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("defect", ["optimizer.lr=1e-6", "optimizer.lr=5e-4"])
def test_a_broken_run_differs(defect: str, recorded: Path, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told what the recipe says and learns as if it had been told otherwise, as code with a defect would."""
    broken = train(f"broken-{defect}", "seed=3", defect)
    told = claim_run_folder(load_config(recorded, ["seed=3", f"output={broken}-told"]))
    shutil.copy(broken / "metrics.jsonl", told)
    assert main([str(recorded), "seed=3", f"output={told}"]) == 1
    assert "differs: tiny (seed 3) does not learn as seeds 0, 1, 2 did" in capsys.readouterr().out
