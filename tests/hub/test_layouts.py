"""Layouts in circulation: whatever wraps the tensors, the same network comes out, or the reason why none does."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from franca.hub import CheckpointError, load_model
from franca.hub.architecture import name_architecture
from franca.hub.layouts import build, recognise, split
from franca.hub.names import chunk_blocks
from franca.models import BACKBONES, RASAHead, VisionTransformer
from tests.hub.networks import HEAD, IMAGES, OPTIMIZER, SMALL, State, network, prefixed


def other(state: State) -> State:
    return {name: tensor + 1 for name, tensor in state.items()}


WRAPPED: dict[str, Callable[[State], Any]] = {
    "flat": lambda s: s,
    "teacher, backbone.": lambda s: {"teacher": prefixed("backbone.", s)},
    "teacher, module.backbone.": lambda s: {"teacher": prefixed("module.backbone.", s)},
    "teacher, backbone.module.": lambda s: {"teacher": prefixed("backbone.module.", s)},
    "teacher, chunks": lambda s: {"teacher": prefixed("backbone.", chunk_blocks(s, 2))},
    "chunks alone": lambda s: chunk_blocks(s, 4),
    "teacher, no prefix": lambda s: {"teacher": s},
    "heads beside": lambda s: {"teacher": prefixed("backbone.", s) | prefixed("dino_head.", HEAD)},
    "entries by part": lambda s: {"teacher": {"backbone": s, "ibot_head": HEAD}},
    "student and teacher": lambda s: {"student": other(s), "teacher": s, "epoch": 3, "optimizer": OPTIMIZER},
    "pair in one": lambda s: {"model": prefixed("student.backbone.", other(s)) | prefixed("teacher.backbone.", s)},
    "pair at the top": lambda s: prefixed("module.student.", other(s)) | prefixed("module.teacher.", s),
    "compiled": lambda s: {"model": prefixed("_orig_mod.", s), "optimizer": OPTIMIZER},
    "compiled blocks": lambda s: {name.replace(".norm1", "._orig_mod.norm1"): t for name, t in s.items()},
    "sharded": lambda s: {"teacher": prefixed("backbone._fsdp_wrapped_module.", s)},
    "lightning": lambda s: {"state_dict": prefixed("model.", s), "global_step": 5},
    "nested": lambda s: {"model": {"state_dict": prefixed("module._orig_mod.teacher.backbone.", s)}},
    "student alone": lambda s: {"student": prefixed("module.", s)},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("ffn", ["swiglu", "mlp"])
def test_wrappers_change_nothing(wrap, ffn) -> None:
    model = network(ffn=ffn)
    loaded = load_model(checkpoint=wrap(model.state_dict()), num_heads=2)
    assert not loaded.training
    assert loaded.config | {"init_values": 1.0} == model.config | {"init_values": 1.0}
    torch.testing.assert_close(loaded(IMAGES), model(IMAGES), rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"patch_size": 7, "img_size": 35},
        {"in_chans": 5},
        {"mlp_ratio": 3.0},
        {"mlp_ratio": 3.0, "ffn": "mlp"},
        {"mlp_ratio": 2.7, "ffn": "mlp", "embed_dim": 28},
        {"depth": 11},
        {"embed_dim": 128, "depth": 1},
    ],
)
def test_architecture_is_read_from_the_tensors(options) -> None:
    model = network(**options)
    found = recognise(model.state_dict(), "a test", num_heads=2)
    assert found.config["img_size"] == model.config["img_size"]
    images = torch.randn(1, model.in_chans, 70, 70)
    torch.testing.assert_close(build(found)(images), model(images), rtol=0, atol=0)


def test_loading_draws_no_random_numbers() -> None:
    state = network().state_dict()
    before = torch.random.get_rng_state()
    load_model(checkpoint=state, num_heads=2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_other_precisions_become_float32() -> None:
    model = network()
    halves = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    loaded = load_model(checkpoint=halves, num_heads=2)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.pos_embed, model.pos_embed, rtol=1e-2, atol=1e-2)


class TestRecordedUpstream:
    def test_tiny_checkpoint(self, parity_dir) -> None:
        model = load_model(checkpoint=parity_dir / "tiny_checkpoint.pth", num_heads=2)
        with np.load(parity_dir / "tiny_checkpoint_forward.npz", allow_pickle=False) as stored:
            reference = {name: torch.from_numpy(stored[name]) for name in stored.files}
        with torch.no_grad():
            features = model.forward_features(reference.pop("x").float())
        assert reference
        for name, expected in reference.items():
            torch.testing.assert_close(features[name], expected.float(), rtol=0, atol=2e-5)

    def test_tiny_checkpoint_asks_for_its_heads(self, parity_dir) -> None:
        with pytest.raises(CheckpointError, match=r"tiny_checkpoint\.pth doesn't say how many.*width 32.*num_heads="):
            load_model(checkpoint=parity_dir / "tiny_checkpoint.pth")

    def test_heads_of_the_tiny_checkpoint_are_kept_apart(self, parity_dir) -> None:
        content = torch.load(parity_dir / "tiny_checkpoint.pth", weights_only=True)
        heads = recognise(content, "tiny", num_heads=2).heads
        names = {f"{head}.{name}" for head, state in heads.items() for name in state}
        assert names == {name for name in content["teacher"] if not name.startswith("backbone.")}

    def test_every_recorded_backbone(self, parity_dir) -> None:
        """Names and shapes alone, on the meta device: sizes, chunks, registers and both feed-forward networks."""
        for case, recorded in json.loads((parity_dir / "keys.json").read_text())["backbones"].items():
            state = {name: torch.empty(shape, device="meta") for name, shape in recorded["keys"].items()}
            found = recognise(state, case)
            with torch.device("meta"):
                wanted = VisionTransformer(**found.config).state_dict()
            assert {name: t.shape for name, t in found.backbone.items()} == {n: t.shape for n, t in wanted.items()}
            arch, *settings = case.split("/")
            assert found.arch == arch
            assert f"img_size={found.config['img_size']}" in settings
            assert found.config["num_heads"] == recorded["num_heads"]
            assert found.notes == []

    def test_what_upstream_takes_and_refuses(self, parity_dir) -> None:
        """Every layout that it was tried on: all are accepted but for unknown and missing tensors, which are named."""
        recorded = json.loads((parity_dir / "keys.json").read_text())["hub"]["loader_round_trip"]
        model = network()
        state = chunk_blocks(model.state_dict(), 4)
        without = {name: tensor for name, tensor in state.items() if name != "cls_token"}
        contents: dict[str, Any] = {
            "teacher + backbone. prefix": {"teacher": prefixed("backbone.", state)},
            "teacher + module.backbone. prefix": {"teacher": prefixed("module.backbone.", state)},
            "teacher, no prefix": {"teacher": state},
            "no teacher key": prefixed("backbone.", state),
            "teacher + heads present": {"teacher": prefixed("backbone.", state) | prefixed("ibot_head.", HEAD)},
            "teacher + unknown key": {"teacher": state | {"foo.bar": torch.ones(2)}},
            "teacher, one key missing": {"teacher": without},
            "teacher, flat blocks.N. keys": {"teacher": prefixed("backbone.", model.state_dict())},
        }
        assert contents.keys() == recorded.keys()
        wrong = {
            "teacher + unknown key": r"unexpected  foo\.bar \(2,\)",
            "teacher, one key missing": r"missing     cls_token \(1, 1, 24\)",
        }
        for case, content in contents.items():
            if case in wrong:
                with pytest.raises(CheckpointError, match=wrong[case]):
                    load_model(checkpoint=content, num_heads=2)
            else:
                loaded = load_model(checkpoint=content, num_heads=2)
                torch.testing.assert_close(loaded(IMAGES), model(IMAGES), rtol=0, atol=0)


class TestFilledIn:
    def test_a_plain_vit(self) -> None:
        """Neither layer scale nor mask token, as DINO's first weights: the scales are ones, and both are noted."""
        model = network(ffn="mlp")
        for block in model.blocks:
            torch.nn.init.ones_(block.ls1.gamma)
            torch.nn.init.ones_(block.ls2.gamma)
        plain = {name: t for name, t in model.state_dict().items() if "gamma" not in name and name != "mask_token"}
        found = recognise({"teacher": prefixed("module.backbone.", plain)}, "a test", num_heads=2)
        loaded = build(found)
        torch.testing.assert_close(loaded(IMAGES), model(IMAGES), rtol=0, atol=0)
        assert not loaded.mask_token.any()
        assert found.notes == ["no mask token in the file: zeros", "no layer scale in the file: ones"]

    def test_one_missing_scale_is_not_filled_in(self) -> None:
        state = network().state_dict()
        del state["blocks.1.ls1.gamma"]
        with pytest.raises(CheckpointError, match=r"missing     blocks\.1\.ls1\.gamma"):
            load_model(checkpoint=state, num_heads=2)


class TestNoBackbone:
    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (prefixed("dino_head.", HEAD), r"dino_head \(2 tensors\)"),
            (RASAHead(24, 2).state_dict(), r"a RASA head of 3 layers \(RASA_local_state_dict"),
            ({"optimizer": OPTIMIZER, "epoch": 3}, "an optimizer's state"),
            (OPTIMIZER, "an optimizer's state"),
            (
                {"conv1.weight": torch.ones(2), "bn.weight": torch.ones(2)},
                r"conv1\.weight, bn\.weight, … \(2 tensors\)",
            ),
            ({}, "no tensors"),
            (None, "no tensors"),
        ],
    )
    def test_what_is_there_instead_is_named(self, content, found) -> None:
        with pytest.raises(CheckpointError, match=f"a test holds no backbone; found: {found}"):
            recognise(content, "a test")


class TestUnusable:
    def change(self, **changes: Tensor | None) -> State:
        state = network().state_dict() | {name.replace("__", "."): value for name, value in changes.items()}
        return {name: tensor for name, tensor in state.items() if tensor is not None}

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"pos_embed": torch.zeros(1, 13, 24)}, r"class token and 12 positions, which are no\s+square grid"),
            ({"pos_embed": None}, r"without pos_embed; positions of another kind \(rotary"),
            ({"pos_embed": torch.zeros(10, 24)}, r"pos_embed has shape \(10, 24\), expected 3 dimensions"),
            ({"cls_token": torch.zeros(1, 1, 24, dtype=torch.int8)}, r"cls_token is torch\.int8; quantised"),
            ({"norm__weight": torch.zeros(25)}, r"norm\.weight: file \(25,\), model \(24,\)"),
            ({"blocks__7__norm1__weight": torch.zeros(24)}, r"missing     blocks\.4\."),
            ({"patch_embed__proj__weight": None}, r"without patch_embed\.proj\.weight"),
        ],
    )
    def test_reason(self, changes, reason) -> None:
        with pytest.raises(CheckpointError, match=reason):
            load_model(checkpoint=self.change(**changes), num_heads=2)

    @pytest.mark.parametrize(("heads", "reason"), [(5, "num_heads=5 doesn't divide"), (0, "num_heads=0")])
    def test_heads_that_dont_divide(self, heads, reason) -> None:
        with pytest.raises(CheckpointError, match=reason):
            load_model(checkpoint=network().state_dict(), num_heads=heads)

    def test_two_models_in_one_are_not_mixed(self) -> None:
        state = network().state_dict()
        with pytest.raises(CheckpointError, match="several tensors cls_token"):
            split(state | prefixed("backbone.", state), "a test")

    def test_positions_of_other_tensors_are_named(self) -> None:
        """A layer that the network has not (q_norm, say) is no backbone of ours, however much of it fits."""
        with pytest.raises(CheckpointError, match=r"unexpected  blocks\.0\.attn\.q_norm\.weight"):
            load_model(checkpoint=self.change(blocks__0__attn__q_norm__weight=torch.ones(12)), num_heads=2)


def test_sizes_have_their_names() -> None:
    for name, builder in BACKBONES.items():
        with torch.device("meta"):
            assert name_architecture(builder().config) == name
    assert name_architecture(SMALL) == "custom"
