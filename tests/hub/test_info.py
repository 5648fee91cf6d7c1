"""`franca info`: what it says of each kind of checkpoint is what the checkpoint was made of."""

import hashlib
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from franca.hub import CheckpointError, describe, save_teacher
from franca.hub.convert import convert
from franca.hub.info import inspect, lines, main
from franca.hub.names import chunk_blocks
from franca.models import MatryoshkaHead, RASAHead, VisionTransformer

os.environ["HF_HUB_OFFLINE"] = "1"
SIZES = ("embed_dim", "depth", "num_heads", "ffn", "patch_size", "num_register_tokens", "in_chans")
DESCRIPTION = {
    "stage": "pretrain",
    "data": "/data/images",
    "step": 70,
    "images_seen": 4480,
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
}


def model(width: int = 64, heads: int = 1, **options: Any) -> VisionTransformer:
    sizes: dict[str, Any] = {"img_size": 56, "embed_dim": width, "depth": 4, "num_heads": heads}
    return VisionTransformer(**(sizes | {"num_register_tokens": 3} | options))


def save(path: Path, network: VisionTransformer, **description: Any) -> dict[str, Any]:
    """A teacher file with two heads; its description as written."""
    state = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    for name, prototypes in (("dino_head", 32), ("ibot_head", 16)):
        head = MatryoshkaHead(network.embed_dim, prototypes, nesting=(1 / 4, 1), hidden_dim=8, bottleneck_dim=4)
        state |= {f"{name}.{key}": tensor for key, tensor in head.state_dict().items()}
    return save_teacher(path, state, DESCRIPTION | {"arch": "custom", "backbone": network.config} | description)


def rasa(width: int, layers: int) -> dict[str, Tensor]:
    return RASAHead(width, layers).state_dict()


def table(path: Path) -> dict[str, str]:
    """The printed table without the notes."""
    printed = [(line[:14].strip(), line[14:]) for line in lines(inspect(path))]
    return {name: value for name, value in printed if name != "note"}


def test_a_teacher_file(tmp_path: Path) -> None:
    network = model()
    written = save(tmp_path / "teacher.pth", network)
    about = inspect(tmp_path / "teacher.pth")
    assert about["layout"] == "franca"
    assert about["arch"] == "custom"
    assert {name: about["backbone"][name] for name in SIZES} == {
        "embed_dim": 64,
        "depth": 4,
        "num_heads": 1,
        "ffn": "swiglu",
        "patch_size": 14,
        "num_register_tokens": 3,
        "in_chans": 3,
    }
    assert (about["grid"], about["backbone"]["img_size"]) == (4, 56)
    assert about["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert {key: about[key] for key in DESCRIPTION} == DESCRIPTION
    assert [about["heads"]["dino_head"][name] for name in ("widths", "prototypes")] == [[16, 64], [8, 32]]
    assert [about["heads"]["ibot_head"][name] for name in ("widths", "prototypes")] == [[16, 64], [4, 16]]
    assert about["hash"] == written["hash"]
    assert about["versions"] == {key: written[key] for key in ("format", "franca", "torch")}
    assert about["bytes"] == (tmp_path / "teacher.pth").stat().st_size
    assert (about["rasa"], about["notes"], about["sha256"]) == (None, [], None)


def test_a_description_may_leave_out_what_is_usual(tmp_path: Path) -> None:
    save(tmp_path / "teacher.pth", model())
    content = torch.load(tmp_path / "teacher.pth", weights_only=True)
    for name in ("patch_size", "ffn", "in_chans"):
        del content["description"]["backbone"][name]
    torch.save(content, tmp_path / "teacher.pth")
    assert "swiglu, patch 14, registers 3, channels 3" in table(tmp_path / "teacher.pth")["architecture"]


def test_the_table_says_the_same(tmp_path: Path) -> None:
    written = save(tmp_path / "teacher.pth", model())
    printed = table(tmp_path / "teacher.pth")
    assert printed["architecture"] == "custom: width 64, blocks 4, heads 1, swiglu, patch 14, registers 3, channels 3"
    assert printed["positions"] == "4 x 4, for images of 56 pixels"
    assert printed["trained"] == "pretrain, on /data/images, 70 steps, 4480 images seen"
    assert "dino_head (2 levels: features 16, 64; prototypes 8, 32)" in printed["heads"]
    assert printed["hash"] == written["hash"]
    assert "RASA" not in printed


def test_a_released_file(parity_dir: Path) -> None:
    """Upstream's layout: what only a description could tell stays open."""
    path = parity_dir / "tiny_checkpoint.pth"
    tensors = torch.load(path, weights_only=True)["teacher"]
    about = inspect(path, num_heads=2)
    assert about["layout"] == "upstream"
    sizes = about["backbone"]
    assert sizes["embed_dim"] == tensors["backbone.cls_token"].shape[-1]
    assert about["grid"] ** 2 + 1 == tensors["backbone.pos_embed"].shape[1]
    assert about["parameters"] == sum(t.numel() for name, t in tensors.items() if name.startswith("backbone."))
    for name in ("dino_head", "ibot_head"):
        assert about["heads"][name]["widths"] == [sizes["embed_dim"] // 2**i for i in reversed(range(5))]
        assert about["heads"][name]["prototypes"] == [
            len(tensors[f"{name}.last_layers.{i}.weight_g"]) for i in range(5)
        ]
    assert about["stage"] is None
    assert about["mean"] is None
    assert about["notes"] == []
    assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()  # it carries no hash of its own


def test_a_file_that_lacks_tensors_is_not_called_whole(tmp_path: Path) -> None:
    save(tmp_path / "teacher.pth", model())
    convert(tmp_path / "teacher.pth", tmp_path / "bare.pth", "upstream")
    content = torch.load(tmp_path / "bare.pth", weights_only=True)
    gone = [name for name in content["teacher"] if ".attn.qkv." in name]
    torch.save({"teacher": {n: t for n, t in content["teacher"].items() if n not in gone}}, tmp_path / "part.pth")
    (note,) = (note for note in inspect(tmp_path / "part.pth", num_heads=1)["notes"] if "damaged" in note)
    assert f"{len(gone)} tensors don't fit, such as missing blocks.0.attn.qkv.weight" in note
    assert not any("damaged" in note for note in inspect(tmp_path / "bare.pth", num_heads=1)["notes"])


def test_guessed_attention_heads_are_said(tmp_path: Path) -> None:
    save(tmp_path / "teacher.pth", model())
    convert(tmp_path / "teacher.pth", tmp_path / "bare.pth", "upstream")
    assert any("width / 64" in note for note in inspect(tmp_path / "bare.pth")["notes"])
    assert not any("heads" in note for note in inspect(tmp_path / "bare.pth", num_heads=1)["notes"])


def test_attention_heads_that_cannot_be_told(parity_dir: Path) -> None:
    path = parity_dir / "tiny_checkpoint.pth"
    about = inspect(path)
    assert about["backbone"]["num_heads"] is None
    assert about["backbone"]["depth"] == inspect(path, num_heads=2)["backbone"]["depth"]
    assert any("--num-heads" in note for note in about["notes"])
    assert ", heads unknown," in table(path)["architecture"]


@pytest.mark.parametrize("to", ["upstream", "safetensors", "transformers", "timm"])
def test_every_layout_says_the_same_of_the_network(to: str, tmp_path: Path) -> None:
    save(tmp_path / "teacher.pth", model())
    expected = inspect(tmp_path / "teacher.pth")
    target = tmp_path / ("out.safetensors" if to == "safetensors" else "out.pth" if to == "upstream" else "out")
    convert(tmp_path / "teacher.pth", target, to)
    about = inspect(target)
    assert about["layout"] == {"safetensors": "franca"}.get(to, to)
    for key in ("arch", "grid", "parameters", "dtype"):
        assert about[key] == expected[key], key
    for key in ("img_size", *SIZES):
        assert about["backbone"][key] == expected["backbone"][key], key
    assert about["mean"] == (None if to == "upstream" else DESCRIPTION["mean"])


def test_a_published_size_is_named(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = model(384, 6, depth=12, num_register_tokens=0)
    state = {f"backbone.{name}": torch.zeros(tensor.shape) for name, tensor in network.state_dict().items()}
    torch.save({"teacher": chunk_blocks(state)}, tmp_path / "small.pth")
    assert inspect(tmp_path / "small.pth")["arch"] == "vit_small"


def test_describe_and_info_use_the_same_words(parity_dir: Path) -> None:
    path = parity_dir / "tiny_checkpoint.pth"
    described, about = describe(path, num_heads=2), inspect(path, num_heads=2)
    shared = described.keys() - {"hash"}
    assert shared >= {"arch", "backbone", "heads", "layout", "notes", "rasa"}
    assert {key: about[key] for key in shared} == {key: described[key] for key in shared}


class TestRASA:
    def test_by_itself(self, tmp_path: Path) -> None:
        torch.save(rasa(48, layers=8), tmp_path / "x_rasa.pth")
        about = inspect(tmp_path / "x_rasa.pth")
        assert about["layout"] == describe(tmp_path / "x_rasa.pth")["layout"] == "rasa"
        assert about["rasa"] == {"place": "by itself", "planes": 9, "input_dim": 48, "n_pos_layers": 8}
        assert "backbone" not in about
        assert table(tmp_path / "x_rasa.pth")["RASA"] == "9 planes of features of width 48, by itself"

    def test_inside(self, tmp_path: Path) -> None:
        network = model()
        network.rasa_head = RASAHead(64, 3)
        save(tmp_path / "teacher.pth", network)
        about = inspect(tmp_path / "teacher.pth")
        assert about["rasa"] == {"place": "inside", "planes": 4, "input_dim": 64, "n_pos_layers": 3}
        assert about["parameters"] == sum(parameter.numel() for parameter in model().parameters())

    @pytest.mark.parametrize("to", ["upstream", "timm"])
    def test_beside(self, to: str, tmp_path: Path) -> None:
        network = model()
        network.rasa_head = RASAHead(64, 3)
        save(tmp_path / "teacher.pth", network)
        target = tmp_path / ("out.pth" if to == "upstream" else "out")
        name = "out_rasa.pth" if to == "upstream" else "rasa.pth"
        convert(tmp_path / "teacher.pth", target, to)
        assert inspect(target)["rasa"] == {
            "place": f"beside: {name}",
            "planes": 4,
            "input_dim": 64,
            "n_pos_layers": 3,
        }

    @pytest.mark.parametrize("name", ["mine.pth", "mine_chunked.tar.gz"])
    def test_beside_in_any_case_and_beside_archives(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As load_model finds it."""
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        torch.save(model().state_dict(), tmp_path / "mine.pth")
        if name != "mine.pth":
            with tarfile.open(tmp_path / name, "w:gz") as tar:
                tar.add(tmp_path / "mine.pth", arcname="mine.pth")
        torch.save(rasa(64, 2), tmp_path / "Mine_RASA.pth")
        assert inspect(tmp_path / name)["rasa"]["place"] == "beside: Mine_RASA.pth"

    def test_folded_in(self, tmp_path: Path) -> None:
        network = model()
        network.patch_map = nn.Linear(64, 64, bias=False)
        save(tmp_path / "teacher.pth", network, rasa_rounds=5)
        about = inspect(tmp_path / "teacher.pth")["rasa"]
        assert about == {"place": "folded in (patch_map)", "planes": 5, "input_dim": 64}
        assert table(tmp_path / "teacher.pth")["RASA"] == "5 planes of features of width 64, folded in (patch_map)"


class TestFaults:
    def test_damage_is_noticed(self, tmp_path: Path) -> None:
        path = tmp_path / "teacher.pth"
        save(path, model())
        content = torch.load(path, weights_only=True)
        content["teacher"]["backbone.norm.bias"][0] += 1
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="damaged"):
            inspect(path)

    def test_what_holds_no_backbone(self, tmp_path: Path) -> None:
        torch.save({"optimizer": {"exp_avg": torch.zeros(2)}}, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match="no backbone"):
            inspect(tmp_path / "other.pth")

    def test_heads_that_do_not_divide_the_width(self, parity_dir: Path) -> None:
        with pytest.raises(CheckpointError, match="num_heads=5"):
            inspect(parity_dir / "tiny_checkpoint.pth", num_heads=5)


class TestCommand:
    @staticmethod
    def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["info", *map(str, arguments)])
        main()

    def test_json(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        save(tmp_path / "teacher.pth", model())
        self.run(monkeypatch, tmp_path / "teacher.pth", "--json")
        assert json.loads(capsys.readouterr().out) == inspect(tmp_path / "teacher.pth")

    def test_hash_is_the_files_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save(tmp_path / "teacher.pth", model())
        self.run(monkeypatch, tmp_path / "teacher.pth", "--hash")
        assert hashlib.sha256((tmp_path / "teacher.pth").read_bytes()).hexdigest() in capsys.readouterr().out

    @pytest.mark.parametrize("name", ["missing.pth", "text.pth", "empty"])
    def test_errors_are_one_line_with_status_2(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "text.pth").write_text("no checkpoint")
        (tmp_path / "empty").mkdir()
        with pytest.raises(SystemExit) as exit:
            self.run(monkeypatch, tmp_path / name)
        assert exit.value.code == 2
        printed = capsys.readouterr().err
        assert name in printed
        assert printed.count("\n") == 1
