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
from franca.hub.layouts import build, build_rasa, rasa_depth, recognise, recognise_rasa, split
from franca.hub.names import chunk_blocks
from franca.models import BACKBONES, RASAHead, VisionTransformer

State = dict[str, Tensor]
SMALL = {"img_size": 42, "embed_dim": 24, "depth": 4, "num_heads": 2}
IMAGES = torch.randn(1, 3, 56, 42, generator=torch.Generator().manual_seed(0))


def network(**options: Any) -> VisionTransformer:
    """A small network whose every parameter matters, with the class token and positions far from zero."""
    model = VisionTransformer(**(SMALL | options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.2, generator=generator)
    return model.eval()


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


HEAD = {"last_layer.weight_g": torch.ones(5, 1), "last_layer.weight_v": torch.ones(5, 4)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}


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


class TestResampling:
    """How positions are resampled is no tensor: it follows from who wrote the file."""

    @pytest.mark.parametrize(
        ("wrap", "registers", "expected"),
        [
            (lambda s: s, 0, ("dinov2", 0.1, False)),
            (lambda s: s, 4, ("dinov2", 0.0, True)),
            (lambda s: {"teacher": s}, 0, ("upstream", 0.1, False)),
            (lambda s: {"teacher": s}, 4, ("upstream", 0.1, False)),
            (chunk_blocks, 0, ("upstream", 0.1, False)),
        ],
    )
    def test_conventions(self, wrap, registers, expected) -> None:
        found = recognise(wrap(network(num_register_tokens=registers).state_dict()), "a test", num_heads=2)
        resampling = (found.config["interpolate_offset"], found.config["interpolate_antialias"])
        assert (found.layout, *resampling) == expected

    @pytest.mark.parametrize("registers", [0, 4])
    @pytest.mark.parametrize("swiglu", [False, True])
    def test_transformers_gives_the_same_features_on_every_grid(self, registers, swiglu, tmp_path) -> None:
        transformers = pytest.importorskip("transformers")
        kind = "Dinov2WithRegisters" if registers else "Dinov2"
        config = getattr(transformers, f"{kind}Config")(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=56,
            patch_size=14,
            use_swiglu_ffn=swiglu,
            **({"num_register_tokens": registers} if registers else {}),
        )
        model = getattr(transformers, f"{kind}Model")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.1, 0.2)
        model.save_pretrained(tmp_path)
        loaded = load_model(checkpoint=tmp_path)
        for size in ((56, 56), (84, 70), (28, 42)):
            images = torch.randn(1, 3, *size)
            with torch.no_grad():
                theirs = model(images).last_hidden_state
                ours = loaded.forward_features(images)
            torch.testing.assert_close(ours["x_norm_clstoken"], theirs[:, 0], rtol=0, atol=2e-5)
            torch.testing.assert_close(ours["x_norm_patchtokens"], theirs[:, 1 + registers :], rtol=0, atol=2e-5)

    @pytest.mark.parametrize("registers", [0, 4])
    def test_timm_gives_the_same_features_on_every_grid(self, registers) -> None:
        timm = pytest.importorskip("timm")
        model = timm.create_model(
            f"vit_base_patch14_{'reg4_' if registers else ''}dinov2",
            img_size=56,
            embed_dim=24,
            depth=2,
            num_heads=3,
            dynamic_img_size=True,
        ).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.1, 0.2)
        loaded = load_model(checkpoint=model.state_dict(), num_heads=3)
        for size in ((56, 56), (84, 70), (28, 42)):
            images = torch.randn(1, 3, *size)
            with torch.no_grad():
                theirs = model.forward_features(images)
                ours = loaded.forward_features(images)
            torch.testing.assert_close(ours["x_norm_clstoken"], theirs[:, 0], rtol=0, atol=2e-5)
            torch.testing.assert_close(ours["x_norm_patchtokens"], theirs[:, 1 + registers :], rtol=0, atol=2e-5)


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


class TestRASA:
    @pytest.mark.parametrize("layers", [0, 1, 8, 9, 12])
    @pytest.mark.parametrize("prefix", ["", "rasa_head.", "module.rasa_head.", "backbone.rasa_head.", "module."])
    def test_any_number_of_earlier_layers_under_any_prefix(self, layers, prefix) -> None:
        head = RASAHead(24, layers)
        rasa = recognise_rasa(prefixed(prefix, head.state_dict()), "a test")
        assert rasa_depth(rasa) == layers
        features = torch.randn(2, 5, 24)
        torch.testing.assert_close(build_rasa(rasa, 24, "a test")(features), head(features), rtol=0, atol=0)

    def test_recorded_heads(self, parity_dir) -> None:
        for recorded in json.loads((parity_dir / "keys.json").read_text())["rasa_head"].values():
            state = {name: torch.zeros(shape) for name, shape in recorded["keys"].items()}
            head = build_rasa(recognise_rasa({"teacher": state}, "keys.json"), 768, "keys.json")
            assert {name: list(tensor.shape) for name, tensor in head.state_dict().items()} == recorded["keys"]

    def test_inside_a_checkpoint_it_is_attached_when_asked(self) -> None:
        model = network()
        model.rasa_head = RASAHead(24, 3)
        content = {"teacher": prefixed("backbone.", model.state_dict())}
        assert load_model(checkpoint=content, num_heads=2).rasa_head is None
        loaded = load_model(checkpoint=content, num_heads=2, use_rasa_head=True)
        features = [each.forward_features(IMAGES, use_rasa_head=True)["patch_token_rasa"] for each in (loaded, model)]
        torch.testing.assert_close(*features, rtol=0, atol=0)
        assert not loaded.rasa_head.training

    def test_from_a_file_of_its_own(self, tmp_path) -> None:
        head = RASAHead(24, 2)
        torch.save(head.state_dict(), tmp_path / "my_rasa.pth")
        state = network().state_dict()
        for source in (tmp_path / "my_rasa.pth", str(tmp_path), head.state_dict()):
            loaded = load_model(checkpoint=state, num_heads=2, RASA_local_state_dict=source)
            torch.testing.assert_close(loaded.rasa_head.state_dict(), head.state_dict())

    def test_folded_in_it_is_a_map(self) -> None:
        model = network()
        model.patch_map = torch.nn.Linear(24, 24, bias=False)
        loaded = load_model(checkpoint=model.state_dict(), num_heads=2)
        features = [each.forward_features(IMAGES)["x_norm_patchtokens"] for each in (loaded, model)]
        torch.testing.assert_close(*features, rtol=0, atol=0)
        with pytest.raises(CheckpointError, match="RASA is folded into"):
            load_model(checkpoint=model.state_dict(), num_heads=2, use_rasa_head=True)

    def test_another_width_is_named(self) -> None:
        head = RASAHead(32, 1).state_dict()
        with pytest.raises(CheckpointError, match=r"features of width 32, this backbone's have 24"):
            load_model(checkpoint=network().state_dict(), num_heads=2, RASA_local_state_dict=head)

    def test_gaps_are_named(self) -> None:
        state = RASAHead(24, 3).state_dict()
        del state["pre_pos_layers.1.weight"]
        with pytest.raises(CheckpointError, match=r"missing     pre_pos_layers\.1\.weight"):
            build_rasa(state, 24, "a test")

    def test_a_file_without_one_says_how_to_get_one(self) -> None:
        with pytest.raises(CheckpointError, match=r"holds no RASA head.*RASA_local_state_dict.*python -m rasa\.train"):
            load_model(checkpoint=network().state_dict(), num_heads=2, use_rasa_head=True)
        with pytest.raises(CheckpointError, match=r"holds no RASA head \(pos_pred"):
            load_model(checkpoint=network().state_dict(), num_heads=2, RASA_local_state_dict={"a": torch.ones(1)})


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
