""".ci/run starts a cluster for the tests where it can, says why where it can't, and always stops it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose `make` and cluster script only say what they are asked to do."""
    shutil.copytree(ROOT / ".ci", tmp_path / "main" / ".ci")
    (tmp_path / "main" / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    write(tmp_path / "bin" / "make", 'echo "make $1 with ${FRANCA_SLURM-no cluster}"; exit ${STATUS:-0}')
    return tmp_path / "main"


def write(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def run(clone: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FRANCA_")}
    environment |= {"PATH": f"{clone.parent / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(clone.parent), **variables}
    return subprocess.run(["bash", clone / ".ci" / "run"], env=environment, capture_output=True, text=True)


def script(clone: Path, install: str = "true", start: str = "echo $2/slurm.conf") -> None:
    text = f'echo "$1" >>{clone}/asked\ncase $1 in install) {install} ;; start) {start} ;; esac'
    write(clone / "scripts" / "slurm_test_cluster.sh", text)


@pytest.mark.parametrize("status", [0, 3])
def test_the_tests_run_with_a_cluster_that_is_stopped_after_them(status: int, clone: Path) -> None:
    script(clone)
    done = run(clone, STATUS=str(status))
    assert done.returncode == status
    assert done.stdout.startswith(f"make test with {clone.parent}/tmp.")
    assert (clone / "asked").read_text().split() == ["install", "start", "stop"]
    assert not list(clone.parent.glob("tmp.*"))


@pytest.mark.parametrize("failing", ["install", "start"])
def test_without_a_cluster_the_tests_run_and_the_reason_is_said(failing: str, clone: Path) -> None:
    script(clone, **{failing: "echo 'needs root' >&2; exit 1"})
    done = run(clone)
    assert done.returncode == 0
    assert done.stdout == "make test with no cluster\n"
    assert done.stderr.startswith("needs root\nno SLURM here, for the reason above")


def test_a_cluster_that_is_there_already_is_used(clone: Path) -> None:
    script(clone)
    assert run(clone, FRANCA_SLURM="/my/slurm.conf").stdout == "make test with /my/slurm.conf\n"
    assert not (clone / "asked").exists()
