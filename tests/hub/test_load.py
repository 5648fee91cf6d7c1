"""Models by name and from local files and folders, with a small network in each size's place."""

import inspect
import tarfile
from pathlib import Path

import pytest
import torch

import franca
import hubconf
from franca.hub import CheckpointError, load, load_model, registry
from franca.models import RASAHead, VisionTransformer
from tests.hub.releases import WIDTH, network, same, saved

pytestmark = pytest.mark.usefixtures("small_sizes")
ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ("franca_vits14", "franca_vitb14", "franca_vitl14", "franca_vitg14")
OPTIONS = {"weights", "pretrained", "use_rasa_head", "img_size", "local_state_dict", "RASA_local_state_dict"}


class TestLocal:
    """Nothing here may reach for the network: FRANCA_HUB_URL names a place that is not there."""

    @pytest.fixture(autouse=True)
    def no_network(self, monkeypatch) -> None:
        monkeypatch.setenv("FRANCA_HUB_URL", "no-address:")

    @pytest.mark.parametrize("weights", [None, "IN21K", "DINOV2_IN21K"])
    def test_file_folder_or_tensors(self, tmp_path, weights) -> None:
        model, head = network(), RASAHead(WIDTH, 2)
        saved(tmp_path / "mine.pth", {"teacher": model.state_dict()})
        saved(tmp_path / "mine_rasa.pth", head.state_dict())
        for backbone, rasa in (
            (tmp_path / "mine.pth", tmp_path / "mine_rasa.pth"),
            (str(tmp_path), str(tmp_path)),
            (model.state_dict(), head.state_dict()),
        ):
            loaded = load_model(
                "franca_vitb14",
                weights=weights,
                use_rasa_head=True,
                local_state_dict=backbone,
                RASA_local_state_dict=rasa,
            )
            assert same(loaded, model)
            torch.testing.assert_close(loaded.rasa_head.state_dict(), head.state_dict())

    def test_a_folder_of_published_files_serves_every_one(self, tmp_path) -> None:
        models = {}
        for weights in ("IN21K", "IN21K_224"):
            models[weights] = network(42 if weights == "IN21K" else 28)
            saved(tmp_path / registry.find("vit_base", weights).name.lower(), models[weights].state_dict())
        for weights, model in models.items():
            assert same(load_model("franca_vitb14", weights=weights, local_state_dict=tmp_path), model)
        assert same(load_model("franca_vitb14", local_state_dict=tmp_path), models["IN21K"])

    def test_a_folder_with_pieces(self, tmp_path) -> None:
        model = network()
        with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
            tar.add(saved(tmp_path / "a.pth", model.state_dict()), arcname="a.pth")
        content = (tmp_path / "a.tgz").read_bytes()
        (tmp_path / "parts").mkdir()
        size = -(-len(content) // 3)
        for number, file in enumerate(registry.find("vit_giant2").files):
            (tmp_path / "parts" / file.name).write_bytes(content[number * size : (number + 1) * size])
        assert same(load_model("franca_vitg14", local_state_dict=tmp_path / "parts"), model)
        (tmp_path / "parts" / file.name).unlink()
        with pytest.raises(CheckpointError, match=r"part_ac is missing: fetch it too"):
            load_model("franca_vitg14", local_state_dict=tmp_path / "parts")

    def test_rasa_inside_the_file(self, tmp_path) -> None:
        model = network()
        model.rasa_head = RASAHead(WIDTH, 1)
        path = saved(tmp_path / "a.pth", {"teacher": model.state_dict()})
        assert same(load_model("franca_vits14", local_state_dict=path, use_rasa_head=True), model)

    @pytest.mark.parametrize("name", ["mine.pth", "mine_chunked.tar.gz.part_aa"])
    def test_rasa_beside_the_file(self, tmp_path, name) -> None:
        model, head = network(), RASAHead(WIDTH, 1)
        path = saved(tmp_path / "mine.pth", {"teacher": model.state_dict()})
        if path.name != name:
            with tarfile.open(tmp_path / name, "w:gz") as tar:
                tar.add(path, arcname="mine.pth")
            path.unlink()
        saved(tmp_path / "Mine_RASA.pth", head.state_dict())
        saved(tmp_path / "other_rasa.pth", RASAHead(WIDTH, 3).state_dict())
        for loaded in (
            load_model("franca_vits14", local_state_dict=tmp_path / name, use_rasa_head=True),
            load_model(checkpoint=tmp_path / name, use_rasa_head=True),
        ):
            torch.testing.assert_close(loaded.rasa_head.state_dict(), head.state_dict())
        assert load_model(checkpoint=tmp_path / name).rasa_head is None

    def test_rasa_of_other_weights_is_not_fetched(self, tmp_path) -> None:
        """A file that doesn't say which weights it holds gets no head that was made for others."""
        with pytest.raises(CheckpointError, match="holds no RASA head and none is published for it"):
            load_model("franca_vitb14", local_state_dict=network().state_dict(), use_rasa_head=True)

    @pytest.mark.parametrize("name", ["franca_vitl14_In21K.pth", "FRANCA_VITL14_in21k.pth"])
    def test_known_bad_files_are_refused_wherever_they_lie(self, tmp_path, name) -> None:
        path = saved(tmp_path / name, network().state_dict())
        for place in (path, tmp_path):
            for arguments in ({"name": "franca_vitl14", "local_state_dict": place}, {"checkpoint": place}):
                with pytest.raises(CheckpointError, match=r"is refused by its name: .*a copy of DINOv2-L.*rename it"):
                    load_model(**arguments)
        assert same(load_model(checkpoint=path.rename(tmp_path / "mine.pth")), network())

    def test_another_feed_forward_network_is_named(self) -> None:
        """Of the entry point's width, depth and patch, as DINOv2's files are."""
        state = VisionTransformer(img_size=42, embed_dim=WIDTH, depth=2, num_heads=1, ffn="mlp").state_dict()
        with pytest.raises(CheckpointError, match=r"patch 14, mlp\).*patch 14, swiglu\)"):
            load_model("franca_vitb14", local_state_dict=state)

    def test_another_size_is_named(self) -> None:
        state = VisionTransformer(img_size=28, embed_dim=128, depth=1, num_heads=2).state_dict()
        with pytest.raises(CheckpointError, match=r"width 128, 1 blocks, 2 heads.*is vit_base \(width 64"):
            load_model("franca_vitb14", local_state_dict=state)


class TestOptions:
    @pytest.mark.parametrize("size", [28, 70])
    def test_positions_move_to_another_grid(self, size) -> None:
        model = network(42)
        moved = load_model("franca_vits14", local_state_dict=model.state_dict(), img_size=size)
        again = load_model(checkpoint=model.state_dict(), img_size=size)
        images = torch.randn(1, 3, size, size)
        for each in (moved, again):
            assert each.grid == size // 14
            torch.testing.assert_close(each(images), model(images))

    def test_an_image_size_that_is_no_grid(self) -> None:
        with pytest.raises(ValueError, match="img_size=30 is not a multiple"):
            load_model(checkpoint=network().state_dict(), img_size=30)

    def test_untrained(self) -> None:
        model = load_model("franca_vits14", pretrained=False)
        assert (model.grid, model.embed_dim, len(model.blocks), model.training) == (37, 384, 12, False)
        assert load_model("franca_vits14", pretrained=False, img_size=28).grid == 2

    @pytest.mark.parametrize(("weights", "size"), [("IN21K", 518), ("DINOV2_IN21K", 224)])
    def test_untrained_has_the_grid_of_the_weights_it_names(self, monkeypatch, weights, size) -> None:
        monkeypatch.setitem(load.BACKBONES, "vit_base", lambda img_size: network(img_size))
        assert load_model("franca_vitb14", pretrained=False, weights=weights).config["img_size"] == size

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({}, "give either the name"),
            ({"name": "franca_vitb14", "checkpoint": {}}, "give either the name"),
            ({"name": "franca_vitb14", "num_heads": 3}, "num_heads=… goes with checkpoint"),
            ({"name": "franca_vitb14", "pretrained": False, "local_state_dict": {}}, "drop one"),
            ({"name": "franca_vitb14", "pretrained": False, "use_rasa_head": True}, "untrained network has no RASA"),
        ],
    )
    def test_contradictions(self, options, reason) -> None:
        with pytest.raises(ValueError, match=reason):
            load_model(**options)

    @pytest.mark.parametrize("option", ["weights", "pretrained", "local_state_dict", "imgsize"])
    def test_options_that_a_file_has_not(self, option) -> None:
        with pytest.raises(TypeError, match=f"{option}=… does not go with checkpoint=…"):
            load_model(checkpoint=network().state_dict(), **{option: None})

    def test_a_misspelt_option_is_refused(self) -> None:
        with pytest.raises(TypeError, match="imgsize"):
            load_model("franca_vits14", pretrained=False, imgsize=28)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "nearest"),
        [("franca_vitb16", "franca_vitb14"), ("vitl14", "franca_vitl14"), ("Franca_ViTS14", "franca_vits14")],
    )
    def test_nearest_and_all_are_named(self, name, nearest) -> None:
        with pytest.raises(ValueError) as caught:
            load_model(name)
        assert f"did you mean '{nearest}'?" in str(caught.value)
        assert all(known in str(caught.value) for known in NAMES)

    def test_a_file_is_pointed_to_its_argument(self) -> None:
        with pytest.raises(ValueError, match="a file is given as checkpoint="):
            load_model("runs/mine/teacher.pth")

    def test_entry_points_are_those_of_hubconf(self) -> None:
        assert tuple(load.ENTRY_POINTS) == NAMES
        assert hubconf.dependencies == ["torch"]
        for name in NAMES:
            assert getattr(hubconf, name) is load.ENTRY_POINTS[name]
            assert inspect.getdoc(getattr(hubconf, name))

    def test_options_are_the_documented_ones(self) -> None:
        assert (
            load.HubOptions.__annotations__.keys()
            == OPTIONS
            == inspect.signature(load._load_size).parameters.keys() - {"arch"}
        )
        assert all(f"{option}:" in (load.HubOptions.__doc__ or "") for option in OPTIONS)

    def test_package_offers_it(self) -> None:
        assert franca.load_model is load_model


def test_torch_hub_loads_from_a_clone(tmp_path) -> None:
    options = {"source": "local", "local_state_dict": saved(tmp_path / "a.pth", network().state_dict())}
    assert same(torch.hub.load(str(ROOT), "franca_vitb14", **options), network())
