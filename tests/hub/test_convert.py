"""Conversion: what is written for another library gives the same features there, and comes back unchanged."""

import os
from pathlib import Path

import pytest
import torch

import franca
from franca.hub import CheckpointError, describe
from franca.hub.convert import convert
from franca.models import RASAHead
from tests.hub.conversion import (
    FOLDERS,
    LAYOUTS,
    SIZE,
    assert_same,
    every_network,
    load_timm,
    load_transformers,
    output,
    random_model,
    save,
    tokens,
)

os.environ["HF_HUB_OFFLINE"] = "1"


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


@pytest.mark.parametrize("to", FOLDERS)
def test_describe_tells_what_a_library_s_folder_tells(to: str, tmp_path: Path) -> None:
    convert(save(tmp_path / "in.pth", random_model()), tmp_path / "out", to)
    described = describe(tmp_path / "out")
    assert (described["mean"], described["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def test_describe_is_silent_on_what_nothing_tells(parity_dir: Path) -> None:
    assert not {"mean", "std"} & describe(parity_dir / "tiny_checkpoint.pth", num_heads=2).keys()


def test_what_the_released_layout_drops_is_said(tmp_path: Path) -> None:
    """Its reader takes the authors' values, and heads of 64 channels."""
    odd = save(tmp_path / "odd.pth", random_model(interpolate_offset=0.0, interpolate_antialias=True))
    done = convert(odd, tmp_path / "out.pth", "upstream")
    dropped = next(note for note in done.notes if "no place" in note)
    for part in ("mean=[0.1, 0.2, 0.3]", "std=[0.4, 0.5, 0.6]", "interpolate_offset=0.0", "interpolate_antialias=True"):
        assert part in dropped
    assert done.load.endswith("num_heads=2)")
    usual = save(tmp_path / "usual.pth", random_model(heads=1, width=64), mean=None, std=None)
    done = convert(usual, tmp_path / "other.pth", "upstream")
    assert not any("no place" in note for note in done.notes)
    assert "num_heads" not in done.load


@pytest.mark.parametrize("name", ["franca_vitb14_In21K.pth", "FRANCA_VITB14_in21k.pth"])
def test_the_licence_of_published_weights_goes_along(name: str, tmp_path: Path) -> None:
    source = save(tmp_path / name, random_model())
    for place in (source, tmp_path):
        done = convert(place, tmp_path / "out", "timm", force=True)
        assert any("research-only licence" in note for note in done.notes)
    source.rename(tmp_path / "mine.pth")
    assert not any("licence" in note for note in convert(tmp_path / "mine.pth", tmp_path / "o", "timm").notes)
