"""What a step does, what is logged of it, and on which device."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from franca.config import ConfigError
from franca.data.batch import PretrainBatch
from franca.devices import choose_device, choose_precision, compute_in
from franca.train.config import TrainConfig
from franca.train.quantities import LEVELLED, TERMS
from franca.train.trainer import Trainer
from tests.computed import Computed

close = pytest.approx


def half_of(batch: PretrainBatch, first: bool) -> PretrainBatch:
    """The first or last half of the images, with the masks they have in the whole batch."""
    images, n_patches = batch.n_images // 2, batch.masks.shape[1]

    def images_of(crops: Tensor) -> Tensor:
        """Half of the images of every crop: (n * B, ...) -> (n * B / 2, ...)."""
        by_crop = crops.unflatten(0, (-1, batch.n_images))
        return (by_crop[:, :images] if first else by_crop[:, images:]).flatten(0, 1)

    masks = images_of(batch.masks)
    found = masks.flatten().nonzero().squeeze(1)
    weights = (1.0 / masks.sum(dim=1))[found // n_patches]
    assert batch.local_crops is not None
    return PretrainBatch(
        global_crops=images_of(batch.global_crops),
        local_crops=images_of(batch.local_crops),
        masks=masks,
        mask_indices=found,
        mask_weights=weights,
        mask_valid=torch.ones(len(found), dtype=torch.bool),
        n_images=images,
    )


def test_two_accumulated_batches_are_one_batch_of_twice_the_size(tiny: Callable[..., TrainConfig]) -> None:
    """Losses, gradients and thus the step: KoLeo alone compares within a micro-batch."""
    options = ("objective.koleo_weight=0", "optimizer.warmup_steps=0", "optimizer.freeze_last_layer_steps=0")
    whole = Trainer(tiny(*options, "data.batch_size=8"))
    parts = Trainer(tiny(*options, "data.batch_size=8"))
    batch = next(whole.loader.batches()).to("cpu")
    whole.step([batch])
    parts.step([half_of(batch, first=True), half_of(batch, first=False)])
    theirs, ours = whole.meter.read(), parts.meter.read()
    for name in theirs:
        assert ours[name] == close(theirs[name], rel=2e-4), name
    moments = [
        [trainer.optimizer.state[p]["exp_avg"] for p in trainer.pair.student.parameters()] for trainer in (whole, parts)
    ]
    for expected, found in zip(*moments, strict=True):
        assert (found - expected).norm() <= 1e-3 * expected.norm() + 1e-9


def test_one_line_per_logged_step_with_what_was_optimised(
    train: Callable[..., Trainer], lines_of: Callable[[Path], list[dict[str, Any]]], tmp_path: Path
) -> None:
    trainer = train("steps=6", "log.every=2", "accumulate=2", "monitor.every=0")
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [2, 4, 6]
    schedules = trainer.config.schedules()
    for line in lines:
        assert line["images"] == line["step"] * 8
        assert line["loss"] == close(sum(line[term] for term in TERMS), rel=1e-5)
        for term in LEVELLED:
            assert line[term] == close(sum(line[f"{term}/{level}"] for level in range(3)), rel=1e-5)
        for field in fields(schedules(0)):
            assert line[field.name] == getattr(schedules(line["step"] - 1), field.name)
        assert line["skipped_files"] == 0


def test_a_line_holds_the_mean_since_the_last_line(
    train: Callable[..., Trainer], lines_of: Callable[[Path], list[dict[str, Any]]], tmp_path: Path
) -> None:
    train("steps=4", f"output={tmp_path / 'a'}", "monitor.every=0")
    train("steps=4", f"output={tmp_path / 'b'}", "monitor.every=0", "log.every=4")
    single, (mean,) = lines_of(tmp_path / "a"), lines_of(tmp_path / "b")
    for name in ("loss", "patch", "crop_local/1", "gradient_norm/dino_head"):
        assert mean[name] == close(sum(line[name] for line in single) / 4, rel=1e-5)


def test_the_teacher_is_the_moving_average(tiny: Callable[..., TrainConfig]) -> None:
    trainer = Trainer(tiny("teacher.momentum=0.75", "teacher.momentum_end=0.75", "optimizer.warmup_steps=0"))
    before = {name: p.clone() for name, p in trainer.pair.teacher.named_parameters()}
    trainer.step([next(trainer.loader.batches()).to("cpu")])
    student = dict(trainer.pair.student.named_parameters())
    for name, average in trainer.pair.teacher.named_parameters():
        torch.testing.assert_close(average, 0.75 * before[name] + 0.25 * student[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("every", "expected"), [(0, []), (2, [2, 4, 5]), (5, [5])])
def test_evaluation_runs_when_due_and_at_the_end(
    every: int,
    expected: list[int],
    tiny: Callable[..., TrainConfig],
    lines_of: Callable[[Path], list[dict[str, Any]]],
) -> None:
    seen: list[nn.Module] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        seen.append(model)
        return {"knn_cls@20": 50.0 + len(seen)}

    trainer = Trainer(tiny("steps=5", f"evaluation.every={every}", "evaluation.image_size=56"), evaluate)
    trainer.run()
    scored = [(line["step"], line["knn_cls@20"]) for line in lines_of(trainer.output) if "knn_cls@20" in line]
    assert scored == [(step, 51.0 + number) for number, step in enumerate(expected)]
    assert all(model is trainer.pair.teacher.backbone for model in seen)


def test_looking_changes_nothing(
    tiny: Callable[..., TrainConfig],
    tensors_of: Callable[[Trainer], dict[str, Tensor]],
    differing: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    """Evaluation, monitor, log and checkpoints, however often, leave the training as it is."""

    def evaluate(_: nn.Module) -> dict[str, float]:
        return {"score": float(torch.rand(()))}

    rare = ("log.every=9", "monitor.every=0", "checkpoint.every=9")
    often = ("log.every=1", "monitor.every=1", "checkpoint.every=1", "evaluation.every=1", "evaluation.image_size=56")
    first, second = (
        Trainer(tiny(f"output={tmp_path / name}", "steps=4", "model.drop_path_rate=0.3", *options), evaluate)
        for name, options in (("rare", rare), ("often", often))
    )
    first.run()
    second.run()
    parts = {name.split(".")[0] for name in differing(tensors_of(first), tensors_of(second))}
    assert parts <= {"meter"}, "the sums since the last line"


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_an_error_of_the_configuration(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"device='{name}' can't be used here .*; try auto"):
        choose_device(name)


def test_devices_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert choose_device("auto") == (accelerator or torch.device("cpu"))


def test_precisions_by_name() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) is None
    assert choose_precision("bf16", cpu) is torch.bfloat16
    assert choose_precision("auto", cpu) in (None, torch.bfloat16)


def test_autocast_computes_in_the_chosen_type() -> None:
    layer, rows = nn.Linear(4, 4), torch.randn(2, 4)
    for precision, dtype in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        with compute_in(precision, torch.device("cpu")):
            assert layer(rows).dtype == dtype


def test_attention_is_fused_on_a_cpu_where_no_gradient_is_asked_for() -> None:
    """In bf16 the fused kernel is the slower one with its backward pass, and the quicker one without."""
    query = torch.randn(1, 2, 5, 8, dtype=torch.bfloat16)
    fused = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    for asked in (True, False):
        with torch.set_grad_enabled(asked), compute_in(torch.bfloat16, torch.device("cpu")), Computed() as computed:
            scaled_dot_product_attention(query, query, query)
        assert (fused in computed.names) == (not asked)


def test_bf16_trains_close_to_fp32_and_keeps_its_state_in_fp32(
    train: Callable[..., Trainer],
    tensors_of: Callable[[Trainer], dict[str, Tensor]],
    lines_of: Callable[[Path], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    options = ("steps=3", "heads.hidden_dim=64", "optimizer.lr=1e-4", "monitor.every=0")
    for precision in ("fp32", "bf16"):
        trainer = train(f"output={tmp_path / precision}", f"precision={precision}", *options)
    assert {t.dtype for t in tensors_of(trainer).values() if t.is_floating_point()} == {torch.float32}
    exact, rough = (lines_of(tmp_path / name) for name in ("fp32", "bf16"))
    for one, other in zip(exact, rough, strict=True):
        assert other["loss"] == close(one["loss"], rel=0.02)
    assert [line["loss"] for line in exact] != [line["loss"] for line in rough]


def test_broken_files_are_counted_in_every_line_also_after_a_resume(
    tiny: Callable[..., TrainConfig], lines_of: Callable[[Path], list[dict[str, Any]]], images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in (images / "cats").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "broken.png").write_bytes(b"no image")
    options = ("steps=8", f"data.path={folder}", "data.max_broken_share=0.5", "monitor.every=0", "checkpoint.every=4")

    def counts(name: str) -> list[int]:
        Trainer(tiny(*options, f"output={tmp_path / name}")).run()
        return [line["skipped_files"] for line in lines_of(tmp_path / name)]

    whole = counts("whole")
    assert whole[-1] >= 2, "32 images of 11 files: the broken one comes up"
    counts("resumed")
    newest = tmp_path / "resumed" / "checkpoints" / "step_0000008"
    (newest / "manifest.json").unlink()
    assert counts("resumed") == whole
