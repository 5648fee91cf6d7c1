"""scripts/slurm: what each of the paper's runs hands to the launcher."""

import argparse
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from franca.launch.__main__ import parse_arguments
from franca.launch.command import job_config
from franca.train.config import load_config

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "slurm" / "pretrain.sh"
FINETUNE = ROOT / "scripts" / "slurm" / "finetune.sh"
PRETRAINING = sorted(file.stem for file in (ROOT / "configs" / "pretrain").glob("*.yaml"))
STAGES = sorted(file.stem for file in (ROOT / "configs" / "finetune").glob("*.yaml"))
BATCH = {"vit_small": 2048, "vit_base": 2048, "vit_large": 3072, "vit_giant2": 3072}  # of the paper; S as B
GPUS = {"vit_small": 32, "vit_base": 32, "vit_large": 64, "vit_giant2": 128}
Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """`script(file, …)` runs a script; its Python prints its arguments, one a line."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python)}
    return lambda *arguments: subprocess.run([*arguments], env=environment, capture_output=True, text=True)


@pytest.fixture
def pretrain(script: Script) -> Script:
    """`pretrain(…)` runs the script of pretraining."""
    return lambda *arguments: script(SCRIPT, *arguments)


@pytest.fixture
def finetune(script: Script) -> Script:
    """`finetune(…)` runs the script of the high-resolution stages."""
    return lambda *arguments: script(FINETUNE, *arguments)


def handed_over(done: subprocess.CompletedProcess[str]) -> argparse.Namespace:
    """The launcher's options, as it reads what a script gave it."""
    assert done.returncode == 0, done.stderr
    module, arguments = done.stdout.splitlines()[:2], done.stdout.splitlines()[2:]
    assert module == ["-m", "franca.launch"]
    return parse_arguments(arguments)


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_run_has_the_size_of_the_papers(name: str, pretrain: Script) -> None:
    done = pretrain(name, "/data/set", "/shared/run", "--time", "20:00:00", "steps=700000")
    options = handed_over(done)
    job, config = job_config(options), load_config(options.config, options.overrides)
    assert job.processes == GPUS[config.model.arch]
    batch = job.processes * config.data.batch_size * config.accumulate
    assert batch == BATCH[config.model.arch] == config.optimizer.lr_reference_batch
    assert config.data.source == ("tars" if name.endswith("in21k") else "shards")
    assert (config.data.path, config.output, config.steps) == ("/data/set", "/shared/run", 700_000)
    (row,) = re.findall(rf"^#.*\b{name}\b.*$", SCRIPT.read_text(), re.MULTILINE)
    assert f" {job.nodes} " in row
    assert f"{job.processes} x {config.data.batch_size} = {batch}" in row
    if config.data.source == "shards":
        assert config.data.shards.streams % job.processes == 0
        assert config.data.crops.global_scale == [0.48, 1.0]


def test_options_given_are_stronger_than_the_scripts(pretrain: Script) -> None:
    done = pretrain("vitl14_in21k", "/data", "/run", "--time", "60", "--nodes", "2", "data.source=folder")
    options = handed_over(done)
    assert options.nodes == 2
    assert load_config(options.config, options.overrides).data.source == "folder"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vitb14_in21k"], r"scripts/slurm/pretrain\.sh CONFIG DATA OUTPUT"),
        (["vitx14_in21k", "/data", "/run"], "no run of the paper is called 'vitx14_in21k'"),
        (["vitb14_coyo", "/data", "/run"], "'vitb14_coyo' names no data set"),
    ],
)
def test_what_the_script_does_not_know_is_said(arguments: list[str], message: str, pretrain: Script) -> None:
    done = pretrain(*arguments)
    assert done.returncode == 2
    assert re.search(message, done.stderr)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_the_size_of_the_papers(name: str, finetune: Script) -> None:
    done = finetune(name, "runs/before", "/data/sets/", "/shared/run", "--time", "20:00:00", "steps=12000")
    options = handed_over(done)
    job, config = job_config(options), load_config(options.config, options.overrides)
    assert job.processes == GPUS[config.model.arch]
    batch = job.processes * config.data.batch_size * config.accumulate
    assert batch == 1024 == config.optimizer.lr_reference_batch
    assert (config.init_from, config.output, config.steps) == ("runs/before", "/shared/run", 12_000)
    written = load_config(options.config)
    if name.endswith("released"):
        assert config.data.path == "/data/sets/imagenet/train"
    else:
        assert len(config.data.parts) == 5
        for part, theirs in zip(config.data.parts, written.data.parts, strict=True):
            assert part.path == theirs.path.replace("/path/to", "/data/sets")
    (row,) = re.findall(rf"^#   {name} .*$", FINETUNE.read_text(), re.MULTILINE)
    product = f"{job.processes} x {config.data.batch_size}{f' x {config.accumulate}' * (config.accumulate > 1)} = 1024"
    assert re.match(rf"#   {name} +{job.nodes} +{product}( |$)", row)


def test_options_of_a_stage_are_stronger_than_the_scripts(finetune: Script) -> None:
    done = finetune("vitb14_364", "a", "/data", "/run", "--time", "60", "--nodes", "2", "data.batch_size=64")
    options = handed_over(done)
    assert options.nodes == 2
    assert load_config(options.config, options.overrides).data.batch_size == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vitb14_364", "runs/before", "/data"], r"scripts/slurm/finetune\.sh CONFIG FROM DATA OUTPUT"),
        (["vitg14_364", "runs/before", "/data", "/run"], r"there is no configs/finetune/vitg14_364\.yaml"),
    ],
)
def test_what_the_script_of_the_stages_does_not_know_is_said(
    arguments: list[str], message: str, finetune: Script
) -> None:
    done = finetune(*arguments)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
