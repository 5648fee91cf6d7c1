"""Conversion: what is written for another library gives the same features there, and comes back unchanged."""

import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch import Tensor, nn

import franca
from franca.hub import CheckpointError, describe, save_teacher
from franca.hub.convert import convert, main, write_together
from franca.models import MatryoshkaHead, RASAHead, VisionTransformer

os.environ["HF_HUB_OFFLINE"] = "1"
SIZE = 56  # pixels, 4 x 4 patches
LAYOUTS = ("franca", "upstream", "safetensors", "transformers", "timm")
FOLDERS = ("transformers", "timm")
# ffn, registers, heads, width: heads of 32 and of 12 channels
NETWORKS = [("swiglu", 0, 2, 64), ("swiglu", 4, 2, 24), ("mlp", 0, 2, 24), ("mlp", 2, 1, 64)]
every_network = pytest.mark.parametrize(("ffn", "registers", "heads", "width"), NETWORKS)


def random_model(
    ffn: str = "swiglu", registers: int = 0, heads: int = 2, width: int = 24, **options: Any
) -> VisionTransformer:
    """Every parameter is random, the mask token and each LayerScale too."""
    sizes = {"img_size": SIZE, "embed_dim": width, "depth": 4, "num_heads": heads}
    model = VisionTransformer(**(sizes | options), ffn=ffn, num_register_tokens=registers)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def save(path: Path, model: VisionTransformer, **description: Any) -> Path:
    """A teacher file with both heads."""
    head = MatryoshkaHead(model.embed_dim, 8, nesting=(1 / 2, 1), hidden_dim=8, bottleneck_dim=4)
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    for name in ("dino_head", "ibot_head"):
        state |= {f"{name}.{key}": tensor for key, tensor in head.state_dict().items()}
    described = {"arch": "custom", "backbone": model.config, "stage": "pretrain", "step": 7}
    save_teacher(path, state, described | {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]} | description)
    return path


def output(folder: Path, to: str) -> Path:
    return folder / {"safetensors": "out.safetensors"}.get(to, "out" if to in FOLDERS else "out.pth")


def load_transformers(folder: Path) -> nn.Module:
    """Loaded as a user would, with nothing missing, unexpected or of another shape."""
    transformers = pytest.importorskip("transformers")
    model, found = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert {name: problems for name, problems in found.items() if problems} == {}
    return model.eval()


def load_timm(folder: Path) -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def tokens(model: nn.Module, images: Tensor) -> Tensor:
    """(B, 1 + R + N, D) after the last norm, from any of the three."""
    with torch.no_grad():
        if isinstance(model, VisionTransformer):
            found = model.forward_features(images)
            parts = (found["x_norm_clstoken"][:, None], found["x_norm_regtokens"], found["x_norm_patchtokens"])
            return torch.cat(parts, dim=1)
        if hasattr(model, "forward_features"):
            return model.forward_features(images)
        return model(images).last_hidden_state


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0, msg=name)


@every_network
@pytest.mark.parametrize("to", FOLDERS)
@pytest.mark.parametrize("img_size", [None, 84])
def test_other_libraries_give_the_same_features(
    to: str, img_size: int | None, ffn: str, registers: int, heads: int, width: int, tmp_path: Path
) -> None:
    """At the stored size, and at another one whose positions are stored by the conversion."""
    model = random_model(ffn, registers, heads, width)
    convert(save(tmp_path / "in.pth", model), tmp_path / "out", to, img_size=img_size)
    other = {"transformers": load_transformers, "timm": load_timm}[to](tmp_path / "out")
    images = torch.randn(2, 3, img_size or SIZE, img_size or SIZE)
    torch.testing.assert_close(tokens(other, images), tokens(model, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("to", LAYOUTS)
@every_network
def test_round_trip(to: str, ffn: str, registers: int, heads: int, width: int, tmp_path: Path) -> None:
    model = random_model(ffn, registers, heads, width)
    convert(save(tmp_path / "in.pth", model), output(tmp_path, to), to)
    told = {"num_heads": heads} if to == "upstream" else {}  # a bare dictionary of tensors doesn't tell
    loaded = franca.load_model(checkpoint=output(tmp_path, to), **told)
    expected = model.state_dict()
    if to == "timm":  # which has no mask token, and adds the class token's position to the token where it has registers
        expected["mask_token"] = torch.zeros_like(expected["mask_token"])
        if registers:
            expected["cls_token"] = expected["cls_token"] + expected["pos_embed"][:, :1]
            expected["pos_embed"] = torch.cat([torch.zeros(1, 1, width), expected["pos_embed"][:, 1:]], dim=1)
    assert_same(loaded.state_dict(), expected)
    images = torch.randn(1, 3, SIZE, SIZE)
    torch.testing.assert_close(tokens(loaded, images), tokens(model, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("to", LAYOUTS)
def test_another_resolution_is_stored(to: str, tmp_path: Path) -> None:
    model = random_model(heads=2, width=24)
    convert(save(tmp_path / "in.pth", model), output(tmp_path, to), to, img_size=98)
    loaded = franca.load_model(checkpoint=output(tmp_path, to), **({"num_heads": 2} if to == "upstream" else {}))
    assert loaded.grid == 7
    images = torch.randn(1, 3, 98, 98)
    torch.testing.assert_close(tokens(loaded, images), tokens(model, images), rtol=0, atol=1e-5)


def test_upstream_layout(tmp_path: Path) -> None:
    """The names that the authors' loader asks for: blocks in chunks, and heads that it passes over."""
    model = random_model()
    convert(save(tmp_path / "in.pth", model), tmp_path / "out.pth", "upstream")
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    assert written.keys() == {"teacher"}
    names = written["teacher"].keys()
    assert {f"backbone.blocks.{i}.{i}.mlp.w12.weight" for i in range(4)} < names
    assert not any(name.startswith("backbone.blocks.0.1.") for name in names)
    assert {name.split(".")[0] for name in names} == {"backbone", "dino_head", "ibot_head"}


def test_released_checkpoint_returns_as_it_was(parity_dir: Path, tmp_path: Path) -> None:
    """Upstream's layout, read without a description, and written again from this project's file."""
    source = parity_dir / "tiny_checkpoint.pth"
    convert(source, tmp_path / "ours.pth", "franca", num_heads=2)
    described = describe(tmp_path / "ours.pth")
    assert described["converted_from"] == "upstream"
    assert described["backbone"]["num_heads"] == 2
    convert(tmp_path / "ours.pth", tmp_path / "theirs.pth", "upstream")
    read = torch.load(tmp_path / "theirs.pth", weights_only=True)["teacher"]
    original = torch.load(source, weights_only=True)["teacher"]
    # two chunks there, four here: the names of blocks differ by the chunk alone
    flat = {
        ".".join(p for i, p in enumerate(name.split(".")) if not ("blocks" in name and i == 2)): name for name in read
    }
    for name, tensor in original.items():
        key = ".".join(p for i, p in enumerate(name.split(".")) if not ("blocks" in name and i == 2))
        torch.testing.assert_close(read[flat[key]], tensor, rtol=0, atol=0, msg=name)
    assert len(read) == len(original)


def test_description_goes_along(tmp_path: Path) -> None:
    convert(save(tmp_path / "in.pth", random_model()), tmp_path / "a.safetensors", "safetensors", img_size=84)
    convert(tmp_path / "a.safetensors", tmp_path / "b.pth", "franca")
    described = describe(tmp_path / "b.pth")
    assert (described["stage"], described["step"], described["mean"]) == ("pretrain", 7, [0.1, 0.2, 0.3])
    assert described["backbone"]["img_size"] == 84


@pytest.mark.parametrize("to", FOLDERS)
def test_mean_and_std_come_back(to: str, tmp_path: Path) -> None:
    convert(save(tmp_path / "in.pth", random_model()), tmp_path / "out", to)
    done = convert(tmp_path / "out", tmp_path / "back.pth", "franca")
    described = describe(tmp_path / "back.pth")
    assert (described["mean"], described["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert not any("normalised" in note for note in done.notes)


@pytest.mark.parametrize("to", LAYOUTS)
def test_mean_and_std_that_nothing_tells_are_said_to_be_imagenets(to: str, tmp_path: Path) -> None:
    convert(save(tmp_path / "in.pth", random_model()), tmp_path / "bare.pth", "upstream")
    done = convert(tmp_path / "bare.pth", output(tmp_path, to), to, num_heads=2, force=True)
    assert any("normalised" in note and "ImageNet" in note for note in done.notes)


@pytest.mark.parametrize("to", ["franca", "upstream"])
def test_a_file_holds_its_own_tensors_alone(to: str, tmp_path: Path) -> None:
    """Not the whole file from which they were mapped, in which query, key and value lay apart."""
    model = random_model()
    model.rasa_head = RASAHead(24, 2)
    convert(save(tmp_path / "in.pth", model), tmp_path / "out", "transformers")
    convert(tmp_path / "in.pth", tmp_path / "a.safetensors", "safetensors")
    tensors = sum(tensor.nbytes for tensor in model.state_dict().values())
    for source in ("out", "a.safetensors"):
        done = convert(tmp_path / source, tmp_path / f"{source}.pth", to)
        assert sum(path.stat().st_size for path in done.files) < 1.1 * tensors + 50_000


def test_preprocessing_is_written_for_both_libraries(tmp_path: Path) -> None:
    transformers, timm = pytest.importorskip("transformers"), pytest.importorskip("timm")
    source = save(tmp_path / "in.pth", random_model())
    for to in FOLDERS:
        convert(source, tmp_path / to, to)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "transformers")
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    assert list(processor.image_std) == [0.4, 0.5, 0.6]
    pixels = processor(torch.zeros(3, 100, 80, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, SIZE, SIZE)
    torch.testing.assert_close(pixels[0, :, 0, 0], -torch.tensor([0.1, 0.2, 0.3]) / torch.tensor([0.4, 0.5, 0.6]))

    data = timm.data.resolve_model_data_config(load_timm(tmp_path / "timm"))
    assert (tuple(data["mean"]), tuple(data["std"])) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert tuple(data["input_size"]) == (3, SIZE, SIZE)


@pytest.mark.parametrize("to", FOLDERS)
def test_other_ratios_patches_and_channels(to: str, tmp_path: Path) -> None:
    """SwiGLU of 2 * 88 / 3 hidden units, rounded up: a width that a ratio times D doesn't hit exactly."""
    model = random_model(width=44, mlp_ratio=2.0, patch_size=8, img_size=32, in_chans=1, depth=2)
    convert(save(tmp_path / "in.pth", model, mean=[0.5], std=[0.5]), tmp_path / "out", to)
    other = {"transformers": load_transformers, "timm": load_timm}[to](tmp_path / "out")
    images = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(tokens(other, images), tokens(model, images), rtol=0, atol=1e-5)


def test_a_ratio_that_transformers_cannot_express_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "in.pth", random_model("mlp", mlp_ratio=2.5))
    with pytest.raises(CheckpointError, match=r"whole mlp_ratio.*60 hidden units at width 24"):
        convert(source, tmp_path / "out", "transformers")
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out", "timm")


@pytest.mark.parametrize("to", LAYOUTS)
def test_precision_is_kept(to: str, tmp_path: Path) -> None:
    model = random_model().to(torch.bfloat16)
    convert(save(tmp_path / "in.pth", model), output(tmp_path, to), to, img_size=84)
    if to in ("franca", "upstream"):
        written = torch.load(output(tmp_path, to), weights_only=True)["teacher"]
        written = {name: tensor for name, tensor in written.items() if name.startswith("backbone.")}
    else:
        load_file = pytest.importorskip("safetensors.torch").load_file
        written = load_file(output(tmp_path, to) / "model.safetensors" if to in FOLDERS else output(tmp_path, to))
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}


class TestRASA:
    @staticmethod
    def with_head(path: Path) -> VisionTransformer:
        model = random_model()
        model.rasa_head = RASAHead(24, 2)
        save(path, model)
        return model

    @staticmethod
    def folded(path: Path) -> VisionTransformer:
        model = random_model()
        model.patch_map = nn.Linear(24, 24, bias=False)
        save(path, model)
        return model.eval()

    @pytest.mark.parametrize("to", ["franca", "safetensors"])
    def test_head_stays_inside(self, to: str, tmp_path: Path) -> None:
        model = self.with_head(tmp_path / "in.pth")
        convert(tmp_path / "in.pth", output(tmp_path, to), to)
        loaded = franca.load_model(checkpoint=output(tmp_path, to), use_rasa_head=True)
        images = torch.randn(1, 3, SIZE, SIZE)
        with torch.no_grad():
            found, expected = (m.forward_features(images, use_rasa_head=True) for m in (loaded, model))
        torch.testing.assert_close(found["patch_token_rasa"], expected["patch_token_rasa"], rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("to", "name"), [("upstream", "out_rasa.pth"), ("transformers", "out/rasa.pth"), ("timm", "out/rasa.pth")]
    )
    def test_head_is_written_beside(self, to: str, name: str, tmp_path: Path) -> None:
        model = self.with_head(tmp_path / "in.pth")
        assert model.rasa_head is not None
        done = convert(tmp_path / "in.pth", output(tmp_path, to), to)
        assert tmp_path / name in done.files
        assert any("RASA" in note and Path(name).name in note for note in done.notes)
        assert_same(torch.load(tmp_path / name, weights_only=True), model.rasa_head.state_dict())
        told = {"num_heads": 2} if to == "upstream" else {}
        loaded = franca.load_model(checkpoint=output(tmp_path, to), RASA_local_state_dict=tmp_path / name, **told)
        images = torch.randn(1, 3, SIZE, SIZE)
        with torch.no_grad():
            found, expected = (m.forward_features(images, use_rasa_head=True) for m in (loaded, model))
        torch.testing.assert_close(found["patch_token_rasa"], expected["patch_token_rasa"], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("to", LAYOUTS)
    def test_head_is_left_out_when_asked(self, to: str, tmp_path: Path) -> None:
        self.with_head(tmp_path / "in.pth")
        convert(tmp_path / "in.pth", output(tmp_path, to), to, with_rasa=False)
        assert not list(tmp_path.rglob("*rasa*"))

    @pytest.mark.parametrize("to", ["franca", "safetensors"])
    def test_folded_map_stays(self, to: str, tmp_path: Path) -> None:
        model = self.folded(tmp_path / "in.pth")
        convert(tmp_path / "in.pth", output(tmp_path, to), to)
        loaded = franca.load_model(checkpoint=output(tmp_path, to))
        images = torch.randn(1, 3, SIZE, SIZE)
        torch.testing.assert_close(tokens(loaded, images), tokens(model, images), rtol=0, atol=1e-5)

    def test_description_forgets_a_map_that_is_left_out(self, tmp_path: Path) -> None:
        model = self.folded(tmp_path / "in.pth")
        save(tmp_path / "in.pth", model, stage="rasa", rasa_rounds=3)
        convert(tmp_path / "in.pth", tmp_path / "out.pth", "franca", with_rasa=False)
        described = describe(tmp_path / "out.pth")
        assert not {"stage", "rasa_rounds"} & described.keys()
        assert described["step"] == 7

    @pytest.mark.parametrize("to", ["upstream", "transformers", "timm"])
    def test_folded_map_has_no_place_elsewhere(self, to: str, tmp_path: Path) -> None:
        model = self.folded(tmp_path / "in.pth")
        with pytest.raises(CheckpointError, match=r"folded into this model.*--without-rasa"):
            convert(tmp_path / "in.pth", output(tmp_path, to), to)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth"]
        convert(tmp_path / "in.pth", output(tmp_path, to), to, with_rasa=False)
        loaded = franca.load_model(checkpoint=output(tmp_path, to), **({"num_heads": 2} if to == "upstream" else {}))
        model.patch_map = None
        images = torch.randn(1, 3, SIZE, SIZE)
        torch.testing.assert_close(tokens(loaded, images), tokens(model, images), rtol=0, atol=1e-5)


class TestOutput:
    @pytest.mark.parametrize("to", LAYOUTS)
    def test_nothing_is_replaced_unless_forced(self, to: str, tmp_path: Path) -> None:
        source = save(tmp_path / "in.pth", random_model())
        done = convert(source, output(tmp_path, to), to)
        before = {path: path.read_bytes() for path in done.files}
        with pytest.raises(FileExistsError, match=r"exists.*--force"):
            convert(source, output(tmp_path, to), to, img_size=84)
        assert {path: path.read_bytes() for path in done.files} == before
        convert(source, output(tmp_path, to), to, img_size=84, force=True)
        assert {path: path.read_bytes() for path in done.files} != before

    def test_other_files_of_a_folder_stay(self, tmp_path: Path) -> None:
        source = save(tmp_path / "in.pth", random_model())
        (tmp_path / "out").mkdir()
        (tmp_path / "out/README.md").write_text("mine")
        convert(source, tmp_path / "out", "timm")
        assert (tmp_path / "out/README.md").read_text() == "mine"

    def test_a_rasa_head_of_other_weights_is_noticed(self, tmp_path: Path) -> None:
        TestRASA.with_head(tmp_path / "in.pth")
        convert(tmp_path / "in.pth", tmp_path / "out", "timm")
        save(tmp_path / "other.pth", random_model())
        with pytest.raises(FileExistsError, match=r"rasa\.pth would pass for the RASA head of"):
            convert(tmp_path / "other.pth", tmp_path / "out", "timm", force=True)

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        source = save(tmp_path / "in.pth", random_model())
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("")
        with pytest.raises(FileExistsError, match="is a folder, and this layout is one file"):
            convert(source, tmp_path / "folder", "franca", force=True)
        with pytest.raises(FileExistsError, match="is a file, and this layout is a folder"):
            convert(source, tmp_path / "file", "timm", force=True)

    @pytest.mark.parametrize("existing", [False, True])
    def test_failure_leaves_nothing_new(self, existing: bool, tmp_path: Path) -> None:
        def succeed(file: BinaryIO) -> None:
            file.write(b"after")

        def fail(file: BinaryIO) -> None:
            file.write(b"half")
            raise RuntimeError("no space left")

        folder = tmp_path / "out"
        if existing:
            folder.mkdir()
            (folder / "a").write_text("before")
        files = {folder / "a": succeed, folder / "b": fail}
        with pytest.raises(OSError, match=r"out/b could not be written \(no space left\)"):
            write_together(files)
        assert folder.exists() == existing
        assert [path.name for path in tmp_path.rglob("*")] == (["out", "a"] if existing else [])
        assert not existing or (folder / "a").read_text() == "before"

    def test_an_image_size_that_is_no_grid_is_refused(self, tmp_path: Path) -> None:
        source = save(tmp_path / "in.pth", random_model())
        with pytest.raises(ValueError, match="img_size=100 is not a multiple of patch_size=14"):
            convert(source, tmp_path / "out", "timm", img_size=100)
        assert not (tmp_path / "out").exists()


class TestCommand:
    def test_says_what_was_written_and_how_to_load_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save(tmp_path / "in.pth", random_model())
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["convert", "in.pth", "out", "--to", "timm", "--img-size", "84"])
        main()
        printed = capsys.readouterr().out
        assert "wrote out/model.safetensors" in printed
        assert 'load it: timm.create_model("local-dir:out", pretrained=True)' in printed
        assert json.loads((tmp_path / "out/config.json").read_text())["model_args"]["img_size"] == 84

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["missing.pth", "out", "--to", "timm"], "missing.pth"),
            (["in.pth", "out", "--to", "timm", "--img-size", "15"], "not a multiple of patch_size"),
            (["in.pth", "nowhere/deep/out.pth", "--to", "franca"], "nowhere"),
            (["in.pth", "out", "--to", "onnx"], "onnx"),
        ],
    )
    def test_errors_are_one_message_with_status_2(
        self,
        arguments: list[str],
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        save(tmp_path / "in.pth", random_model())
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["convert", *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
        assert exit.value.code == 2
        assert message in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth"]
