"""RASA heads in checkpoints: under any prefix, in any entry or file, with any number of earlier layers."""

import json

import pytest
import torch

from franca.hub import CheckpointError, load_model
from franca.hub.layouts import build_rasa, rasa_depth, recognise_rasa
from franca.models import RASAHead
from tests.hub.networks import IMAGES, network, prefixed


@pytest.mark.parametrize("layers", [0, 1, 8, 9, 12])
@pytest.mark.parametrize("prefix", ["", "rasa_head.", "module.rasa_head.", "backbone.rasa_head.", "module."])
def test_any_number_of_earlier_layers_under_any_prefix(layers, prefix) -> None:
    head = RASAHead(24, layers)
    rasa = recognise_rasa(prefixed(prefix, head.state_dict()), "a test")
    assert rasa_depth(rasa) == layers
    features = torch.randn(2, 5, 24)
    torch.testing.assert_close(build_rasa(rasa, 24, "a test")(features), head(features), rtol=0, atol=0)


def test_recorded_heads(parity_dir) -> None:
    for recorded in json.loads((parity_dir / "keys.json").read_text())["rasa_head"].values():
        state = {name: torch.zeros(shape) for name, shape in recorded["keys"].items()}
        head = build_rasa(recognise_rasa({"teacher": state}, "keys.json"), 768, "keys.json")
        assert {name: list(tensor.shape) for name, tensor in head.state_dict().items()} == recorded["keys"]


def test_inside_a_checkpoint_it_is_attached_when_asked() -> None:
    model = network()
    model.rasa_head = RASAHead(24, 3)
    content = {"teacher": prefixed("backbone.", model.state_dict())}
    assert load_model(checkpoint=content, num_heads=2).rasa_head is None
    loaded = load_model(checkpoint=content, num_heads=2, use_rasa_head=True)
    features = [each.forward_features(IMAGES, use_rasa_head=True)["patch_token_rasa"] for each in (loaded, model)]
    torch.testing.assert_close(*features, rtol=0, atol=0)
    assert not loaded.rasa_head.training


def test_from_a_file_of_its_own(tmp_path) -> None:
    head = RASAHead(24, 2)
    torch.save(head.state_dict(), tmp_path / "my_rasa.pth")
    state = network().state_dict()
    for source in (tmp_path / "my_rasa.pth", str(tmp_path), head.state_dict()):
        loaded = load_model(checkpoint=state, num_heads=2, RASA_local_state_dict=source)
        torch.testing.assert_close(loaded.rasa_head.state_dict(), head.state_dict())


def test_folded_in_it_is_a_map() -> None:
    model = network()
    model.patch_map = torch.nn.Linear(24, 24, bias=False)
    loaded = load_model(checkpoint=model.state_dict(), num_heads=2)
    features = [each.forward_features(IMAGES)["x_norm_patchtokens"] for each in (loaded, model)]
    torch.testing.assert_close(*features, rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="RASA is folded into"):
        load_model(checkpoint=model.state_dict(), num_heads=2, use_rasa_head=True)


def test_another_width_is_named() -> None:
    head = RASAHead(32, 1).state_dict()
    with pytest.raises(CheckpointError, match=r"features of width 32, this backbone's have 24"):
        load_model(checkpoint=network().state_dict(), num_heads=2, RASA_local_state_dict=head)


def test_gaps_are_named() -> None:
    state = RASAHead(24, 3).state_dict()
    del state["pre_pos_layers.1.weight"]
    with pytest.raises(CheckpointError, match=r"missing     pre_pos_layers\.1\.weight"):
        build_rasa(state, 24, "a test")


def test_a_file_without_one_says_how_to_get_one() -> None:
    with pytest.raises(CheckpointError, match=r"holds no RASA head.*RASA_local_state_dict.*python -m rasa\.train"):
        load_model(checkpoint=network().state_dict(), num_heads=2, use_rasa_head=True)
    with pytest.raises(CheckpointError, match=r"holds no RASA head \(pos_pred"):
        load_model(checkpoint=network().state_dict(), num_heads=2, RASA_local_state_dict={"a": torch.ones(1)})


def other_head() -> dict:
    return prefixed("rasa_head.", RASAHead(24, 5).state_dict())


APART = {
    "an entry": lambda state, head: {"teacher": state, "rasa_head": head},
    "an entry of another name": lambda state, head: {"teacher": state, "rasa": head},
    "names at the top": lambda state, head: {"teacher": state} | prefixed("rasa_head.", head),
    "bare names at the top": lambda state, head: {"state_dict": state, "epoch": 3} | head,
    "an entry's state_dict": lambda state, head: {"teacher": state, "rasa_head": {"state_dict": head}},
    "beside the inner entry": lambda state, head: {"model": {"state_dict": state, "module.rasa_head": head}},
    "flat names": lambda state, head: prefixed("teacher.backbone.", state) | prefixed("rasa_head.", head),
    "not the student's": lambda state, head: {"teacher": state, "student": state | other_head(), "rasa_head": head},
    "not the optimizer's": lambda state, head: {"teacher": state, "rasa_head": head, "optimizer": other_head()},
}


@pytest.mark.parametrize("content", APART.values(), ids=APART)
def test_beside_the_weights_in_one_file(content) -> None:
    head, state = RASAHead(24, 3).state_dict(), network().state_dict()
    loaded = load_model(checkpoint=content(state, head), num_heads=2, use_rasa_head=True)
    torch.testing.assert_close(loaded.rasa_head.state_dict(), head, rtol=0, atol=0)


def test_that_of_another_network_is_not_taken() -> None:
    state = network().state_dict()
    content = {"teacher": state, "student": state | other_head()}
    with pytest.raises(CheckpointError, match="holds no RASA head"):
        load_model(checkpoint=content, num_heads=2, use_rasa_head=True)


def test_several_are_not_mixed() -> None:
    content = {"teacher": network().state_dict(), "rasa": other_head(), "rasa_old": other_head()}
    with pytest.raises(CheckpointError, match="holds several RASA heads"):
        load_model(checkpoint=content, num_heads=2)
