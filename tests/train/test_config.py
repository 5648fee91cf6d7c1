"""Configurations: what is refused and how it is said, what is kept, and that every shipped file builds."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from franca.config import ConfigError, dump_config, read_config
from franca.train.build import build_pair
from franca.train.config import TrainConfig, load_config
from franca.train.optimizer import build_optimizer

ROOT = Path(__file__).resolve().parents[2]
OTHERS = {"rasa", "studies"}  # configurations of rasa.train and of scripts/study.py
SHIPPED = sorted(file for file in (ROOT / "configs").rglob("*.yaml") if not OTHERS & set(file.parts))


@dataclass
class Part:
    """Kinds of options that training has none of."""

    name: str = ""
    weights: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Table:
    """Parts by name."""

    parts: dict[str, Part] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("stpes=3", "steps"),
        ("optimizer.warmup_step=3", "warmup_steps"),
        ("data.crops.globl_size=98", "global_size"),
        ("heads.dino.prototype=3", "prototypes"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_name(override: str, nearest: str, tmp_path: Path) -> None:
    key = override.split("=")[0]
    with pytest.raises(ConfigError, match=f"command line.*{key}.*Did you mean[^']*'{nearest}'"):
        load_config(None, [override])
    file = tmp_path / "mine.yaml"
    *outer, last = key.split(".")
    file.write_text("".join(f"{'  ' * i}{part}:\n" for i, part in enumerate(outer)) + f"{'  ' * len(outer)}{last}: 1\n")
    with pytest.raises(ConfigError, match=f"mine.yaml.*{key}.*Did you mean[^']*'{nearest}'"):
        load_config(file)


@pytest.mark.parametrize(
    "override",
    [
        "steps=many",
        "steps=1.5",
        "steps=null",
        "optimizer.lr=fast",
        "optimizer.betas=0.9",
        "optimizer.betas=[a,b]",
        "data=3",
        "model.depth=true",
        "log.tensorboard=perhaps",
    ],
)
def test_wrong_types_are_refused_by_key(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert "command line" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "steps=0",
        "accumulate=0",
        "seed=-1",
        "seed=4294967296",
        "precision=fp16",
        "model.arch=vit_huge",
        "model.patch_size=0",
        "model.drop_path_rate=1.0",
        "heads.dino.prototypes=1",
        "heads.ibot.prototypes=[8,1]",
        "heads.ibot.prototypes=many",
        "data.crops.global_size=225",
        "data.crops.local_size=99",
        "optimizer.lr=0",
        "optimizer.lr=inf",
        "optimizer.lr=nan",
        "optimizer.lr_scaling=cube",
        "optimizer.lr_reference_batch=0",
        "optimizer.min_lr=-1",
        "optimizer.warmup_steps=-1",
        "optimizer.warmup_steps=625000",
        "optimizer.weight_decay=-0.1",
        "optimizer.weight_decay_end=nan",
        "optimizer.betas=[0.9,1.0]",
        "optimizer.betas=[0.9]",
        "optimizer.clip_grad=-1",
        "optimizer.freeze_last_layer_steps=-1",
        "optimizer.layerwise_decay=0",
        "optimizer.patch_embed_lr_mult=-1",
        "teacher.momentum=1.1",
        "teacher.momentum_end=-0.1",
        "teacher.temperature=0",
        "teacher.warmup_temperature=-1",
        "teacher.temperature_warmup_steps=-1",
        "checkpoint.every=0",
        "checkpoint.keep_last=0",
        "checkpoint.keep_every=-1",
        "checkpoint.keep_every=1500",
        "evaluation.every=-1",
        "evaluation.ks=[]",
        "evaluation.ks=[0]",
        "evaluation.image_size=0",
        "evaluation.max_images=-1",
        "evaluation.train=somewhere",
        "monitor.every=-1",
        "monitor.patience=0",
        "monitor.first_verdict=-1",
        "recovery.max_skips=0",
        "recovery.max_rollbacks=-1",
        "log.every=0",
        "objective.student_temperature=0",
        "data.batch_size=0",
    ],
)
def test_values_out_of_range_are_refused_by_key_and_value(override: str) -> None:
    key, value = override.split("=")
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert key.split(".")[-1] in str(caught.value)
    assert value.strip("[]").split(",")[0] in str(caught.value)


def test_size_of_evaluation_images_matters_only_when_there_is_evaluation() -> None:
    load_config(None, ["evaluation.image_size=100"])
    with pytest.raises(ConfigError, match=r"evaluation.image_size=100 is no multiple of model.patch_size=14; try 98"):
        load_config(None, ["evaluation.image_size=100", "evaluation.every=5"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- 1\n- 2\n", "holds a list"),
        (b"steps: [1,\n", "mine.yaml.*YAML"),
        (b"steps: 1\nsteps: 2\n", "mine.yaml.*duplicate key steps"),
        (b"\xff\xfe\x00", "mine.yaml.*YAML"),
        (b"hello", "mine.yaml.*hello"),
        (b"steps: ${nothing}\n", "nothing"),
    ],
)
def test_files_that_are_no_configuration_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config(file)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_missing_files_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / name)


@pytest.mark.parametrize("override", ["steps", "--steps=3", "steps=[1,"])
def test_overrides_that_are_none(override: str) -> None:
    with pytest.raises(ConfigError, match="command line"):
        load_config(None, [override])


def test_command_line_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("steps: 7\noptimizer: {lr: 0.5, warmup_steps: 1}\n")
    config = load_config(file, ["optimizer.lr=0.25", "heads.dino.prototypes=[4,8]"])
    assert (config.steps, config.optimizer.lr, config.optimizer.warmup_steps) == (7, 0.25, 1)
    assert config.heads.dino.prototypes == [4, 8]
    assert config.optimizer.min_lr == TrainConfig().optimizer.min_lr


@pytest.mark.parametrize("text", ["off", "'off'", '"off"'])
def test_off_is_a_word_and_where_it_is_no_choice_a_boolean(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"checkpoint: {{asynchronous: {text}}}\ndata: {{crops: {{blur: {text}}}}}")
    overrides = [f"data.crops.blur={text}", f"checkpoint={{asynchronous: {text}}}"]
    for config in (load_config(file, []), load_config(None, overrides)):
        assert config.data.crops.blur == "off"
        assert config.checkpoint.asynchronous is False


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "+1E-3", "1.e-3", ".1e-2"])
def test_numbers_may_be_written_without_a_point(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"optimizer: {{lr: {text}}}")
    for config in (load_config(file), load_config(None, [f"optimizer.lr={text}"])):
        assert config.optimizer.lr == 1e-3


@pytest.mark.parametrize(
    "text",
    [
        *("trueish", "1e3x", "offline", "2026-11-30", "2026_11_21", "1:30", "007", "0x10", "0b1", "1_0.5", "1:30.5"),
        *("1.50", "1e3", "true", "/tmp/a #b", "#b", "a: b", " a ", "[a", "{a..b}", "it's", "*", "'a' or \"b\"", "'"),
    ],
)
def test_text_is_taken_as_it_is(text: str, tmp_path: Path) -> None:
    config = load_config(None, [f"output={text}", f"data.path={text}"])
    assert (config.output, config.data.path) == (text, text)
    file = tmp_path / "written.yaml"
    file.write_text(dump_config(config))
    assert load_config(file).output == text


@pytest.mark.parametrize("text", ["2026-11-30", "2026_11_21", "1:30", "007", "0x10", "0b1", "1_0.5", "1:30.5"])
def test_numbers_of_other_notations_stay_words_in_files(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"output: {text}\n")
    assert load_config(file).output == text


def test_text_in_quotes_is_what_they_hold_and_references_are_followed() -> None:
    config = load_config(None, ["output='it''s'", r'init_from="a\tb"', "data.path=${output}"])
    assert (config.output, config.init_from, config.data.path) == ("it's", "a\tb", "it's")
    assert load_config(None, ['output=""']).output == ""


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_text_that_may_be_missing_is_missing_where_it_is_null(text: str) -> None:
    assert read_config(Part, overrides=["weights=IN21K", f"weights={text}"]).weights is None


@pytest.mark.parametrize("text", ["", " "])
def test_empty_text_is_refused_with_how_to_give_it(text: str) -> None:
    with pytest.raises(ConfigError, match=r"command line: data\.path=.*; give text, or 'data\.path=\"\"'"):
        load_config(None, [f"data.path={text}"])


def test_null_where_text_belongs_is_told_how_to_give_it(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data:\n  path:\n")
    for given in ((file, []), (None, ["data.path=null"])):
        with pytest.raises(ConfigError, match=r'data\.path.*; give text, or "" for an empty one'):
            load_config(*given)


def test_text_in_tables_is_taken_as_it_is_too() -> None:
    read = read_config(Table, overrides=["parts.first.name=007", "parts.first.settings.k=7"])
    assert read.parts["first"] == Part("007", settings={"k": 7})


@pytest.mark.parametrize(("text", "seed"), [("010", 10), ("1_000", 1000), ("+7", 7), ("0", 0)])
def test_numbers_are_decimal(text: str, seed: int, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"seed: {text}")
    assert load_config(file).seed == load_config(None, [f"seed={text}"]).seed == seed


@pytest.mark.parametrize("text", ["1:30", "0x10", "0o10", "0b1"])
def test_numbers_of_other_notations_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"seed.*'{text}'.*; give a whole number"):
        load_config(None, [f"seed={text}"])


@pytest.mark.parametrize(("words", "last"), [(["off", "intended"], "intended"), (["intended", "off"], "off")])
def test_the_later_of_two_overrides_holds(words: list[str], last: str) -> None:
    assert load_config(None, [f"data.crops.blur={word}" for word in words]).data.crops.blur == last


def test_what_is_written_is_what_is_read(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = tiny(
        "heads.dino.prototypes=[2,4,8]", "optimizer.lr=1e-7", "model.img_size=70", "data.crops.mean=[0,0,0.1]"
    )
    file = tmp_path / "written.yaml"
    file.write_text(dump_config(config))
    assert asdict(load_config(file)) == asdict(config)


@pytest.mark.parametrize(
    "override",
    [
        "heads.nesting=[0.3,1.0]",
        "heads.nesting=[]",
        "heads.hidden_dim=0",
        "heads.dino.prototypes=[4,8]",
        "model.num_heads=3",
        "model.img_size=50",
        "model.ffn=linear",
        "model.init_values=0",
    ],
)
def test_networks_that_cannot_be_are_errors_of_the_configuration(
    override: str, tiny: Callable[..., TrainConfig]
) -> None:
    with (
        torch.device("meta"),
        pytest.raises(ConfigError, match=r"model, heads: .*" + override.split("=")[0].split(".")[-1]),
    ):
        build_pair(tiny(override))


def test_there_are_shipped_configurations() -> None:
    assert SHIPPED


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(ROOT / "configs")))
def test_every_shipped_configuration_builds(file: Path) -> None:
    config = load_config(file)
    with torch.device("meta"):  # shapes without memory: the largest is a giant
        pair = build_pair(config)
        build_optimizer(pair.student, len(pair.student.backbone.blocks), config.optimizer)
    side = config.data.crops.global_size // config.model.patch_size
    assert config.data.mask.build((side, side))(side).sum() == side
    schedules = config.schedules()
    warm = config.optimizer.freeze_backbone_steps + config.optimizer.warmup_steps
    assert schedules(warm).lr == pytest.approx(config.optimizer.peak_lr(config.effective_batch))
    assert schedules(config.steps).lr == config.optimizer.min_lr


def test_a_word_where_a_list_belongs_is_told_how_to_give_one() -> None:
    with pytest.raises(ConfigError, match=r"heads\.nesting.*; give a list, such as \[a, b\]"):
        load_config(None, ["heads.nesting=half"])


def test_a_file_that_is_not_there_is_told_with_the_nearest_beside_it(tmp_path: Path) -> None:
    (tmp_path / "imagenette_cpu.yaml").write_text("steps: 1")
    with pytest.raises(ConfigError, match=r"imagenet_cpu.yaml' does not exist \(did you mean .*imagenette_cpu.yaml'\?"):
        read_config(TrainConfig, tmp_path / "imagenet_cpu.yaml")
