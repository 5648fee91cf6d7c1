"""The estimate before a run: its memory against what a real step allocates, its sums, and what it says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from franca.config import ConfigError
from franca.data.batch import Crops, PretrainBatch, Sample, collate
from franca.objective import PretrainingObjective
from franca.peaks import PEAKS
from franca.train.__main__ import main
from franca.train.build import build_pair
from franca.train.config import TrainConfig, load_config
from franca.train.estimate import Estimate, batch_shape, estimate, report
from franca.train.optimizer import build_optimizer, clip_gradients, step_if_finite
from franca.train.parallel import prepare_block
from franca.train.quantities import PARTS

ROOT = Path(__file__).resolve().parents[2]
# In the first the backbone takes most of the memory, in the second prototypes and logits do.
BACKBONE = [
    *("model.arch=vit_tiny", "model.depth=4", "precision=fp32", "data.batch_size=4", "optimizer.warmup_steps=0"),
    *("data.crops.global_size=112", "data.crops.local_size=56", "data.crops.local_count=4", "heads.hidden_dim=128"),
    *("heads.dino.prototypes=256", "heads.ibot.prototypes=256"),
]
SCORES = [*BACKBONE, "heads.dino.prototypes=8192", "heads.ibot.prototypes=8192", "heads.ibot.bottleneck_dim=32"]


def shipped(name: str, *overrides: str) -> TrainConfig:
    return load_config(ROOT / "configs" / "pretrain" / f"{name}.yaml", list(overrides))


def random_batch(config: TrainConfig) -> PretrainBatch:
    crops, patch = config.data.crops, config.model.patch_size
    samples = [
        Sample(
            Crops(
                [torch.randn(3, crops.global_size, crops.global_size) for _ in range(2)],
                [torch.randn(3, crops.local_size, crops.local_size) for _ in range(crops.local_count)],
            ),
            number,
        )
        for number in range(config.data.batch_size)
    ]
    mask = config.data.mask.build((crops.global_size // patch,) * 2)
    return collate(samples, mask, config.data.mask, torch.Generator().manual_seed(0))


def half_where_asked(config: TrainConfig) -> torch.autocast:
    """As the trainer computes on accelerators, where attention is fused in bf16 too."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.precision == "bf16")


def one_step(config: TrainConfig) -> None:
    """What the trainer does in a step, from building the networks on."""
    pair = build_pair(config).train()
    for block in pair.student.backbone.blocks:
        prepare_block(block, config.parallel, learns=True)
    objective = PretrainingObjective(pair, config.objective)
    optimizer = build_optimizer(pair.student, len(pair.student.backbone.blocks), config.optimizer)
    batches = [random_batch(config) for _ in range(config.accumulate)]
    with half_where_asked(config):
        targets = objective.assign(batches, 0.07)
    for batch, target in zip(batches, targets, strict=True):
        with half_where_asked(config):
            loss = objective.student_loss(batch, target).total
        loss.backward()
    clip_gradients([getattr(pair.student, part) for part in PARTS], 3.0)
    step_if_finite(optimizer, torch.tensor(True))
    optimizer.zero_grad(set_to_none=True)
    pair.update_teacher(0.99)


def peak_of_one_step(config: TrainConfig, folder: Path) -> int:
    """Bytes: the most that torch's CPU allocator held at any moment of a step, as its profiler saw it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        one_step(config)
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    memory = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    held = [event["args"]["Total Allocated"] for event in memory]
    return max(held) - (held[0] - memory[0]["args"]["Bytes"])  # earlier tests count too


@pytest.mark.parametrize(
    "overrides",
    [
        BACKBONE,
        [*BACKBONE, "model.drop_path_rate=0.4", "model.ffn=mlp"],
        [*BACKBONE, "parallel.activation_checkpointing=full"],
        [*BACKBONE, "parallel.activation_checkpointing=selective"],
        SCORES,
        [*SCORES, "accumulate=2"],
        [*BACKBONE, "precision=bf16"],
        [*SCORES, "precision=bf16"],
    ],
    ids=["backbone", "mlp", "full", "selective", "scores", "accumulated", "backbone, bf16", "scores, bf16"],
)
def test_memory_is_what_a_real_step_allocates(overrides: list[str], tmp_path: Path) -> None:
    config = load_config(None, [*overrides, "device=cpu"])
    assert estimate(config).memory.peak == pytest.approx(peak_of_one_step(config, tmp_path), rel=0.15)


def test_the_masked_rows_are_those_of_a_batch() -> None:
    config = load_config(None, BACKBONE)
    shape = batch_shape(config, build_pair(config).student)
    batch = random_batch(config)
    assert shape.masked_rows == len(batch.mask_indices)
    assert shape.global_crops == (len(batch.global_crops), batch.global_crops.shape[-1])
    assert batch.local_crops is not None
    assert shape.crops[1] == (len(batch.local_crops), batch.local_crops.shape[-1])


def on_h100(config: TrainConfig, devices: int, utilisation: float = 0.3) -> Estimate:
    return estimate(config, devices, "H100", utilisation)


def test_hours_follow_from_work_peak_and_utilisation() -> None:
    """The published B run, 15 to 19 % of the peak, took 1,504 device hours with a short second stage."""
    config = shipped("vitb14_in21k")
    result = on_h100(config, 32, 0.15)
    assert result.seconds == result.flops.model / (PEAKS["H100"].bf16 * 1e12 * 0.15)
    assert result.hours == pytest.approx(result.seconds * 625_000 / 3600)
    assert result.hours * 32 == pytest.approx(1504, rel=0.1)
    assert on_h100(config, 32, 0.3).hours == pytest.approx(result.hours / 2)
    assert f"  {result.hours:,.1f} hours, 1," in report(result)
    short = on_h100(shipped("vitb14_in21k", "steps=100", "optimizer.warmup_steps=10"), 32)
    assert f"  {60 * short.hours:.2g} minutes, {32 * short.hours:.2g} device hours" in report(short)
    assert result.config.effective_batch == 2048


def test_steps_of_heads_alone_take_less_and_are_said() -> None:
    """A backbone that keeps still goes forward only: a third of its student's work, and all of its teacher's."""
    frozen = [f"{name}=1000" for name in ("optimizer.freeze_backbone_steps", "optimizer.warmup_steps")]
    options = ["init_from=weights.pth", "steps=4000", "optimizer.warmup_steps=1000"]
    plain, result = (on_h100(shipped("vitb14_in21k", *options, *more), 32, 0.3) for more in ([], frozen))
    assert result.alone.student == result.flops.student
    assert result.seconds_alone < 0.6 * result.seconds
    assert result.hours == pytest.approx((1000 * result.seconds_alone + 3000 * plain.seconds) / 3600)
    assert "each of 1,000 of heads alone" in report(result)
    assert "heads alone" not in report(plain)


def test_sharding_divides_what_lasts_and_nothing_else() -> None:
    copies, shards = (
        on_h100(shipped("vitl14_in21k", f"parallel.strategy={strategy}"), 64).memory
        for strategy in ("replicate", "shard")
    )
    assert shards.moments == copies.moments / 64
    assert shards.student == copies.student / 64
    assert (shards.backbone, shards.scores) == (copies.backbone, copies.scores)
    assert shards.peak < copies.peak


def test_recomputation_trades_memory_for_work() -> None:
    runs = [
        on_h100(shipped("vitl14_in21k", f"parallel.activation_checkpointing={kind}"), 64)
        for kind in ("none", "selective", "full")
    ]
    memory = [run.memory.backbone for run in runs]
    executed = [run.flops.executed for run in runs]
    assert memory == sorted(memory, reverse=True)
    assert len(set(memory)) == 3
    assert executed[0] == executed[1] < executed[2]
    assert len({run.flops.model for run in runs}) == 1


def test_fp32_takes_more_memory_and_the_plain_units() -> None:
    half, whole = (on_h100(shipped("vitb14_in21k", f"precision={kind}"), 32) for kind in ("bf16", "fp32"))
    assert half.bf16
    assert not whole.bf16
    assert whole.memory.backbone > 1.5 * half.memory.backbone
    assert whole.seconds / half.seconds == pytest.approx(PEAKS["H100"].bf16 / PEAKS["H100"].fp32)
    assert not estimate(shipped("vitb14_in21k"), 1, "V100").bf16


def test_what_does_not_fit_is_said_with_ways_out() -> None:
    result = on_h100(shipped("vitg14_in21k", "data.batch_size=96"), 16)
    assert result.fits is False
    page = report(result)
    assert "DOES NOT FIT" in page
    assert "parallel.activation_checkpointing=full" in page
    fitting = on_h100(shipped("vitb14_in21k", "data.batch_size=8"), 16)
    assert fitting.fits
    assert "fits" in report(fitting)
    assert "DOES NOT" not in report(fitting)


def test_an_unknown_device_is_measured_and_said_to_be() -> None:
    result = estimate(load_config(None, [*BACKBONE, "device=cpu"]))
    assert result.fits is None
    assert result.capacity is None
    assert "was measured" in report(result)
    assert "was measured" not in report(replace(result, device="H100"))


@pytest.mark.parametrize(("devices", "name", "share"), [(-1, "H100", 0.3), (1, "H9000", 0.3), (1, "H100", 1.2)])
def test_what_can_not_be_estimated_is_refused(devices: int, name: str, share: float) -> None:
    with pytest.raises(ConfigError, match=f"{name if name != 'H100' else devices}"):
        estimate(load_config(None, BACKBONE), devices, name, share)


def test_the_configured_number_of_processes_counts_unless_told() -> None:
    assert estimate(load_config(None, [*BACKBONE, "world_size=4"]), device_name="H100").devices == 4
    assert estimate(load_config(None, BACKBONE), device_name="H100").devices == 1


def test_a_number_of_processes_that_the_run_refuses_is_refused() -> None:
    with pytest.raises(ConfigError, match="world_size=4"):
        estimate(load_config(None, [*BACKBONE, "world_size=4"]), 2, "H100")


def test_the_command_prints_it_and_does_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = [*BACKBONE, f"output={tmp_path / 'run'}", "data.path=/no/such/folder"]
    options = ["--estimate", "--devices", "8", "--device-name", "a100", "--utilisation", "0.25"]
    assert main([*config, *options]) == 0
    assert capsys.readouterr().out.strip() == report(estimate(load_config(None, config), 8, "a100", 0.25))
    assert main([*config, "--estimate", "--device-name", "nothing"]) == 2
    assert "'nothing'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
