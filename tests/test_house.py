"""The set-up holds together: versions, requirements, commands, make, .ci/run and the test summary."""

import importlib.metadata
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import franca
from franca.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = [
    Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def test_version_is_the_installed_and_the_newest_in_the_changelog() -> None:
    newest = re.search(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == franca.__version__ == importlib.metadata.version("franca")


def test_constraints_are_exact_versions_without_addresses() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    for requirement in CONSTRAINTS:
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], requirement
        assert requirement.url is None, requirement


def asked_for() -> list[Requirement]:
    """What `make install` asks for: the core and the dev extra with the extras inside it."""
    extras = PROJECT["project"]["optional-dependencies"]
    found, queue = [], [*PROJECT["project"]["dependencies"], *extras["dev"]]
    while queue:
        requirement = Requirement(queue.pop())
        if requirement.name == "franca":
            queue += [line for extra in sorted(requirement.extras) for line in extras[extra]]
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("requirement", asked_for(), ids=str)
def test_constraints_pin_what_is_asked_for(requirement: Requirement) -> None:
    pins = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in CONSTRAINTS}
    assert canonicalize_name(requirement.name) in pins
    assert pins[canonicalize_name(requirement.name)] in requirement.specifier


def test_every_package_is_type_checked() -> None:
    present = {name for name in ("franca", "rasa", "scripts") if (ROOT / name).is_dir()}
    assert present <= set(PROJECT["tool"]["mypy"]["files"])


def test_console_commands_are_the_packages_that_run() -> None:
    runnable = {
        ".".join(path.relative_to(ROOT).parent.parts)
        for package in ("franca", "rasa")
        for path in (ROOT / package).rglob("__main__.py")
    }
    modules = {command.module for command in COMMANDS.values()}
    assert runnable - {"franca"} <= modules
    for module in modules:
        assert importlib.util.find_spec(module), f"{module} is in COMMANDS and can't be imported"


def test_console_script_runs_the_module_with_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(runpy, "run_module", lambda name, **options: ran.append((name, sys.argv[1:])))
    monkeypatch.setattr(sys, "argv", ["franca", "train", "--config", "some.yaml", "steps=3"])
    main()
    assert ran == [("franca.train", ["--config", "some.yaml", "steps=3"])]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_named_in_its_usage_as_it_was_called(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["franca", name, "--help"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of runpy, for a module that other tests have imported
        with pytest.raises(SystemExit, match="0"):
            main()
    page = capsys.readouterr().out
    assert page.startswith(f"usage: franca {name} ")
    assert f"python -m {COMMANDS[name].module}" not in page.replace("torchrun --nproc-per-node 8 -m", "")


def test_help_and_wrong_arguments_do_not_wait_for_torch() -> None:
    program = """
import sys
from contextlib import suppress
from importlib import import_module
for name, arguments in (
    ("eval", ["--help"]), ("eval", ["knn"]), ("train", ["--help"]), ("launch", ["--nodes"]), ("publish", ["--help"]),
    ("data.preparation", ["embed", "--help"]), ("reproduce", ["--help"]),
):
    with suppress(SystemExit):
        import_module(f"franca.{name}.__main__").main(arguments)
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") + done.stderr.count("usage: ") == 7


def test_console_script_names_the_nearest_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["franca", "trian"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_console_script_lists_its_commands(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["franca", *arguments])
    main()
    assert set(COMMANDS) <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(("version", "accepted"), [("2.10.1+cu128", False), ("2.11.0", True), ("3.0.0a0", True)])
def test_old_torch_is_refused_by_version(version: str, accepted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    if accepted:
        franca._refuse_old_torch()
    else:
        with pytest.raises(ImportError, match=r"needs torch >= 2\.11, this environment has 2\.10\.1\+cu128"):
            franca._refuse_old_torch()


def test_oldest_torch_is_the_declared_one() -> None:
    declared = next(Requirement(line) for line in PROJECT["project"]["dependencies"] if line.startswith("torch>"))
    assert str(declared.specifier) == ">=" + ".".join(map(str, franca._OLDEST_TORCH))


@needs_make
@pytest.mark.parametrize("target", ["install", "quickstart", "test", "lint", "types", "tests", "format"])
def test_every_target_does_its_own_set_up(target: str, tmp_path: Path) -> None:
    """On a machine without .venv: what `make` would run, in which order."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "franca").mkdir()
    (tmp_path / "franca" / "__init__.py").touch()
    done = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True)
    made, installed = (done.stdout.find(words) for words in (" -m venv .venv", " -m pip install "))
    assert 0 <= made < installed
    assert "-c constraints.txt -e '.[dev]'" in done.stdout
    used = [place.start() for place in re.finditer(r"\.venv/bin/(?!python -m pip)|make --no-print", done.stdout)]
    assert all(installed < place for place in used)
    assert bool(used) == (target != "install")


@needs_make
@pytest.mark.parametrize("found", ["3.10", None])
def test_make_says_which_python_it_needs(found: str | None, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "franca").mkdir()
    (tmp_path / "franca" / "__init__.py").touch()
    python = tmp_path / "python-for-make"
    if found:
        version = tuple(map(int, found.split(".")))
        pretend = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$2"\n')
        python.chmod(0o755)
    done = subprocess.run(["make", "install", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Franca needs Python 3.11 or newer" in done.stdout + done.stderr
    assert (found or str(python)) in done.stdout + done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("already", [None, "", "/elsewhere"])
def test_ci_uses_the_folders_beside_the_repository(already: str | None, tmp_path: Path) -> None:
    (tmp_path / "shared" / "parity").mkdir(parents=True)
    shutil.copytree(ROOT / ".ci", tmp_path / "main" / ".ci")
    make = tmp_path / "bin" / "make"
    make.parent.mkdir()
    make.write_text('#!/bin/sh\necho "$1 parity=$FRANCA_PARITY data=${FRANCA_DATA-unset}"\n')
    make.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FRANCA_")}
    environment |= {"PATH": f"{make.parent}:{os.environ['PATH']}"} | (
        {} if already is None else {"FRANCA_PARITY": already}
    )
    run = tmp_path / "main" / ".ci" / "run"
    done = subprocess.run(["bash", run], env=environment, capture_output=True, text=True, check=True)
    expected = tmp_path / "shared" / "parity" if already is None else already
    assert done.stdout == f"test parity={expected} data=unset\n"


@pytest.mark.parametrize("processes", [0, 2])
def test_summary_counts_what_was_skipped(processes: int, tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text(
        "def test_one(parity_dir): ...\n"
        "def test_two(parity_dir): ...\n"
        "def test_three(data_dir): assert data_dir.is_dir()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "FRANCA_PARITY"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", str(processes), "--rootdir=."]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment | {"FRANCA_DATA": "."}, capture_output=True, text=True, check=True
    )
    assert "2 tests skipped because FRANCA_PARITY is not set" in done.stdout
    assert "0 tests skipped because FRANCA_DATA is not set" in done.stdout
    assert re.search(r"1 passed, 2 skipped", done.stdout.splitlines()[-1])


def test_a_test_that_waits_for_ever_is_ended(tmp_path: Path) -> None:
    conftest = (ROOT / "tests" / "conftest.py").read_text()
    (tmp_path / "conftest.py").write_text(re.sub(r"^LIMIT = \d+", "LIMIT = 1", conftest, flags=re.MULTILINE))
    (tmp_path / "test_some.py").write_text("import subprocess\n\ndef test_one(): subprocess.run(['sleep', '60'])\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir=."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert "Failed: this test takes more than 1 seconds" in done.stdout
