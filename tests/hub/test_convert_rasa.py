"""Conversion of RASA: a head goes along inside or beside, a folded map where there is a place for it."""

from pathlib import Path

import pytest
import torch

import franca
from franca.hub import CheckpointError, describe
from franca.hub.convert import convert
from franca.models import RASAHead
from tests.hub.conversion import LAYOUTS, SIZE, assert_same, folded, output, random_model, save, tokens, with_head


@pytest.mark.parametrize("to", ["franca", "safetensors"])
def test_head_stays_inside(to: str, tmp_path: Path) -> None:
    model = with_head(tmp_path / "in.pth")
    convert(tmp_path / "in.pth", output(tmp_path, to), to)
    loaded = franca.load_model(checkpoint=output(tmp_path, to), use_rasa_head=True)
    images = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        found, expected = (m.forward_features(images, use_rasa_head=True) for m in (loaded, model))
    torch.testing.assert_close(found["patch_token_rasa"], expected["patch_token_rasa"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("to", "name"), [("upstream", "out_rasa.pth"), ("transformers", "out/rasa.pth"), ("timm", "out/rasa.pth")]
)
def test_head_is_written_beside(to: str, name: str, tmp_path: Path) -> None:
    model = with_head(tmp_path / "in.pth")
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
def test_head_is_left_out_when_asked(to: str, tmp_path: Path) -> None:
    with_head(tmp_path / "in.pth")
    convert(tmp_path / "in.pth", output(tmp_path, to), to, with_rasa=False)
    assert not list(tmp_path.rglob("*rasa*"))


@pytest.mark.parametrize("to", ["franca", "safetensors"])
def test_folded_map_stays(to: str, tmp_path: Path) -> None:
    model = folded(tmp_path / "in.pth")
    convert(tmp_path / "in.pth", output(tmp_path, to), to)
    loaded = franca.load_model(checkpoint=output(tmp_path, to))
    images = torch.randn(1, 3, SIZE, SIZE)
    torch.testing.assert_close(tokens(loaded, images), tokens(model, images), rtol=0, atol=1e-5)


def test_description_forgets_a_map_that_is_left_out(tmp_path: Path) -> None:
    model = folded(tmp_path / "in.pth")
    save(tmp_path / "in.pth", model, stage="rasa", rasa_rounds=3)
    convert(tmp_path / "in.pth", tmp_path / "out.pth", "franca", with_rasa=False)
    described = describe(tmp_path / "out.pth")
    assert not {"stage", "rasa_rounds"} & described.keys()
    assert described["step"] == 7


@pytest.mark.parametrize("to", ["upstream", "transformers", "timm"])
def test_folded_map_has_no_place_elsewhere(to: str, tmp_path: Path) -> None:
    model = folded(tmp_path / "in.pth")
    with pytest.raises(CheckpointError, match=r"folded into this model.*--without-rasa"):
        convert(tmp_path / "in.pth", output(tmp_path, to), to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth"]
    convert(tmp_path / "in.pth", output(tmp_path, to), to, with_rasa=False)
    loaded = franca.load_model(checkpoint=output(tmp_path, to), **({"num_heads": 2} if to == "upstream" else {}))
    model.patch_map = None
    images = torch.randn(1, 3, SIZE, SIZE)
    torch.testing.assert_close(tokens(loaded, images), tokens(model, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("to", LAYOUTS)
@pytest.mark.parametrize("name", ["{}_rasa.pth", "{}_RASA.PTH"])
def test_a_head_of_other_weights_is_never_left_beside(to: str, name: str, tmp_path: Path) -> None:
    """It would pass for that of the new file."""
    save(tmp_path / "without.pth", random_model())
    place = output(tmp_path, to)
    convert(tmp_path / "without.pth", place, to)
    stale = place / name.format("").removeprefix("_") if place.is_dir() else tmp_path / name.format(place.stem)
    torch.save(RASAHead(24, 1).state_dict(), stale)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=rf"{stale.name} would pass for the RASA head of .*{place.name}"):
        convert(tmp_path / "without.pth", place, to, force=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    stale.unlink()
    convert(tmp_path / "without.pth", place, to, force=True)


def test_a_head_that_is_written_anew_is_replaced(tmp_path: Path) -> None:
    with_head(tmp_path / "with.pth")
    convert(tmp_path / "with.pth", tmp_path / "out.pth", "upstream")
    torch.save(RASAHead(24, 1).state_dict(), tmp_path / "out_rasa.pth")
    convert(tmp_path / "with.pth", tmp_path / "out.pth", "upstream", force=True)
    assert describe(tmp_path / "out_rasa.pth")["rasa"]["n_pos_layers"] == 2
