"""Published weights load where torch, and what torch itself needs, is all that is installed."""

import os
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SITE = Path(sysconfig.get_path("purelib"))
PROGRAM = """
import sys, warnings, torch
warnings.simplefilter("error")  # torch itself complains that numpy is not there
untrained = torch.hub.load(sys.argv[1], "franca_vits14", source="local", pretrained=False, img_size=28)
import franca, franca.hub, franca.models
from franca.hub import checkpoint, files, safetensors
from franca.models import RASAHead

images, head = torch.ones(1, 3, 28, 28), RASAHead(untrained.embed_dim, 2)
torch.save({"teacher": {f"module.backbone.{n}": t for n, t in untrained.state_dict().items()}}, "small.pth")
torch.save(head.state_dict(), "small_rasa.pth")
with open("small.safetensors", "wb") as file:
    safetensors.write(untrained.state_dict(), {}, file)
for path in ("small.pth", "small.safetensors"):
    model = torch.hub.load(sys.argv[1], "franca_vits14", source="local", local_state_dict=path, use_rasa_head=True)
    assert torch.equal(model(images), untrained(images))
    found = model.forward_features(images, use_rasa_head=True)
    assert torch.equal(found["patch_token_rasa"], head(found["x_norm_patchtokens"]))
    assert torch.equal(franca.load_model(checkpoint=path)(images), untrained(images))
    assert franca.hub.describe(path)["arch"] == "vit_small"
print(franca.__file__)
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""
IMPORTABLE = """
import pkgutil, sys, sysconfig
own = sysconfig.get_path("stdlib")
print(*[module.name for module in pkgutil.iter_modules([place for place in sys.path if not place.startswith(own)])])
"""


def closure(distribution: str) -> set[str]:
    """A distribution and all that its requirements install here."""
    found, queue = set(), [distribution]
    while queue:
        name = canonicalize_name(queue.pop())
        if name in found:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        wanted = [Requirement(line) for line in requirements]
        queue += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def top_levels(distributions: set[str]) -> set[str]:
    """What of the site folder belongs to these distributions: packages, modules and their metadata."""
    entries = set()
    for name in distributions:
        files = metadata.distribution(name).files or []
        entries |= {file.parts[0] for file in files if not file.parts[0].startswith("..")}
    return entries - {"__pycache__"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A folder of links to torch and its requirements."""
    folder = tmp_path_factory.mktemp("bare")
    for entry in top_levels(closure("torch")):
        (folder / entry).symlink_to(SITE / entry)
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The repository as far as torch.hub needs it."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "franca", folder / "franca", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "hubconf.py", folder)
    return folder


def run(program: str, path: list[Path], work: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Without the site folder (-S)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FRANCA_"))}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [sys.executable, "-S", "-c", program, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True)


def test_everything_loads_from_a_clone_with_torch_alone(bare, clone, tmp_path) -> None:
    """By torch.hub and without it, forward passes and RASA heads too; the clone is on no path before torch.hub's."""
    done = run(PROGRAM, [bare], tmp_path, clone)
    assert done.returncode == 0, done.stderr
    place, modules = done.stdout.splitlines()[-2:]
    assert Path(place).is_relative_to(clone)
    loaded = set(modules.split())
    assert {"torch", "franca"} <= loaded
    assert not loaded & ({"numpy", "PIL", "torchvision", "omegaconf", "rich"} - needed_by_torch())


@cache
def needed_by_torch() -> set[str]:
    """Top-level modules and packages of torch and its requirements."""
    return {entry.split(".")[0] for entry in top_levels(closure("torch"))}


def test_the_environment_is_bare(bare, tmp_path) -> None:
    """Nothing else can be imported, or the test above says nothing."""
    done = run(IMPORTABLE, [bare], tmp_path)
    found = set(done.stdout.split())
    assert "torch" in found
    assert found <= needed_by_torch()


@pytest.mark.parametrize("module", ["numpy", "torchvision", "omegaconf", "PIL", "rich", "timm", "safetensors"])
def test_what_the_rest_of_the_project_uses_is_out_of_reach(bare, tmp_path, module) -> None:
    if module in needed_by_torch():
        pytest.skip(f"{module} belongs to torch's own requirements here")
    done = run(f"import {module}", [bare], tmp_path)
    assert f"ModuleNotFoundError: No module named '{module}'" in done.stderr
