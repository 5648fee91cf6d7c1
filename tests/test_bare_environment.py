"""Published weights load where torch, and what torch itself needs, is all that is installed."""

import os
import re
import subprocess
import sys
import sysconfig
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
import franca, franca.hub, franca.models, hubconf
from franca.hub import checkpoint, files, safetensors

untrained = torch.hub.load(sys.argv[1], "franca_vits14", source="local", pretrained=False, img_size=28)
torch.save({"teacher": {f"module.backbone.{n}": t for n, t in untrained.state_dict().items()}}, "small.pth")
with open("small.safetensors", "wb") as file:
    safetensors.write(untrained.state_dict(), {}, file)
for path in ("small.pth", "small.safetensors"):
    model = franca.load_model("franca_vits14", local_state_dict=path)
    assert torch.equal(model(torch.ones(1, 3, 28, 28)), untrained(torch.ones(1, 3, 28, 28)))
    assert franca.hub.describe(path)["arch"] == "vit_small"
print(*sorted({name.split(".")[0] for name in sys.modules}))
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


def run(program: str, path: list[Path], work: Path) -> subprocess.CompletedProcess[str]:
    """Without the site folder (-S)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FRANCA_"))}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [sys.executable, "-S", "-c", program, str(ROOT)]
    return subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True)


def test_everything_loads_with_torch_alone(bare, tmp_path) -> None:
    done = run(PROGRAM, [bare, ROOT], tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"torch", "franca", "hubconf"} <= loaded
    assert not loaded & {"numpy", "PIL", "torchvision", "omegaconf", "rich"}


@pytest.mark.parametrize("module", ["torchvision", "omegaconf", "PIL", "rich", "timm", "transformers", "safetensors"])
def test_the_environment_is_bare(bare, tmp_path, module) -> None:
    """What the rest of the project uses is really out of reach, or the test above says nothing."""
    if module in {re.sub(r"\.py$", "", entry.name) for entry in bare.iterdir()}:
        pytest.skip(f"{module} belongs to torch's own requirements here")
    done = run(f"import {module}", [bare, ROOT], tmp_path)
    assert "ModuleNotFoundError" in done.stderr
