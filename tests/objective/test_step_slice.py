"""Three whole training steps of the reference: losses, gradients, AdamW, moving average (step_slice.npz / .json)."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from franca.data.batch import PretrainBatch
from franca.models import MatryoshkaHead, VisionTransformer
from franca.objective import Encoder, LossReport, ObjectiveConfig, PretrainingObjective, StudentTeacher

SUBMODULES = ("backbone", "dino_head", "ibot_head")
Tensors = dict[str, Tensor]


@dataclass
class Reference:
    config: dict[str, Any]
    schedule: list[dict[str, float]]
    steps: list[dict[str, Any]]
    tensors: Tensors

    def part(self, prefix: str) -> Tensors:
        """Tensors below `prefix`, blocks.<chunk>.<i> renamed to blocks.<i>."""
        return {
            re.sub(r"blocks\.\d+\.(\d+)\.", r"blocks.\1.", name.removeprefix(f"{prefix}/")): value
            for name, value in self.tensors.items()
            if name.startswith(f"{prefix}/")
        }


@dataclass
class StepRecord:
    report: LossReport
    gradients: Tensors  # before clipping
    norms: dict[str, float]
    student: Tensors  # after the step
    teacher: Tensors


@pytest.fixture(scope="module")
def reference(parity_dir: Path) -> Reference:
    with np.load(parity_dir / "step_slice.npz") as file:
        tensors = {name: torch.from_numpy(file[name]) for name in file.files}
    description = json.loads((parity_dir / "step_slice.json").read_text())
    return Reference(description["config"], description["schedule"], description["steps"], tensors)


def build_encoder(config: dict[str, Any]) -> Encoder:
    width = config["embed_dim"]

    def head(options: dict[str, Any]) -> MatryoshkaHead:
        return MatryoshkaHead(
            width,
            options["prototypes"],
            nesting=[level / width for level in options["nesting"]],
            hidden_dim=options["hidden"],
            bottleneck_dim=options["bottleneck"],
            layers=options["nlayers"],
            normalize_bottleneck=False,
        )

    backbone = VisionTransformer(
        img_size=config["global_size"],
        patch_size=config["patch_size"],
        embed_dim=width,
        depth=config["depth"],
        num_heads=config["num_heads"],
        ffn="swiglu" if config["ffn"].startswith("swiglu") else config["ffn"],
        drop_path_rate=config["drop_path"],
    )
    return Encoder(backbone, head(config["dino_head"]), head(config["ibot_head"]))


def build_pair(reference: Reference) -> StudentTeacher:
    pair = StudentTeacher(build_encoder(reference.config), build_encoder(reference.config))
    pair.student.load_state_dict(reference.part("student_init"))
    pair.teacher.load_state_dict(reference.part("teacher_init"))
    return pair.train()


def build_batch(reference: Reference) -> PretrainBatch:
    """The reference's batch, its patch rows padded to the upper bound."""
    data = reference.part("data")
    real, rows = len(data["mask_indices_list"]), int(data["upperbound"])
    return PretrainBatch(
        data["collated_global_crops"],
        data["collated_local_crops"],
        data["collated_masks"],
        F.pad(data["mask_indices_list"], (0, rows - real)),
        F.pad(data["masks_weight"], (0, rows - real)),
        torch.arange(rows) < real,
        reference.config["n_images"],
    )


def multipliers(name: str, config: dict[str, Any]) -> tuple[float, float, bool]:
    """(learning rate, weight decay, is last layer) of a parameter, by the rules in README.md under schedules.json."""
    layer = config["depth"] + 1
    if match := re.match(r"backbone\.blocks\.(\d+)\.", name):
        layer = int(match[1]) + 1
    elif re.match(r"backbone\.(cls_token|pos_embed|register_tokens|mask_token|patch_embed)", name):
        layer = 0
    lr = config["layerwise_decay"] ** (config["depth"] + 1 - layer)
    if "patch_embed" in name:
        lr *= config["patch_embed_lr_mult"]
    decays = not (name.endswith(".bias") or "norm" in name or "gamma" in name)
    return lr, float(decays), "last_layer" in name


def train(reference: Reference) -> list[StepRecord]:
    config, pair, batch = reference.config, build_pair(reference), build_batch(reference)
    weights = {
        name: config[f"{key}_loss_weight"] for name, key in (("crop", "dino"), ("patch", "ibot"), ("koleo", "koleo"))
    }
    options = ObjectiveConfig(config["student_temp"], **{f"{name}_weight": value for name, value in weights.items()})
    objective = PretrainingObjective(pair, options)
    named = list(pair.student.named_parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [parameter]} for _, parameter in named], betas=config["adamw_betas"], eps=config["adamw_eps"]
    )
    records = []
    for now in reference.schedule:
        for (name, _), group in zip(named, optimizer.param_groups, strict=True):
            lr, decay, last = multipliers(name, config)
            group["lr"] = (now["last_layer_lr"] if last else now["lr"]) * lr
            group["weight_decay"] = now["wd"] * decay
        optimizer.zero_grad()
        report = objective(batch, now["teacher_temp"])
        report.total.backward()
        gradients = {name: parameter.grad.clone() for name, parameter in named}
        norms = {
            part: torch.nn.utils.clip_grad_norm_(
                pair.student.get_submodule(part).parameters(), config["clip_grad"]
            ).item()
            for part in SUBMODULES
        }
        optimizer.step()
        pair.update_teacher(now["momentum"])
        states = [{k: v.clone() for k, v in network.state_dict().items()} for network in (pair.student, pair.teacher)]
        records.append(StepRecord(report, gradients, norms, *states))
    return records


@pytest.fixture(scope="module")
def records(reference: Reference) -> list[StepRecord]:
    return train(reference)


def true_gradient(name: str, value: Tensor) -> Tensor:
    """Leaves out the key third of a qkv bias, whose true gradient is zero."""
    if not name.endswith("attn.qkv.bias"):
        return value
    query, _, values = value.chunk(3)
    return torch.cat([query, values])


def test_losses_of_three_steps(reference, records):
    for record, expected in zip(records, reference.steps, strict=True):
        terms = {name: value.item() for name, value in record.report.terms.items()}
        assert record.report.total.item() == pytest.approx(expected["total_loss"], rel=1e-5)
        assert terms["crop_local"] == pytest.approx(expected["dino_local_crops_loss"], rel=1e-5)
        assert terms["crop_global"] == pytest.approx(expected["dino_global_crops_loss"], rel=1e-5)
        # The original logs half of these two.
        assert terms["patch"] == pytest.approx(2 * expected["ibot_loss"], rel=1e-5)
        assert terms["koleo"] / 2 == pytest.approx(expected["koleo_loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("crop_local", "dino_local_per_level"), ("crop_global", "dino_global_per_level"), ("patch", "ibot_per_level")],
)
def test_levels_of_three_steps(reference, records, ours, theirs):
    for record, expected in zip(records, reference.steps, strict=True):
        assert record.report.levels[ours].tolist() == pytest.approx(expected[theirs], rel=1e-5)


def test_gradient_norms_of_three_steps(reference, records):
    tolerances = [1e-4] + [1e-3] * (len(records) - 1)
    for record, expected, tolerance in zip(records, reference.steps, tolerances, strict=True):
        assert record.norms == pytest.approx(expected["grad_norm"], rel=tolerance)


def test_gradients_of_the_first_step(reference, records):
    expected = reference.part("grad_step1")
    assert records[0].gradients.keys() == expected.keys()
    for name, gradient in records[0].gradients.items():
        ours, theirs = true_gradient(name, gradient), true_gradient(name, expected[name])
        assert (ours - theirs).norm() <= 2e-5 * theirs.norm(), name


def test_parameters_after_the_first_step(reference, records):
    """The first Adam step is a sign step: an element whose gradient is rounding noise may go the other way."""
    close, elements = 0, 0
    for name, theirs in reference.part("student_after1").items():
        lr, _, last = multipliers(name, reference.config)
        now = reference.schedule[0]
        difference = true_gradient(name, records[0].student[name] - theirs).abs()
        assert difference.max() <= 2 * lr * now["last_layer_lr" if last else "lr"] + 1e-6, name
        close += (difference <= 1e-5).sum().item()
        elements += difference.numel()
    assert close >= 0.999 * elements


def test_teacher_after_the_first_step(reference, records):
    """The moving average of the reference's own student, and that it was taken in the step."""
    pair, momentum = build_pair(reference), reference.schedule[0]["momentum"]
    before = reference.part("teacher_init")
    pair.student.load_state_dict(reference.part("student_after1"))
    pair.update_teacher(momentum)
    for name, theirs in reference.part("teacher_after1").items():
        torch.testing.assert_close(pair.teacher.state_dict()[name], theirs, atol=1e-6, rtol=0, msg=name)
        in_step = momentum * before[name] + (1 - momentum) * records[0].student[name]
        torch.testing.assert_close(records[0].teacher[name], in_step, atol=1e-6, rtol=0, msg=name)
