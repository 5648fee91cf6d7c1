"""`python -m franca.launch`: what a person sees before anything runs."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from franca.launch.__main__ import main
from franca.train.config import load_config
from tests.warm import Command, captured

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ["--nodes", "4", "--gpus-per-node", "8", "--partition", "gpu", "--time", "20:00:00"]
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`install(sbatch="exit 0", …)`: a search path with these programs alone, each a line of shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(**programs: str) -> None:
        for name, line in programs.items():
            (folder / name).write_text(f"#!/bin/sh\n{line}\n")
            (folder / name).chmod(0o755)

    return write


def test_help_is_a_page_to_work_from() -> None:
    command = [sys.executable, "-m", "franca.launch", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    shown = re.findall(r"--config (\S+\.yaml)", said)
    assert shown
    for file in shown:
        assert (ROOT / file).is_file(), f"--help shows {file}"
    for words in ("--local", "--follow", "goes back into the queue by itself", "OUTPUT/jobs/JOB/"):
        assert words in said


def sbatch_lines(said: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", said, re.MULTILINE))


def test_a_dry_run_prints_what_would_be_submitted_and_writes_nothing(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--cpus-per-task", "12", "--account", "vision", "--sbatch", "mem=0", "--setup", "module load cuda"]
    assert main([*CLUSTER, *more, "--dry-run", "--config", str(tiny), "steps=9"]) == 0
    said, size = capsys.readouterr()
    logs = tmp_path / "run" / "jobs" / "%j"
    assert sbatch_lines(said) == {
        "account": "vision",
        "cpus-per-task": "12",
        "gpus-per-node": "8",
        "job-name": "franca-run",
        "mem": "0",
        "nodes": "4",
        "ntasks-per-node": "8",
        "open-mode": "append",
        "output": str(logs / "%j_0_log.out"),
        "partition": "gpu",
        "requeue": "",
        "signal": "USR2@300",
        "time": "1200",
    }
    assert re.search(rf"^srun .*--output {re.escape(str(logs / '%j_%t_log.out'))} .*--cpus-per-task=12", said, re.M)
    assert said.index("module load cuda") < said.index("srun ")
    assert "# each process: python -m franca.train --config" in said
    assert size == "processes: 32 on 4 nodes; 64 images a step\n"
    assert not (tmp_path / "run").exists()


def test_a_local_dry_run_needs_no_submitit(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["--local", "--gpus-per-node", "2", "--dry-run", "--config", str(tiny)]) == 0
    said, size = capsys.readouterr()
    assert "# each process: python -m franca.train --config" in said
    assert size == "processes: 2 on this machine; 4 images a step\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--time", "1:00:00", "--config", "no/such.yaml"], r"config file 'no/such\.yaml' does not exist"),
        (["--time", "1:00:00", "--config", "{tiny}", "stpes=3"], r"'stpes' not in .* Did you mean: 'steps'"),
        (["--config", "{tiny}"], r"--time is missing: how long a stretch may run"),
        (["--time", "soon", "--config", "{tiny}"], r"--time 'soon' is no time"),
        (["--local", "--nodes", "2", "--config", "{tiny}"], r"--nodes 2 with --local: this machine is one node"),
        (["--time", "60", "--sbatch", "exclusive", "--config", "{tiny}"], r"'exclusive' is not of the form OPTION="),
        (["--time", "60", "--config", "{tiny}"], r"no sbatch on this machine: .*--local"),
        (["--local", "--config", "{tiny}", "output={tmp}"], r"holds files that no run of franca\.train made"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    arguments: list[str], message: str, tiny: Path, tmp_path: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([text.format(tiny=tiny, tmp=tmp_path) for text in arguments]) == 2
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def launch_without_submitit(*arguments: str) -> None:
    sys.modules["submitit"] = None  # type: ignore[assignment]
    sys.exit(main([*arguments]))


def test_a_missing_submitit_is_named_with_its_cure(tiny: Path) -> None:
    done = captured(launch_without_submitit, "--time", "60", "--config", str(tiny), folder=ROOT)
    assert done.returncode == 2
    assert "pip install 'franca[slurm]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_sbatch_answers_is_passed_on(
    tiny: Path, install: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(sbatch="echo 'invalid partition specified: gpu' >&2; exit 1", sinfo="echo", hostname="echo here")
    assert main([*CLUSTER, "--config", str(tiny)]) == 2
    assert "error: sbatch refused the job: invalid partition specified: gpu" in capsys.readouterr().err
    install(sbatch="echo Submitted batch job 41", sinfo="echo", hostname="echo here")
    assert main([*CLUSTER, "--config", str(tiny), "steps=9"]) == 0, "the folder is free for a corrected command"
    install(sbatch="echo 'too many jobs' >&2; exit 1", sinfo="echo", hostname="echo here")
    assert main([*CLUSTER, "--config", str(tiny), "steps=9"]) == 2
    assert list((tiny.parent / "run").rglob("config.yaml")), "what an earlier command made stays"


def test_weights_that_do_not_fit_are_refused_before_anything_is_submitted(
    tiny: Path, tmp_path: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(sbatch="echo Submitted batch job 41", sinfo="echo", hostname="echo here")
    wrong = tmp_path / "wrong.pth"
    torch.save({"norm.weight": torch.ones(3)}, wrong)
    assert main([*CLUSTER, "--config", str(tiny), f"init_from={wrong}"]) == 2
    assert "wrong.pth" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*CLUSTER, "--config", str(tiny), "init_from=/on/the/nodes.pth"]) == 0
    assert "WARNING: not seen from this machine: init_from='/on/the/nodes.pth'" in capsys.readouterr().err


def test_a_job_is_submitted_with_the_configuration_as_it_is_now(
    tiny: Path, tmp_path: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file that was given may change while the job waits."""
    install(sbatch="echo Submitted batch job 41", sinfo="echo", hostname="echo here")
    assert main([*CLUSTER, "--config", str(tiny), "steps=9"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("job 41;")
    assert str(tmp_path / "run/jobs/41/41_0_log.out") in said
    assert load_config(tmp_path / "run/config.yaml").steps == 9
    assert (tmp_path / "run/jobs/41/41_submitted.pkl").is_file()


def test_the_folder_of_another_run_is_refused_before_anything_is_submitted(
    tiny: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(sbatch="echo Submitted batch job 41", sinfo="echo", hostname="echo here")
    assert main([*CLUSTER, "--config", str(tiny)]) == 0
    assert main([*CLUSTER, "--config", str(tiny), "optimizer.lr=0.5"]) == 2
    assert "optimizer.lr: there" in capsys.readouterr().err


def test_console_command(tiny: Path, tmp_path: Path) -> None:
    done = captured(Command("franca", ["launch", "--local", "--dry-run", "--config", str(tiny)]), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "processes: 1 on this machine; 2 images a step" in done.stderr
