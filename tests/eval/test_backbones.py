"""Backbones by what users call them, from files and folders of this machine alone."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from franca.data.multi_crop import IMAGENET_MEAN, IMAGENET_STD
from franca.eval.backbones import Backbone, load_backbone, parse
from franca.eval.errors import EvalError
from franca.eval.tokens import Tokens
from franca.hub import CheckpointError, load_model, save_teacher
from franca.hub.checkpoint import hash_tensors
from franca.hub.convert import convert
from franca.models import RASAHead, VisionTransformer
from rasa import fold
from tests.small_networks import build_network
from tests.warm import captured

HALF = [0.5, 0.5, 0.5]
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-5}


def save(path: Path, model: Any, **about: Any) -> Path:
    """A teacher file of a network."""
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    save_teacher(path, state, {"arch": "custom", "backbone": model.config, "mean": HALF, "std": HALF} | about)
    return path


@pytest.fixture
def model() -> Any:
    return build_network("franca", registers=2)


@pytest.fixture
def teacher(model: Any, tmp_path: Path) -> Path:
    """As a run leaves it, in its folder."""
    (tmp_path / "run").mkdir()
    return save(tmp_path / "run" / "teacher.pth", model)


@pytest.fixture
def head(tmp_path: Path) -> tuple[RASAHead, Path]:
    """A RASA head, and its file."""
    torch.manual_seed(1)
    made = RASAHead(32, 2)
    torch.save(made.state_dict(), tmp_path / "head.pth")
    return made, tmp_path / "head.pth"


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 42, 56, generator=torch.Generator().manual_seed(0))


def print_hash(file: Path) -> None:
    print(load_backbone(str(file)).hash)


def assert_same(found: list[Tokens], wanted: list[Tokens], **tolerance: Any) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.patches, other.patches, **tolerance)
        torch.testing.assert_close(one.cls, other.cls, **tolerance)


def test_a_run_is_its_teacher(teacher: Path, model: Any, images: Tensor) -> None:
    (teacher.parent / "checkpoints").mkdir()
    (teacher.parent / "other.pth").write_bytes(b"no checkpoint")
    for name in (teacher, teacher.parent):
        backbone = load_backbone(str(name))
        assert_same(backbone(images, 2), Backbone(model)(images, 2), rtol=0, atol=0)
        assert (backbone.mean, backbone.std) == (tuple(HALF), tuple(HALF))
        assert (backbone.patch_size, backbone.channels, backbone.blocks, backbone.name) == (14, 3, 2, str(name))
        torch.testing.assert_close(backbone.attention(images), Backbone(model).attention(images))
        assert not backbone.model.training
        assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_a_released_file_takes_heads_and_size(parity_dir: Path) -> None:
    file = str(parity_dir / "tiny_checkpoint.pth")
    images = torch.randn(2, 3, 56, 56)
    backbone = load_backbone(file, num_heads=2)
    features = load_model(checkpoint=file, num_heads=2).forward_features(images)
    (tokens,) = backbone(images)
    torch.testing.assert_close(tokens.patches.flatten(1, 2), features["x_norm_patchtokens"], rtol=0, atol=0)
    torch.testing.assert_close(tokens.cls, features["x_norm_clstoken"], rtol=0, atol=0)
    assert (backbone.mean, backbone.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert load_backbone(file, num_heads=2, img_size=42).model.grid == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"), [("timm", "timm:local-dir:{}"), ("timm", "timm:{}"), ("transformers", "transformers:{}")]
)
@pytest.mark.parametrize("blocks", [1, 2])
def test_other_libraries_give_what_this_one_gives(
    kind: str, name: str, blocks: int, teacher: Path, head: tuple[RASAHead, Path], images: Tensor, tmp_path: Path
) -> None:
    images = images[..., :42]
    model = build_network("franca", registers=2)
    model.rasa_head = head[0]
    save(tmp_path / "with_head.pth", model)
    convert(tmp_path / "with_head.pth", tmp_path / kind, kind, img_size=42)
    backbone = load_backbone(name.format(tmp_path / kind))
    wanted = load_backbone(str(teacher), img_size=42)
    assert_same(backbone(images, blocks), wanted(images, blocks), **CLOSE)
    torch.testing.assert_close(backbone.attention(images), wanted.attention(images), **CLOSE)
    assert (list(backbone.mean), list(backbone.std)) == (HALF, HALF)
    debiased = load_backbone(name.format(tmp_path / kind), rasa="inside")
    assert_same(debiased(images), load_backbone(str(teacher), str(head[1]), img_size=42)(images), **CLOSE)
    assert len({one.hash for one in (backbone, debiased, wanted)}) == 3


HUBCONF = """\
dependencies = ["torch"]

def colours(pretrained=True):
    import torch
    return torch.nn.AvgPool2d(14)
"""
OWN = """\
from torch.nn.functional import avg_pool2d

def maps(images):
    return avg_pool2d(images, 14)

def build():
    def colours(images):
        return avg_pool2d(images, 14)
    colours.mean, colours.std = (0.5, 0.5, 0.5), (0.1, 0.1, 0.1)
    return colours
"""


def test_torch_hub_and_functions_of_ones_own(images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    (tmp_path / "own_eval_backbone.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    wanted = nn.functional.avg_pool2d(images, 14).permute(0, 2, 3, 1)
    hashes = set()
    for name in (
        f"torch_hub:{tmp_path}:colours",
        "callable:own_eval_backbone:maps",
        "callable:own_eval_backbone:build",
    ):
        backbone = load_backbone(name)
        (tokens,) = backbone(images)
        torch.testing.assert_close(tokens.patches, wanted)
        assert tokens.cls is None
        assert (backbone.channels, backbone.blocks, backbone.patch_size) == (3, 1, None)
        hashes.add(backbone.hash)
    assert (backbone.mean, backbone.std) == ((0.5,) * 3, (0.1,) * 3)
    assert len(hashes) == 3


class TestRasa:
    """The patches of the last block are RASA's output; class tokens and earlier blocks stay."""

    def check(self, debiased: Backbone, plain: Backbone, head: RASAHead, images: Tensor) -> None:
        found, wanted = debiased(images, 2), plain(images, 2)
        torch.testing.assert_close(found[1].patches, head(wanted[1].patches))
        torch.testing.assert_close(found[0].patches, wanted[0].patches)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one.cls, other.cls)
        assert (found[1].patches - wanted[1].patches).abs().max() > 0.1
        torch.testing.assert_close(debiased(images)[-1].patches, found[1].patches)

    def test_a_file(self, teacher: Path, head: tuple[RASAHead, Path], images: Tensor) -> None:
        debiased = load_backbone(str(teacher), str(head[1]))
        self.check(debiased, load_backbone(str(teacher)), head[0], images)
        torch.testing.assert_close(
            debiased(images)[0].patches.flatten(1, 2),
            debiased.model.forward_features(images, use_rasa_head=True)["patch_token_rasa"],
        )

    def test_inside_the_file_it_is_used_when_asked_for(
        self, model: Any, head: tuple[RASAHead, Path], images: Tensor, tmp_path: Path
    ) -> None:
        plain = Backbone(build_network("franca", registers=2))
        model.rasa_head = head[0]
        file = str(save(tmp_path / "both.pth", model))
        assert_same(load_backbone(file)(images), plain(images))
        self.check(load_backbone(file, "inside"), plain, head[0], images)

    def test_beside_the_file(self, teacher: Path, head: tuple[RASAHead, Path], images: Tensor) -> None:
        head[1].rename(teacher.with_name("teacher_rasa.pth"))
        for name in (teacher, teacher.parent):
            self.check(load_backbone(str(name), "inside"), load_backbone(str(name)), head[0], images)

    def test_folded_it_is_the_network_itself(
        self, model: Any, head: tuple[RASAHead, Path], images: Tensor, tmp_path: Path
    ) -> None:
        file = str(save(tmp_path / "folded.pth", fold(model, head[0])))
        (found,), (plain,) = load_backbone(file)(images), Backbone(model)(images)
        torch.testing.assert_close(found.patches, head[0](plain.patches), rtol=0, atol=2e-4)
        with pytest.raises(EvalError, match=r"^--rasa .*head\.pth: RASA is folded into --model .*leave --rasa out"):
            load_backbone(file, str(head[1]))
        with pytest.raises(EvalError, match=r"^--rasa inside: .*RASA is folded into"):
            load_backbone(file, "inside")

    def test_of_another_width(self, teacher: Path, head: tuple[RASAHead, Path], images: Tensor) -> None:
        colour = load_backbone("colour", str(head[1]))
        with pytest.raises(EvalError, match=r"head reads patch features of width 32, those of colour have 3"):
            colour(images)
        torch.save(RASAHead(16, 0).state_dict(), head[1])
        with pytest.raises(EvalError, match=rf"patch features of width 16, those of --model {teacher} have 32"):
            load_backbone(str(teacher), str(head[1]))

    def test_of_other_weights_is_warned_of(
        self, teacher: Path, head: tuple[RASAHead, Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        file = head[1].rename(head[1].with_name("rasa.pth"))
        own = hash_tensors(load_backbone(str(teacher)).model.state_dict())
        facts = {"backbone": "franca:mine", "backbone_hash": own}
        for change, warned in (
            ({}, False),
            ({"backbone_hash": "0" * 64}, True),
            ({"backbone_hash": "0" * 64, "hash": hash_tensors(head[0].state_dict())}, True),
            ({"backbone_hash": "0" * 64, "hash": "of another head"}, False),
            ({"backbone_hash": ""}, False),
        ):
            caplog.clear()
            file.with_name("rasa.json").write_text(json.dumps(facts | change))
            load_backbone(str(teacher), str(file))
            assert bool(caplog.records) == warned
            assert (
                not warned
                or "other weights (franca:mine, hash of its tensors 000000000000) than those of" in caplog.text
            )

    def test_a_file_without_one(self, teacher: Path) -> None:
        with pytest.raises(EvalError, match=r"^--rasa inside: .*teacher\.pth holds no RASA head .*--rasa FILE"):
            load_backbone(str(teacher), "inside")

    @pytest.mark.parametrize("model", ["untrained:franca_vits14", "pixels", "timm:vit_tiny_patch16_224"])
    def test_where_there_is_none_inside(self, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
        import timm

        network = build_network("timm")
        network.pretrained_cfg = {}
        monkeypatch.setattr(timm, "create_model", lambda *_, **__: network)
        with pytest.raises(EvalError, match=rf"^--rasa inside: --model {model} .*--rasa FILE"):
            load_backbone(model, "inside")


class TestUntrained:
    """The architecture of a file, with weights as training begins."""

    def test_the_same_network_each_time(self, teacher: Path, model: Any) -> None:
        torch.manual_seed(5)
        before = torch.get_rng_state()
        first, second = (load_backbone(f"untrained:{name}") for name in (teacher, teacher.parent))
        assert torch.equal(torch.get_rng_state(), before)
        assert first.hash == second.hash != load_backbone(str(teacher)).hash
        assert first.model.config == model.config
        assert not torch.equal(first.model.pos_embed, model.pos_embed)
        assert first.model.blocks[0].ls1.gamma.unique().tolist() == [model.config["init_values"]]
        assert (first.mean, first.std) == (tuple(HALF), tuple(HALF))

    def test_of_an_entry_point(self) -> None:
        model = load_backbone("untrained:franca_vits14", img_size=224).model
        assert isinstance(model, VisionTransformer)
        assert (model.embed_dim, len(model.blocks), model.grid) == (384, 12, 16)

    def test_of_a_file_at_another_size(self, teacher: Path) -> None:
        assert load_backbone(f"untrained:{teacher}", img_size=28).model.grid == 2
        with pytest.raises(EvalError, match=r"^--model untrained:.*img_size=30 is not a multiple of patch_size=14"):
            load_backbone(f"untrained:{teacher}", img_size=30)


class TestHash:
    """It changes with whatever changes features, and with nothing else."""

    def test_it_depends_on_weights_settings_and_rasa(
        self, model: Any, teacher: Path, head: tuple[RASAHead, Path], tmp_path: Path
    ) -> None:
        plain = load_backbone(str(teacher))
        other = build_network("franca", registers=2)
        nn.init.normal_(other.norm.bias)
        model.config["interpolate_offset"] = 0.0
        different = [
            load_backbone(str(save(tmp_path / "weights.pth", other))),
            load_backbone(str(save(tmp_path / "settings.pth", model))),
            load_backbone(str(save(tmp_path / "mean.pth", build_network("franca", registers=2), mean=[0.4] * 3))),
            load_backbone(str(teacher), str(head[1])),
        ]
        assert len({one.hash for one in [plain, *different]}) == 5

    @pytest.mark.slow
    def test_neither_path_nor_process_matters(self, teacher: Path, tmp_path: Path) -> None:
        copied = tmp_path / "copied.pth"
        copied.write_bytes(teacher.read_bytes())
        done = captured(print_hash, copied, folder=tmp_path)
        assert done.stdout.strip() == load_backbone(str(teacher)).hash, done.stderr

    def test_what_a_file_of_transformers_lacks_is_drawn_the_same_each_time(self, tmp_path: Path) -> None:
        import transformers

        sizes: dict[str, Any] = {"image_size": 56, "patch_size": 14, "hidden_size": 32, "intermediate_size": 64}
        config = transformers.ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
        transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
        first = load_backbone(f"transformers:{tmp_path}")
        torch.rand(1)
        assert "pooler.dense.weight" in first.model.state_dict()
        assert load_backbone(f"transformers:{tmp_path}").hash == first.hash

    def test_functions_are_known_by_their_name(self) -> None:
        same = [Backbone(lambda images: images, source="a").hash, Backbone(lambda images: -images, source="a").hash]
        assert same[0] == same[1] != Backbone(lambda images: images, source="b").hash


def test_moving_takes_the_head_along(teacher: Path, head: tuple[RASAHead, Path]) -> None:
    backbone = load_backbone(str(teacher), str(head[1])).to(torch.device("meta"))
    assert backbone.rasa is not None
    assert {tensor.device.type for tensor in [*backbone.model.parameters(), *backbone.rasa.parameters()]} == {"meta"}


@pytest.mark.parametrize(
    ("model", "kind", "name", "repo", "weights"),
    [
        ("franca_vitb14", "franca", "franca_vitb14", "", None),
        ("franca_vitl14@LAION_518", "franca", "franca_vitl14", "", "LAION_518"),
        ("untrained:franca_vitl14@LAION_224", "untrained", "franca_vitl14", "", "LAION_224"),
        ("timm:local-dir:/some/where", "timm", "local-dir:/some/where", "", None),
        ("timm:hf-hub:owner/name", "timm", "hf-hub:owner/name", "", None),
        ("transformers:facebook/dinov2-base", "transformers", "facebook/dinov2-base", "", None),
        (
            "torch_hub:facebookresearch/dinov2:dinov2_vitb14",
            "torch_hub",
            "dinov2_vitb14",
            "facebookresearch/dinov2",
            None,
        ),
        ("torch_hub:owner/name:branch:entry", "torch_hub", "entry", "owner/name:branch", None),
        ("callable:package.module:function", "callable", "package.module:function", "", None),
        ("pixels", "baseline", "pixels", "", None),
    ],
)
def test_what_a_name_asks_for(model: str, kind: str, name: str, repo: str, weights: str | None) -> None:
    asked = parse(model)
    assert (asked.kind, asked.name, asked.repo, asked.weights) == (kind, name, repo, weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("franca_vitb41",),
            r"^--model franca_vitb41: there is no such model or file \(did you mean franca_vitb14\?\)",
        ),
        (("none.pth",), r"^--model none\.pth: there is no such .*give franca_vits14, .*timm:NAME.* pixels or colour$"),
        (("untrained:timm",), r"^--model untrained:timm: there is no such model or file"),
        (("torch_hub:dinov2_vitb14",), r"^--model torch_hub:dinov2_vitb14 names no model; give"),
        (("franca_vitb14@nonsense",), r"^--model franca_vitb14@nonsense: .*IN21K"),
        (
            ("franca_vitb14", None, 12),
            r"^--num-heads 12 goes with a checkpoint file alone, not with --model franca_vitb14",
        ),
        (("timm:vit", None, None, 28), r"^--img-size 28 goes with Franca networks alone, not with --model timm:vit"),
        (("timm:vit_nonsense",), r"^timm can't make --model timm:vit_nonsense: Unknown model"),
        (("callable:nowhere:build",), r"^--model callable:nowhere:build is no module:function that can be imported"),
        (("callable:nowhere",), r"^--model callable:nowhere: give module:function"),
    ],
)
def test_what_can_not_be_had_is_said_with_what_can(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        load_backbone(*arguments)


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(EvalError, match=r"^--model timm:vit needs the package timm: pip install timm"):
        load_backbone("timm:vit")


def test_a_checkpoint_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"broken\.pth .* can't be read"):
        load_backbone(str(tmp_path / "broken.pth"))


def test_networks_of_timm_that_know_no_dynamic_size_load_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    create: Callable[..., Any] = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **more: create(name, **more))
    backbone = load_backbone("timm:resnet10t")
    assert backbone(torch.randn(1, 3, 64, 96))[0].patches.shape == (1, 2, 3, 512)
    assert (backbone.patch_size, backbone.blocks) == (32, 1)
