"""Backbones of every kind, loaded from files and folders of this machine alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from franca.data.multi_crop import IMAGENET_MEAN, IMAGENET_STD
from franca.hub import load_model, save_teacher
from franca.hub.convert import convert
from franca.models import VisionTransformer
from rasa import RasaError
from rasa.backbones import Backbone, BackboneConfig
from rasa.features import Engine

HALF = [0.5, 0.5, 0.5]


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 56, 56)


def test_a_checkpoint_of_this_project(teacher: Path, images: torch.Tensor) -> None:
    backbone = BackboneConfig(name=str(teacher)).load()
    patches = load_model(checkpoint=teacher).forward_features(images)["x_norm_patchtokens"]
    torch.testing.assert_close(backbone(images), patches.view(2, 4, 4, -1))
    assert (backbone.mean, backbone.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_a_released_checkpoint_takes_the_number_of_heads(parity_dir: Path, images: torch.Tensor) -> None:
    name = str(parity_dir / "tiny_checkpoint.pth")
    backbone = BackboneConfig(name=name, num_heads=2).load()
    patches = load_model(checkpoint=name, num_heads=2).forward_features(images)["x_norm_patchtokens"]
    torch.testing.assert_close(backbone(images).flatten(1, 2), patches)


def test_mean_and_std_come_from_the_file_or_the_configuration(
    network: Callable[..., nn.Module], tmp_path: Path
) -> None:
    model: Any = network("franca")
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    about = {"arch": "custom", "backbone": model.config, "mean": HALF, "std": [0.1] * 3}
    save_teacher(tmp_path / "other.pth", state, about)
    found = BackboneConfig(name=str(tmp_path / "other.pth")).load()
    assert (found.mean, found.std) == (HALF, [0.1] * 3)
    told = BackboneConfig(name=str(tmp_path / "other.pth"), mean=[0.0] * 3, std=[1.0] * 3).load()
    assert (told.mean, told.std) == ([0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize(("kind", "name"), [("timm", "local-dir:{}"), ("transformers", "{}")])
@pytest.mark.parametrize("registers", [0, 4])
def test_other_libraries_give_what_this_one_gives(
    kind: str, name: str, registers: int, network: Callable[..., nn.Module], images: torch.Tensor, tmp_path: Path
) -> None:
    model: Any = network("franca", registers)
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    about = {"arch": "custom", "backbone": model.config, "mean": HALF, "std": HALF}
    save_teacher(tmp_path / "teacher.pth", state, about)
    convert(tmp_path / "teacher.pth", tmp_path / "converted", kind)
    backbone = BackboneConfig(kind, name.format(tmp_path / "converted")).load()
    torch.testing.assert_close(backbone(images), Backbone(model)(images), rtol=0, atol=2e-5)
    assert (list(backbone.mean), list(backbone.std)) == (HALF, HALF)


def test_a_model_saved_by_transformers_without_preprocessing(
    network: Callable[..., nn.Module], images: torch.Tensor, tmp_path: Path
) -> None:
    model: Any = network("transformers", registers=4)
    model.save_pretrained(tmp_path)
    backbone = BackboneConfig("transformers", str(tmp_path)).load()
    tokens = model(images).last_hidden_state
    torch.testing.assert_close(backbone(images), tokens[:, 5:].view(2, 4, 4, -1))
    assert (backbone.mean, backbone.std) == (IMAGENET_MEAN, IMAGENET_STD)


HUBCONF = """\
dependencies = ["torch"]

def colours(pretrained=True):
    import torch
    return torch.nn.AvgPool2d(14)
"""


def test_a_local_clone_for_torch_hub(images: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    backbone = BackboneConfig("torch_hub", "colours", repo=str(tmp_path)).load()
    expected = nn.functional.avg_pool2d(images, 14).permute(0, 2, 3, 1)
    torch.testing.assert_close(backbone(images), expected)
    with pytest.raises(RasaError, match=r"has no backbone\.name='shapes' that loads: Cannot find callable shapes"):
        BackboneConfig("torch_hub", "shapes", repo=str(tmp_path)).load()


OWN = """\
from torch.nn.functional import avg_pool2d

def build():
    def colours(images):
        return avg_pool2d(images, 14)
    colours.mean, colours.std = (0.5, 0.5, 0.5), (0.1, 0.1, 0.1)
    return colours
"""


def test_a_function_of_ones_own(images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rasa_backbone.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    backbone = BackboneConfig("callable", "my_rasa_backbone:build").load()
    torch.testing.assert_close(backbone(images), nn.functional.avg_pool2d(images, 14).permute(0, 2, 3, 1))
    assert backbone.mean == (0.5, 0.5, 0.5)
    pixels = torch.full((1, 3, 28, 28), 255, dtype=torch.uint8)
    seen = Engine(backbone, torch.device("cpu"), None).features(pixels)
    torch.testing.assert_close(seen, torch.full((1, 2, 2, 3), 5.0))  # (1 - 0.5) / 0.1


def test_a_function_of_images_is_the_network_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_function.py").write_text("def maps(images):\n    return images[:, :, ::14, ::14]\n")
    monkeypatch.syspath_prepend(tmp_path)
    backbone = BackboneConfig(kind="callable", name="own_function:maps").load()
    images = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(backbone(images), images[:, :, ::14, ::14].permute(0, 2, 3, 1))


def test_a_name_without_its_function_says_the_form() -> None:
    with pytest.raises(RasaError, match=r"backbone\.name='my_model': give module:function, such as my_model:build"):
        BackboneConfig(kind="callable", name="my_model").load()


@pytest.mark.parametrize("name", ["no_such_module:build", "rasa.backbones:no_such", ":build"])
def test_a_function_that_is_not_there(name: str) -> None:
    with pytest.raises(RasaError, match=rf"backbone\.name='{name}' is no module:function that can be imported"):
        BackboneConfig("callable", name).load()


def test_no_such_model_of_timm() -> None:
    with pytest.raises(RasaError, match=r"timm can't make backbone\.name='vit_nonsense': Unknown model"):
        BackboneConfig("timm", "vit_nonsense").load()


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(RasaError, match=r"backbone\.kind=timm needs the package timm: pip install timm"):
        BackboneConfig("timm", "vit_tiny_patch16_224").load()


@pytest.mark.parametrize("kind", ["franca", "timm", "transformers"])
def test_a_size_that_patches_do_not_divide(kind: str, network: Callable[..., nn.Module]) -> None:
    """ValueError, of which RasaError is one: what the command line prints as one line."""
    with pytest.raises(ValueError, match=r"59") as caught:
        Backbone(network(kind), name="mine")(torch.randn(1, 3, 59, 59))
    assert isinstance(caught.value, RasaError) or kind == "franca"


def test_a_network_that_is_no_grid_is_named() -> None:
    merged = nn.Sequential(nn.AvgPool2d(14), nn.Flatten(2), nn.AdaptiveAvgPool1d(7))  # (B, 3, 7)
    with pytest.raises(RasaError, match=r"^mine returned 3 tokens for images of 56 x 56 pixels"):
        Backbone(merged, name="mine")(torch.randn(1, 3, 56, 56))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "tim"}, r"backbone\.kind='tim': choose one of franca, timm, transformers, torch_hub, callable"),
        ({"name": ""}, r"backbone\.name is empty"),
        ({"kind": "torch_hub"}, r"backbone\.repo='' belongs to backbone\.kind=torch_hub"),
        ({"repo": "owner/name"}, r"backbone\.repo='owner/name' belongs to"),
        ({"mean": HALF}, r"backbone\.mean=.*set both or neither"),
    ],
)
def test_settings_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BackboneConfig(**options)


def test_the_network_of_a_franca_backbone_is_one(teacher: Path) -> None:
    """So that a run folds RASA into it."""
    assert isinstance(BackboneConfig(name=str(teacher)).load().model, VisionTransformer)
