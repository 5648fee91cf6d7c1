"""optimizer.freeze_backbone_steps: heads learn alone at first, the backbone keeps every bit, then learns as well."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from franca.hub import save_teacher
from franca.train.build import build_pair, describe_teacher
from franca.train.config import TrainConfig
from franca.train.initialise import fill
from franca.train.trainer import Trainer

FROZEN, STEPS = 3, 6
OPTIONS = (
    f"optimizer.freeze_backbone_steps={FROZEN}",
    "optimizer.freeze_lr=0.05",
    "optimizer.lr=0.05",
    "optimizer.warmup_steps=0",
)


@pytest.fixture
def tiny(tiny: Callable[..., TrainConfig], tmp_path: Path) -> Callable[..., TrainConfig]:
    """The tiny run, from weights in a file."""
    config = tiny("seed=7")
    pair = build_pair(config)
    save_teacher(tmp_path / "file.pth", pair.teacher.state_dict(), describe_teacher(config, pair, 0, 0, {}))
    begins = (f"init_from={tmp_path / 'file.pth'}", "model.drop_path_rate=0.3")
    return lambda *overrides: tiny(*begins, *overrides)


def copy_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_backbone_keeps_every_bit_and_then_learns(
    accumulate: int, recompute: str, tiny: Callable[..., TrainConfig]
) -> None:
    options = (f"accumulate={accumulate}", f"parallel.activation_checkpointing={recompute}")
    trainer = Trainer(tiny(*OPTIONS, *options))
    pair, batches = trainer.pair, trainer.loader.batches()
    start = copy_of(pair)
    for step in range(1, STEPS + 1):
        trainer.step([next(batches).to("cpu") for _ in range(accumulate)])
        moved = changed(start, copy_of(pair))
        for network in ("student", "teacher"):
            backbone = {name for name in moved if name.startswith(f"{network}.backbone.")}
            assert bool(backbone) == (step > FROZEN), f"step {step}, {network}"
            assert any(name.startswith(f"{network}.ibot_head.") for name in moved)
    own = [p for name, p in pair.student.backbone.named_parameters() if "mask_token" not in name]
    assert {float(trainer.optimizer.state[p]["step"]) for p in own} == {STEPS - FROZEN}, (
        "moments begin with the backbone"
    )


def test_gradients_that_are_not_there_have_norm_0(tiny: Callable[..., TrainConfig]) -> None:
    trainer = Trainer(tiny(*OPTIONS))
    batches = trainer.loader.batches()
    for step in (1, 2, 3, 4):
        trainer.step([next(batches).to("cpu")])
        norm = trainer.meter.read()["gradient_norm/backbone"]
        assert (norm > 0) == (step > FROZEN)


@pytest.mark.parametrize("stopped_at", [2, 4])
def test_a_run_stopped_before_or_after_the_thaw_continues_bit_for_bit(
    stopped_at: int,
    train: Callable[..., Trainer],
    tiny: Callable[..., TrainConfig],
    tmp_path: Path,
    tensors_of: Callable[[Trainer], dict[str, Tensor]],
    differing: Callable[[dict[str, Tensor], dict[str, Tensor]], list[str]],
) -> None:
    whole = train(*OPTIONS, f"output={tmp_path}/whole", "checkpoint.every=1")
    first = Trainer(tiny(*OPTIONS, "checkpoint.every=1"))

    class Killed(BaseException):
        pass

    def step_or_die(batches: list[object], step: Callable[..., object] = first.step) -> object:
        if first.state.step == stopped_at:
            raise Killed
        return step(batches)

    first.step = step_or_die  # type: ignore[method-assign,assignment]
    with pytest.raises(Killed):
        first.run()
    continued = train(*OPTIONS, "checkpoint.every=1")
    assert differing(tensors_of(whole), tensors_of(continued)) == []


def test_heads_have_learned_when_the_backbone_thaws(tiny: Callable[..., TrainConfig]) -> None:
    """However slowly the run itself begins: a warm-up over nearly all that follows, to a rate that moves nothing."""
    frozen = 40
    schedule = (f"steps={2 * frozen}", f"optimizer.freeze_backbone_steps={frozen}", "optimizer.warmup_steps=39")
    slow = ("optimizer.lr=1e-7", "optimizer.freeze_last_layer_steps=39", "teacher.temperature_warmup_steps=39")
    trainer = Trainer(tiny(*schedule, *slow, "optimizer.freeze_lr=0.01", "data.batch_size=8"))
    fill(trainer.pair, trainer.start)
    batches, start, lines = trainer.loader.batches(), copy_of(trainer.pair), []
    for _ in range(frozen):
        trainer.step([next(batches).to("cpu")])
        lines.append(trainer.meter.read())
    for part in ("crop_local", "crop_global", "patch"):
        assert lines[-1][part] < 0.7 * lines[0][part], part
    moved = changed(start, copy_of(trainer.pair))
    assert any(".last_layers." in name for name in moved), "prototypes learn with the heads"
    assert not any(".backbone." in name for name in moved)
