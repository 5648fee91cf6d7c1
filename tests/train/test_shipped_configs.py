"""The shipped recipes say what their sources say: schedules as in the facts of the method, costs as in the estimate.

Sources: [P] the paper (Sec. 3, Appendix B), [C] the authors' released configurations (parity/schedules.json).
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from franca.train.config import TrainConfig, load_config
from franca.train.estimate import estimate
from franca.train.schedules import StepValues

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = sorted(
    str(file.relative_to(CONFIGS)) for part in ("pretrain", "finetune") for file in (CONFIGS / part).glob("*")
)
FROM_SCRATCH = ("recipes/one_device.yaml", "recipes/four_devices.yaml", "recipes/eight_devices.yaml")
CONTINUED = "recipes/continue_vitb14.yaml"
COSTED = [*NAMES, *FROM_SCRATCH, CONTINUED]
close = pytest.approx


@dataclass(frozen=True)
class Facts:
    """What distinguishes the runs. crops: side of global and local ones; lr: after the warm-up, at ``batch`` images."""

    arch: str
    steps: int
    batch: int
    lr: float
    warmup: int
    prototypes_still: int
    teacher_warmup: int
    drop_path: float
    crops: tuple[int, int] = (224, 98)
    global_scale: tuple[float, float] = (0.32, 1.0)
    levels: int = 5
    masks: str = "cyclic"
    alone: int = 0  # steps of new heads before all that; ours


B, L, G, S = "vit_base", "vit_large", "vit_giant2", "vit_small"
LAION: dict[str, Any] = {"global_scale": (0.48, 1.0)}
# [P] but for prototypes that keep still, the teacher's warm-up and drop path of S [C]; S and B on LAION: as B on IN-21K
FACTS = {
    #                              arch  steps    batch lr      warm-up  still  teacher's
    "pretrain/vits14_in21k": Facts(S, 625_000, 2048, 1e-3, 100_000, 1250, 37_500, 0.1),
    "pretrain/vitb14_in21k": Facts(B, 625_000, 2048, 1e-3, 100_000, 1250, 37_500, 0.1),
    "pretrain/vitl14_in21k": Facts(L, 625_000, 3072, 3.5e-4, 100_000, 1250, 37_500, 0.4),
    "pretrain/vitg14_in21k": Facts(G, 625_000, 3072, 3.5e-4, 100_000, 1250, 37_500, 0.4),
    "pretrain/vits14_laion600m": Facts(S, 625_000, 2048, 1e-3, 100_000, 1250, 37_500, 0.1, **LAION),
    "pretrain/vitb14_laion600m": Facts(B, 625_000, 2048, 1e-3, 100_000, 1250, 37_500, 0.1, **LAION),
    "pretrain/vitl14_laion600m": Facts(L, 625_000, 3072, 3.5e-4, 100_000, 1250, 37_500, 0.4, **LAION),
    "pretrain/vitg14_laion600m": Facts(G, 625_000, 3072, 3.5e-4, 100_000, 1250, 37_500, 0.4, **LAION),
    "pretrain/dinov2_vitb14_in21k": Facts(B, 625_000, 2048, 1e-3, 100_000, 1250, 37_500, 0.1, levels=1, masks="block"),
    # [P] Appendix B: schedules compressed in time, the teacher's warm-up in the first 10 K steps of the first stage
    "finetune/vitb14_364": Facts(B, 30_000, 1024, 1.25e-5, 4800, 60, 10_000, 0.1, (364, 112)),
    "finetune/vitb14_518": Facts(B, 10_000, 1024, 1.25e-5, 1600, 20, 0, 0.1, (518, 168)),
    "finetune/vitl14_364": Facts(L, 30_000, 1024, 1.25e-5, 4800, 60, 10_000, 0.4, (364, 112)),
    "finetune/vitl14_518": Facts(L, 10_000, 1024, 1.25e-5, 1600, 20, 0, 0.4, (518, 168)),
    # [C]
    "finetune/vitb14_518_released": Facts(B, 20_000, 1024, 7.05e-5, 10_000, 200, 6000, 0.1, (518, 98), alone=1000),
    "finetune/vitl14_518_released": Facts(L, 20_000, 1024, 1.51e-5, 10_000, 200, 6000, 0.1, (518, 98), alone=1000),
}
PROCESSES = {S: 32, B: 32, L: 64, G: 128}  # [P] Table 5; S as B
RELEASED = {  # our file -> the authors', where both describe one run
    "finetune/vitb14_518_released": "finetune/vitb14_finetune.yaml",
    "finetune/vitl14_518_released": "finetune/vitl14_finetune.yaml",
}


def test_the_table_holds_every_recipe_of_the_paper() -> None:
    assert sorted(f"{name}.yaml" for name in FACTS) == NAMES


def loaded(name: str) -> TrainConfig:
    """The configuration on as many processes as its source has."""
    config = load_config(CONFIGS / f"{name}.yaml")
    return config.for_ranks(PROCESSES[config.model.arch])


@pytest.mark.parametrize("name", FACTS)
def test_what_distinguishes_the_run(name: str) -> None:
    config, facts = loaded(name), FACTS[name]
    crops = config.data.crops
    assert (config.model.arch, config.model.drop_path_rate) == (facts.arch, facts.drop_path)
    assert (config.steps, config.effective_batch) == (facts.alone + facts.steps, facts.batch)
    assert (crops.global_size, crops.local_size, crops.local_count) == (*facts.crops, 8)
    assert (tuple(crops.global_scale), tuple(crops.local_scale)) == (facts.global_scale, (0.05, 0.32))
    assert config.heads.nesting == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0][-facts.levels :]
    assert config.heads.normalize_bottleneck != name.endswith("released"), "each file says which form its heads have"
    assert config.data.mask.kind == facts.masks


@pytest.mark.parametrize("name", FACTS)
def test_schedules(name: str) -> None:
    """Values at the ends and the turning points: linear warm-up that includes both ends, then half a cosine."""
    config, facts = loaded(name), FACTS[name]
    schedules = config.schedules()

    def at(step: int) -> StepValues:
        return schedules(facts.alone + step)

    assert at(0).lr == 0
    assert at(facts.warmup - 1).lr == close(facts.lr, rel=1e-12)
    assert at(facts.warmup).lr == close(facts.lr, rel=1e-12)
    assert at(facts.warmup // 2).lr < facts.lr
    assert at((facts.warmup + facts.steps) // 2).lr == close((facts.lr + 1e-6) / 2, rel=1e-9)
    assert at(facts.steps).lr == 1e-6
    assert at(facts.prototypes_still - 1).last_layer_lr == 0
    assert at(facts.prototypes_still).last_layer_lr == at(facts.prototypes_still).lr > 0
    for value, start, end in (("weight_decay", 0.04, 0.2), ("teacher_momentum", 0.994, 1.0)):
        assert getattr(at(0), value) == close(start, rel=1e-12)
        assert getattr(at(facts.steps // 2), value) == close((start + end) / 2, rel=1e-12)
        assert getattr(at(facts.steps), value) == end
    assert at(0).teacher_temperature == (0.04 if facts.teacher_warmup else 0.07)
    assert at(max(facts.teacher_warmup - 1, 0)).teacher_temperature == close(0.07, rel=1e-12)
    if facts.teacher_warmup:
        assert at(facts.teacher_warmup - 2).teacher_temperature < 0.07
    assert at(facts.steps).teacher_temperature == 0.07


@pytest.mark.parametrize("name", FACTS)
def test_what_all_runs_share(name: str) -> None:
    config = loaded(name)
    optimizer, objective, mask = config.optimizer, config.objective, config.data.mask
    assert (optimizer.betas, optimizer.clip_grad, optimizer.layerwise_decay) == ([0.9, 0.999], 3.0, 1.0)
    assert (optimizer.patch_embed_lr_mult, optimizer.lr_scaling) == (0.2, "sqrt")
    assert (objective.student_temperature, objective.koleo_weight, objective.sinkhorn_iterations) == (0.1, 0.1, 3)
    assert (mask.probability, list(mask.ratio), mask.min_aspect) == (0.5, [0.1, 0.65], 0.3)
    assert (config.heads.hidden_dim, config.heads.layers) == (2048, 3)
    heads = (config.heads.dino, config.heads.ibot)
    assert [(head.prototypes, head.bottleneck_dim) for head in heads] == [(131072, 384), (131072, 256)]
    assert (config.model.init_values, config.model.patch_size, config.model.num_register_tokens) == (1e-5, 14, 0)


@pytest.mark.parametrize("name", RELEASED)
def test_released_variants_follow_the_released_configurations(name: str, parity_dir: Path) -> None:
    theirs = json.loads((parity_dir / "schedules.json").read_text())["configs"][RELEASED[name]]
    merged, config = theirs["merged_config"], loaded(name)
    epoch = merged["train"]["OFFICIAL_EPOCH_LENGTH"]
    optim, teacher, crops = merged["optim"], merged["teacher"], merged["crops"]
    assert config.steps - config.optimizer.freeze_backbone_steps == optim["epochs"] * epoch
    assert config.optimizer.warmup_steps == optim["warmup_epochs"] * epoch
    assert config.optimizer.freeze_last_layer_steps == optim["freeze_last_layer_epochs"] * epoch
    assert config.teacher.temperature_warmup_steps == teacher["warmup_teacher_temp_epochs"] * epoch
    for key, value in theirs["lr_after_scaling"].items():
        gpus, each = map(int, re.findall(r"\d+", key))
        assert config.optimizer.peak_lr(gpus * each) == close(value, rel=1e-12)
    assert config.model.drop_path_rate == merged["student"]["drop_path_rate"]
    assert config.model.arch == merged["student"]["arch"]
    assert (config.data.crops.global_size, config.data.crops.local_size) == (
        crops["global_crops_size"],
        crops["local_crops_size"],
    )
    assert list(config.data.crops.global_scale) == crops["global_crops_scale"]
    assert config.data.source == "folder"


@pytest.mark.parametrize("name", sorted(RELEASED.values()) + ["train/IN21K/vitb14.yaml", "train/LAION/vitl14.yaml"])
def test_what_nobody_changed_is_the_authors(name: str, parity_dir: Path) -> None:
    """The values that all our files share, which the paper gives in part."""
    merged = json.loads((parity_dir / "schedules.json").read_text())["configs"][name]["merged_config"]
    optim, teacher, ours = merged["optim"], merged["teacher"], TrainConfig()
    assert (ours.optimizer.weight_decay, ours.optimizer.weight_decay_end) == (
        optim["weight_decay"],
        optim["weight_decay_end"],
    )
    assert (ours.optimizer.min_lr, ours.optimizer.clip_grad) == (optim["min_lr"], optim["clip_grad"])
    assert (ours.teacher.momentum, ours.teacher.momentum_end) == (
        teacher["momentum_teacher"],
        teacher["final_momentum_teacher"],
    )
    assert (ours.teacher.warmup_temperature, ours.teacher.temperature) == (
        teacher["warmup_teacher_temp"],
        teacher["teacher_temp"],
    )
    assert list(ours.data.mask.ratio) == merged["ibot"]["mask_ratio_min_max"]


@pytest.mark.parametrize("size", ["vitb14", "vitl14"])
def test_each_stage_begins_with_the_one_before(size: str) -> None:
    first, second = loaded(f"finetune/{size}_364"), loaded(f"finetune/{size}_518")
    before = load_config(CONFIGS / f"pretrain/{Path(first.init_from).name}.yaml")
    assert (first.init_from, second.init_from) == (before.output, first.output)
    for stage in (first, second):
        assert stage.init_heads == "loaded"
        assert (stage.heads, stage.model.arch) == (before.heads, before.model.arch), "its heads fit"
        assert [part.weight for part in stage.data.parts] == [None] * 5
    assert first.data.parts == second.data.parts


@pytest.mark.parametrize("name", [name for name in COSTED if load_config(CONFIGS / name).init_heads == "new"])
def test_new_heads_on_a_trained_backbone_learn_alone_first(name: str) -> None:
    """For 1,000 steps, at the learning rate of new weights for so many images; from scratch all learn together."""
    config = load_config(CONFIGS / name)
    alone, at = config.optimizer.freeze_backbone_steps, config.schedules()
    assert alone == (1000 if config.init_from else 0)
    if alone:
        assert at(alone - 1).lr == close(1e-3 * (config.effective_batch / 1024) ** 0.5, rel=1e-12)
        assert at(alone - 1).last_layer_lr == at(alone - 1).lr


@pytest.mark.parametrize("name", [*FROM_SCRATCH, CONTINUED])
def test_recipes_compress_the_schedules_of_the_papers(name: str) -> None:
    """But for the learning rate where a trained backbone goes on: that of the released fine-tuning."""
    config = load_config(CONFIGS / name)
    paper = load_config(CONFIGS / f"pretrain/{'vitl14' if config.model.arch == L else 'vitb14'}_in21k.yaml")
    share = (config.steps - config.optimizer.freeze_backbone_steps) / paper.steps
    assert config.optimizer.warmup_steps == paper.optimizer.warmup_steps * share
    assert config.optimizer.freeze_last_layer_steps == paper.optimizer.freeze_last_layer_steps * share
    assert config.teacher.temperature_warmup_steps == paper.teacher.temperature_warmup_steps * share
    source = loaded("finetune/vitb14_518_released") if name == CONTINUED else paper
    assert config.optimizer.peak_lr(512) == close(source.optimizer.peak_lr(512), rel=1e-12)


@pytest.mark.parametrize("name", COSTED)
def test_a_file_opens_with_its_command_and_what_the_estimate_says(name: str) -> None:
    text = (CONFIGS / name).read_text()
    header = re.match(r"(#.*\n)+", text)
    assert header is not None
    command = re.search(
        rf"^#   (python|torchrun .*) -m franca\.train --config configs/{name}\b", header[0], re.MULTILINE
    )
    assert command is not None
    stated = re.search(
        r"^# Expected \(--estimate\): (\d+) x (.+), (\d+) GB each, ([\d,]+) device hours at 30 % of the peak\.$",
        header[0],
        re.MULTILINE,
    )
    assert stated is not None
    devices, device, memory, hours = int(stated[1]), stated[2], float(stated[3]), float(stated[4].replace(",", ""))
    result = estimate(load_config(CONFIGS / name), devices, device)
    assert result.fits
    assert result.utilisation == 0.3
    assert memory == close(result.memory.needed / 1e9, abs=0.51)
    assert hours == close(result.hours * devices, abs=0.51)
    if name[:-5] in FACTS:
        assert devices == PROCESSES[FACTS[name[:-5]].arch]


def test_the_recipe_of_minutes_states_what_the_estimate_says() -> None:
    name = "recipes/imagenette_vits14.yaml"
    config, text = load_config(CONFIGS / name), " ".join((CONFIGS / name).read_text().split("\n# "))
    pattern = (
        r"1 x (H200), (\d+) GB, (\d+) minutes at 30 % of the peak, (\d+) at ([\d.]+) %; "
        r"([\d.]+) million images, (\d+) passes"
    )
    stated = re.search(pattern, text)
    assert stated is not None
    usual, slower = estimate(config, 1, stated[1]), estimate(config, 1, stated[1], float(stated[5]) / 100)
    assert float(stated[2]) == close(usual.memory.needed / 1e9, abs=0.51)
    assert float(stated[3]) == close(usual.hours * 60, abs=0.51)
    assert float(stated[4]) == close(slower.hours * 60, abs=0.51)
    images = config.steps * config.effective_batch
    assert (float(stated[6]), float(stated[7])) == (close(images / 1e6, abs=0.051), close(images / 9469, abs=0.51))


def test_images_of_the_recipes() -> None:
    """Images a step and in all, as the files state them."""
    for name in (*FROM_SCRATCH, CONTINUED):
        config, text = load_config(CONFIGS / name), " ".join((CONFIGS / name).read_text().split("\n# "))
        stated = re.search(r"(\d+) micro-batches of (\d+)(?: each,)? make (\d+) images a step, ([\d.]+) million", text)
        assert stated is not None
        parts, each, batch, million = int(stated[1]), int(stated[2]), int(stated[3]), float(stated[4])
        assert (parts, each, batch) == (config.accumulate, config.data.batch_size, config.effective_batch)
        assert million == close(config.steps * batch / 1e6, rel=0.02)
