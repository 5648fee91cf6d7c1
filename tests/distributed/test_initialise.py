"""Several processes begin with the same weights from a file as one, sharded or not, and freeze the backbone alike."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from franca.config import ConfigError
from franca.distributed import is_main, world_size
from franca.hub import load_model
from franca.train.initialise import fill
from franca.train.parallel import whole_state
from tests.distributed.ranks import on_ranks
from tests.distributed.small_run import small_trainer

FROZEN, STEPS = 2, 5
SIDE = 56  # pixels, of the run that comes first
LATER = f"optimizer.freeze_backbone_steps={FROZEN}"
STRATEGIES = ("parallel.strategy=replicate", "parallel.strategy=shard")
Outcome = dict[str, Tensor]


def first_run(folder: str, images: str) -> Outcome:
    torch.set_default_dtype(torch.float64)
    small_trainer(folder, images, "steps=3", "checkpoint.every=3").run()
    return {}


def begin_and_train(folder: str, images: str, earlier: str) -> list[dict[str, Outcome]]:
    """Both networks at the start, after the frozen steps, at the end, and at the start of a run on a larger grid; for
    every strategy and both kinds of heads."""
    torch.set_default_dtype(torch.float64)
    found = []
    for strategy in STRATEGIES:
        for heads in ("new", "loaded"):
            # what other ranks can't read must not matter
            path = earlier if is_main() else os.path.join(folder, "not here")
            options = (LATER, strategy, f"init_from={path}", f"init_heads={heads}", f"steps={STEPS}")
            trainer = small_trainer(f"{folder}/{world_size()}{strategy}{heads}", images, *options)
            fill(trainer.pair, trainer.start)
            states = {"start": whole_state(trainer.pair)}
            batches = trainer.loader.batches()
            for step in range(STEPS):
                trainer.step([next(batches)])
                if step + 1 == FROZEN:
                    states["frozen"] = whole_state(trainer.pair)
            states["end"] = whole_state(trainer.pair)
            larger = small_trainer(f"{folder}/{world_size()}{strategy}{heads}84", images, *options, "model.img_size=84")
            fill(larger.pair, larger.start)
            found.append(states | {"larger": whole_state(larger.pair)})
    return found


@pytest.mark.slow
def test_two_processes_begin_as_one(images: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier"
    on_ranks(1, tmp_path / "first", first_run, str(earlier), str(images))
    (one,) = on_ranks(1, tmp_path / "one", begin_and_train, str(tmp_path), str(images), str(earlier))
    two, _ = on_ranks(2, tmp_path / "two", begin_and_train, str(tmp_path), str(images), str(earlier))
    model = load_model(checkpoint=earlier)
    expected = {"start": model.state_dict(), "frozen": model.state_dict()}
    model.set_resolution(84)
    expected["larger"] = model.state_dict()
    for alone, together in zip(one, two, strict=True):
        for outcome in (alone, together):
            for moment, state in expected.items():
                for name, tensor in state.items():
                    for network in ("student", "teacher"):
                        found = outcome[moment][f"{network}.backbone.{name}"]
                        assert torch.allclose(found.float(), tensor, rtol=0, atol=1e-7), (moment, name)
                        if moment == "frozen":
                            assert torch.equal(found, outcome["start"][f"{network}.backbone.{name}"]), name
        for moment in ("start", "frozen", "end"):
            assert alone[moment].keys() == together[moment].keys()
            for name, tensor in alone[moment].items():
                assert torch.allclose(together[moment][name], tensor, rtol=0, atol=1e-8), (moment, name)
        moved = [name for name in alone["end"] if not torch.equal(alone["end"][name], alone["frozen"][name])]
        assert any(name.startswith("student.backbone.blocks") for name in moved)


def misfit(folder: str, images: str, earlier: str) -> str:
    with pytest.raises(ConfigError) as caught:
        small_trainer(f"{folder}/run", images, f"init_from={earlier}", "model.num_heads=4")
    return str(caught.value)


@pytest.mark.slow
def test_every_process_ends_with_the_reason(images: Path, tmp_path: Path) -> None:
    on_ranks(1, tmp_path / "first", first_run, str(tmp_path / "earlier"), str(images))
    said = on_ranks(2, tmp_path / "two", misfit, str(tmp_path), str(images), str(tmp_path / "earlier"))
    assert all("To begin with that file set model.num_heads=2" in text for text in said)
