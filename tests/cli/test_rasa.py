"""`python -m rasa.train`: from images and a network to a head, a folded model and a page; one line for bad input."""

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import franca
from franca.hub import describe, save_teacher
from franca.models import BACKBONES, RASAHead, VisionTransformer
from rasa import rasa_matrix
from rasa.backbones import BackboneConfig
from rasa.run_folder import RunFolder
from rasa.train import main
from tests.warm import Command, captured

ROOT = Path(__file__).resolve().parents[2]

TINY = """\
device: cpu
precision: fp32
rounds: 3
saturation: 0.0
data: {size: 56, views: 4, batch_size: 16, workers: 0}
gradient: {lr: 0.05, epochs: 10, batch_size: 16}
evidence: {crops: 0}
"""


@pytest.fixture
def place(tmp_path: Path, images: Path) -> Path:
    """A folder with tiny.yaml, and a teacher whose patches know their place in more than one plane."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=56, embed_dim=32, depth=2, num_heads=2, init_values=1.0)
    nn.init.normal_(model.pos_embed)
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    save_teacher(tmp_path / "teacher.pth", state, {"arch": "custom", "backbone": model.config, "mean": [0.4] * 3})
    chosen = yaml.safe_load(TINY) | {"backbone": {"name": str(tmp_path / "teacher.pth")}}
    chosen["data"]["path"] = str(images)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(chosen))
    return tmp_path


@pytest.fixture
def run(place: Path) -> Callable[..., int]:
    """`run("key=value", …, output="run")`: the command in this process; its exit status."""
    return lambda *arguments, output="run": main(
        ["--config", str(place / "tiny.yaml"), f"output={place / output}", *arguments]
    )


def head_in(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "rasa.pth", weights_only=True)


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "rasa.json").read_text())


@pytest.mark.parametrize("command", [Command("rasa.train", ["--help"]), Command("franca", ["rasa", "--help"])])
def test_help_is_a_page_to_work_from(command: Command) -> None:
    done = captured(command, folder=ROOT)
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"--config (\S+\.yaml)", done.stdout)
    assert shown
    for file in shown:
        assert (ROOT / file).is_file(), f"--help shows {file}"
    for words in ("goes on behind the last round", "folded.pth", "key=value", "backbone.kind=timm"):
        assert words in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["closed_form", "gradient"])
def test_a_process_of_its_own_from_images_to_the_page(solver: str, place: Path) -> None:
    arguments = [f"output={place / 'run'}", f"solver={solver}", "rounds=8", "evidence.crops=80", "evidence.pictures=2"]
    done = captured(Command("rasa.train", ["--config", str(place / "tiny.yaml"), *arguments]), folder=ROOT)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    page = place / "run" / "report" / "index.html"
    assert said == [str(place / "run" / name) for name in ("rasa.pth", "rasa.json", "folded.pth")] + [str(page)]
    assert all(Path(line).is_file() for line in said)
    pictures = set(re.findall(r'<img[^>]* src="([^"]+)"', page.read_text()))
    assert pictures == {file.name for file in page.parent.glob("*.png")} != set()
    # what happened is told while it happens, round by round, and written down
    told = about(place / "run")
    for number, one in enumerate(told["rounds"], start=1):
        assert f"round {number}: position error {one['position_error_held_out']:.4f} on held-out images" in done.stderr
    before, after = told["evidence"]["before"], told["evidence"]["after"]
    assert before["position_r2"] > 0.8
    assert after["position_r2"] < before["position_r2"] - 0.2
    assert after["position_rmse"] > before["position_rmse"]
    assert 0 < told["evidence"]["variance_removed"] < 0.5
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("solver", ["closed_form", "gradient"])
def test_the_head_and_the_folded_model_load_and_agree(solver: str, run: Callable[..., int], place: Path) -> None:
    assert run(f"solver={solver}") == 0
    torch.manual_seed(0)
    images = torch.randn(2, 3, 56, 56)
    teacher, head = place / "teacher.pth", place / "run" / "rasa.pth"
    model = franca.load_model(checkpoint=teacher, RASA_local_state_dict=head)
    both = model.forward_features(images, use_rasa_head=True)
    folded = franca.load_model(checkpoint=place / "run" / "folded.pth")
    found = folded.forward_features(images)
    torch.testing.assert_close(found["x_norm_patchtokens"], both["patch_token_rasa"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["x_norm_clstoken"], both["x_norm_clstoken"], rtol=0, atol=0)
    described = describe(place / "run" / "folded.pth")
    assert (described["stage"], described["rasa_rounds"], described["mean"]) == ("rasa", 3, [0.4] * 3)
    assert described["folded_from_hash"] == about(place / "run")["backbone_hash"]
    # the file has the published names, and what it removes is a subspace of two dimensions for each round
    assert set(head_in(place / "run")) == {
        f"{layer}.weight" for layer in ("pos_pred", *(f"pre_pos_layers.{i}" for i in (0, 1)))
    }
    matrix = rasa_matrix(model.rasa_head)
    torch.testing.assert_close(matrix @ matrix, matrix, rtol=0, atol=1e-6)
    assert round(matrix.trace().item()) == 32 - 2 * 3 == 32 - about(place / "run")["dimensions_removed"]


def test_the_head_goes_with_the_entry_points(tmp_path: Path) -> None:
    """As published heads do: `franca_vits14(local_state_dict=…, RASA_local_state_dict=…)`."""
    torch.manual_seed(0)
    model, head = BACKBONES["vit_small"](img_size=28).eval(), RASAHead(384, 3)
    torch.save(model.state_dict(), tmp_path / "small.pth")
    torch.save(head.state_dict(), tmp_path / "rasa.pth")
    files = {"local_state_dict": tmp_path / "small.pth", "RASA_local_state_dict": tmp_path / "rasa.pth"}
    loaded = torch.hub.load(str(ROOT), "franca_vits14", source="local", **files)
    found = loaded.forward_features(torch.randn(1, 3, 28, 28), use_rasa_head=True)
    torch.testing.assert_close(found["patch_token_rasa"], head(found["x_norm_patchtokens"]))


def test_a_stopped_run_says_how_it_goes_on(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def impatient(folder: RunFolder, made: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save_round", impatient)
    assert run() == 128 + signal.SIGINT
    assert capsys.readouterr().err.endswith("stopped; the same command goes on behind the last round\n")


def nan_weights(place: Path) -> None:
    content = torch.load(place / "teacher.pth", weights_only=True)
    content["teacher"]["backbone.blocks.1.attn.proj.weight"][0, 0] = torch.nan
    save_teacher(place / "teacher.pth", content["teacher"], content["description"])


def no_grid(place: Path) -> None:
    (place / "merging_backbone.py").write_text(
        "def build():\n    return lambda images: images.flatten(2)[:, :, :14].transpose(1, 2)\n"
    )
    sys.path.insert(0, str(place))


def no_position(place: Path) -> None:
    (place / "colour_backbone.py").write_text(
        "import torch\ndef build():\n    return lambda images: torch.nn.functional.avg_pool2d(images, 8)\n"
    )
    sys.path.insert(0, str(place))


def one_image(place: Path) -> None:
    (place / "one").mkdir()
    source = next((Path(yaml.safe_load((place / "tiny.yaml").read_text())["data"]["path"]) / "cats").iterdir())
    (place / "one" / source.name).symlink_to(source)


def voc_root(place: Path) -> None:
    one_image(place)
    (place / "one").rename(place / "JPEGImages")


def nothing(place: Path) -> None:
    """No preparation."""


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (nothing, ["data.path={place}/missing"], r"data\.path='.*missing' does not exist"),
        (nothing, ["data.list={place}/none.txt"], r"data\.list='.*none\.txt' is no file"),
        (voc_root, ["data.path={place}"], r"root of a Pascal VOC tree.*give '.*JPEGImages'"),
        (one_image, ["data.path={place}/one"], r"1 image: RASA needs at least 4"),
        (
            nothing,
            ["data.max_images=5", "data.views=1"],
            r"2 crops of 16 patches to fit 32 features on: give at least 8",
        ),
        (
            nothing,
            ["data.max_images=5", "data.views=1", "solver=gradient"],
            r"2 crops of 16 patches to fit 32 features",
        ),
        (nothing, ["data.size=50"], r"\b50\b.*\b14\b"),
        (nan_weights, [], r"teacher\.pth gives features that are not finite .* for \w+/\d\.png: check the weights"),
        (nan_weights, ["solver=gradient"], r"features that are not finite"),
        (nothing, ["backbone.name={place}/none.pth"], r"none\.pth"),
        (
            nothing,
            ["backbone.kind=timm", "backbone.name=vit_nonsense"],
            r"timm can't make backbone\.name='vit_nonsense'",
        ),
        (
            nothing,
            ["backbone.kind=callable", "backbone.name=nowhere:build"],
            r"backbone\.name='nowhere:build' is no mod",
        ),
        (
            no_grid,
            ["backbone.kind=callable", "backbone.name=merging_backbone:build"],
            r"returned 14 tokens for images of 56 x 56 pixels which form no square grid",
        ),
        (
            no_position,
            ["backbone.kind=callable", "backbone.name=colour_backbone:build", "saturation=0.1"],
            r"no position was found to remove",
        ),
        (nothing, ["solver=gradient", "gradient.lr=1000000"], r"predictor is saturated: .*Lower gradient\.lr=1"),
        (nothing, ["solver=magic"], r"solver='magic': choose one of closed_form, gradient"),
        (nothing, ["rounds=0"], r"rounds=0 must be at least 1"),
        (nothing, ["roundz=3"], r"'roundz' not in .* Did you mean: 'rounds'"),
        (nothing, ["evidence.pictures=0"], r"pictures=0 at least 1"),
        (nothing, ["cache.where=cloud"], r"cache\.where='cloud'"),
        (nothing, ["output={place}/tiny.yaml"], r"tiny\.yaml"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    prepare: Callable[[Path], None],
    arguments: list[str],
    message: str,
    run: Callable[..., int],
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))  # whatever a preparation adds goes with the test
    prepare(place)
    assert run(*(argument.format(place=place) for argument in arguments)) == 2
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert "Traceback" not in said.err
    assert said.out == ""


def test_evidence_that_fails_costs_no_head(
    run: Callable[..., int], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evidence.crops=1") == 0
    told = capsys.readouterr()
    assert "folded.pth" in told.out
    assert "report" not in told.out
    assert head_in(place / "run")
    assert about(place / "run")["evidence"] is None
    assert (place / "run" / "folded.pth").is_file()


def test_a_function_of_ones_own_has_no_folded_model(
    run: Callable[..., int], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It keeps the head alone; `rasa.fold` wraps it."""
    (place / "placed_backbone.py").write_text(
        "import torch\n"
        "def build():\n"
        "    ramp = torch.linspace(-1, 1, 7)\n"
        "    places = torch.stack(torch.meshgrid(ramp, ramp, indexing='ij'))\n"
        "    def features(images):\n"
        "        colours = torch.nn.functional.avg_pool2d(images, 8)\n"
        "        return torch.cat([colours, places.expand(len(images), -1, -1, -1)], dim=1)\n"
        "    return features\n"
    )
    monkeypatch.syspath_prepend(place)
    assert run("backbone.kind=callable", "backbone.name=placed_backbone:build", "rounds=1") == 0
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["rasa.pth", "rasa.json"]
    head = RASAHead(5, 0)
    head.load_state_dict(head_in(place / "run"))
    backbone = BackboneConfig("callable", "placed_backbone:build").load()
    left = head(backbone(torch.zeros(1, 3, 56, 56)))
    assert left.std(dim=(0, 1, 2)).max() < 0.01 < backbone(torch.zeros(1, 3, 56, 56)).std()
