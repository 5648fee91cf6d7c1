"""Models by name: published weights from a server on this machine, a small network in each size's place."""

import inspect
import tarfile
from pathlib import Path

import pytest
import torch

import franca
import hubconf
from franca.hub import CheckpointError, DownloadError, load, load_model, registry
from franca.hub.cache import address
from franca.hub.names import chunk_blocks
from franca.models import RASAHead, VisionTransformer

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ("franca_vits14", "franca_vitb14", "franca_vitl14", "franca_vitg14")
WIDTH = 64
OPTIONS = {"weights", "pretrained", "use_rasa_head", "img_size", "local_state_dict", "RASA_local_state_dict"}


def network(img_size: int = 42) -> VisionTransformer:
    torch.manual_seed(img_size)
    return VisionTransformer(img_size=img_size, embed_dim=WIDTH, depth=2, num_heads=1).eval()


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path) -> None:
    """Every size is width 64 and two blocks; torch.hub's folder is a temporary one; the licence was not yet said."""
    sizes = dict.fromkeys(registry.SHORT_NAMES, (WIDTH, 2, 1))
    monkeypatch.setattr(load, "backbone_sizes", lambda: sizes)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    load._say.cache_clear()


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture
def released(server, tmp_path):
    """All that is published, as it is published: chunked names in "teacher", RASA apart, ViT-g in three pieces."""
    models = {}
    for published in registry.PUBLISHED:
        model = models[published.arch, published.weights] = network(28 if published.img_size == 224 else 42)
        state = {f"backbone.{name}": tensor for name, tensor in chunk_blocks(model.state_dict(), 2).items()}
        path = saved(tmp_path / published.name, {"teacher": state})
        contents = [path.read_bytes()]
        if published.parts:
            with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
                tar.add(path, arcname="release/checkpoint.pth")
            whole = (tmp_path / "a.tar.gz").read_bytes()
            size = -(-len(whole) // 3)
            contents = [whole[start : start + size] for start in (0, size, 2 * size)]
        for file, content in zip(published.files, contents, strict=True):
            server.files[f"/{file.tag}/{file.name}"] = content
        if published.rasa:
            model.rasa_head = RASAHead(WIDTH, 8 if published.tag == "v1.0.0" else 9)
            path = saved(tmp_path / published.rasa.name, model.rasa_head.state_dict())
            server.files[f"/{published.rasa.tag}/{published.rasa.name}"] = path.read_bytes()
        path.unlink()
    return models


def same(model: VisionTransformer, expected: VisionTransformer) -> bool:
    found, wanted = model.state_dict(), expected.state_dict()
    shared = [name for name in wanted if not name.startswith("rasa_head.") or model.rasa_head is not None]
    return all(torch.equal(found[name], wanted[name]) for name in shared) and not model.training


class TestPublished:
    @pytest.mark.parametrize("published", registry.PUBLISHED, ids=lambda published: published.stem)
    def test_every_one_loads_on_its_own_grid(self, released, published) -> None:
        name = f"franca_{registry.SHORT_NAMES[published.arch]}"
        expected = released[published.arch, published.weights]
        model = load_model(name, weights=published.weights, use_rasa_head=published.has_rasa)
        assert same(model, expected)
        assert model.grid == expected.grid
        assert (model.rasa_head is not None) == published.has_rasa

    @pytest.mark.parametrize(("arch", "weights"), registry.DEFAULTS.items())
    def test_defaults(self, released, arch, weights) -> None:
        assert same(load_model(f"franca_{registry.SHORT_NAMES[arch]}"), released[arch, weights])

    def test_second_time_without_network(self, released, server) -> None:
        load_model("franca_vitg14", use_rasa_head=True)
        asked = len(server.requests)
        server.files.clear()
        assert same(load_model("franca_vitg14", use_rasa_head=True), released["vit_giant2", "LAION"])
        assert len(server.requests) == asked

    def test_pieces_leave_one_file(self, released, tmp_path) -> None:
        load_model("franca_vitg14")
        assert [path.name for path in (tmp_path / "hub" / "checkpoints").iterdir()] == ["franca_vitg14_Laion600M.pth"]

    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_damaged_pieces_are_removed_and_fetched_again(self, released, server, tmp_path, number) -> None:
        file = registry.find("vit_giant2").files[number]
        path = f"/{file.tag}/{file.name}"
        good = server.files[path]
        middle = len(good) // 2
        server.files[path] = (
            good[:middle] + bytes(byte ^ 0x55 for byte in good[middle : middle + 50]) + good[middle + 50 :]
        )
        with pytest.raises(CheckpointError, match=rf"damaged.*Removed: .*{file.name}.*call again"):
            load_model("franca_vitg14")
        assert not (tmp_path / "hub" / "checkpoints" / file.name).exists()
        server.files[path] = good
        assert same(load_model("franca_vitg14"), released["vit_giant2", "LAION"])

    def test_only_the_piece_to_blame_is_removed(self, released, server, tmp_path) -> None:
        files = registry.find("vit_giant2").files
        path = f"/{files[1].tag}/{files[1].name}"
        server.files[path] = server.files[path][:-100]
        with pytest.raises(CheckpointError, match=rf"truncated.*Removed: {files[1].name}; call again"):
            load_model("franca_vitg14")
        left = [path.name for path in (tmp_path / "hub" / "checkpoints").iterdir()]
        assert sorted(left) == [files[0].name, files[2].name]

    @pytest.mark.parametrize("page", [b"<!DOCTYPE html><title>Sign in</title>", b"\n <html>", b"sign in first", b""])
    @pytest.mark.parametrize("name", ["franca_vitb14", "franca_vitg14"])
    def test_pages_in_a_files_place_are_refused_and_removed(self, released, server, tmp_path, name, page) -> None:
        arch = {short: arch for arch, short in registry.SHORT_NAMES.items()}[name.removeprefix("franca_")]
        file = registry.find(arch).files[0]
        good, server.files[f"/{file.tag}/{file.name}"] = server.files[f"/{file.tag}/{file.name}"], page
        with pytest.raises(DownloadError, match=rf"{file.name} gave .*What came is removed; try again"):
            load_model(name)
        server.files[f"/{file.tag}/{file.name}"] = good
        load_model(name)

    def test_the_licence_is_said_once(self, released, capsys) -> None:
        load_model("franca_vitb14")
        load_model("franca_vitb14", weights="IN21K_224")
        assert capsys.readouterr().err.count("research-only licence (RAIL)") == 1

    def test_the_licence_goes_with_the_file(self, tmp_path, capsys) -> None:
        path = saved(tmp_path / "franca_vitb14_in21k.pth", network().state_dict())
        load_model(checkpoint=path)
        assert "research-only licence" in capsys.readouterr().err

    def test_no_licence_for_files_of_ones_own(self, tmp_path, capsys) -> None:
        load_model("franca_vitb14", local_state_dict=network().state_dict())
        load_model("franca_vits14", local_state_dict=saved(tmp_path / "a.pth", network().state_dict()))
        assert capsys.readouterr().err == ""

    def test_rasa_that_is_not_published(self, released) -> None:
        with pytest.raises(CheckpointError, match=r"none is published for IN21K_224 of vit_base.*rasa\.train"):
            load_model("franca_vitb14", weights="IN21K_224", use_rasa_head=True)

    def test_without_the_file_it_says_what_to_do(self, server) -> None:
        with pytest.raises(DownloadError) as caught:
            load_model("franca_vitb14")
        message = str(caught.value)
        for part in ("/v1.0.0/franca_vitb14_In21K.pth", "404", "hub/checkpoints", "local_state_dict", "FRANCA_HUB_URL"):
            assert part in message

    @pytest.mark.parametrize(("arch", "weights"), registry.REFUSED)
    def test_known_bad_files(self, arch, weights) -> None:
        with pytest.raises(ValueError, match="not offered: "):
            load_model(f"franca_{registry.SHORT_NAMES[arch]}", weights=weights)

    def test_vits_asks_for_a_file(self) -> None:
        with pytest.raises(ValueError, match=r"published for vit_small.*local_state_dict.*pretrained=False"):
            load_model("franca_vits14")

    def test_a_hash_is_checked_when_one_is_known(self, released, monkeypatch) -> None:
        monkeypatch.setitem(registry.SHA256, "franca_vitb14_In21K.pth", "0" * 64)
        with pytest.raises(DownloadError, match="expected 0000"):
            load_model("franca_vitb14")

    def test_addresses(self, monkeypatch) -> None:
        monkeypatch.delenv("FRANCA_HUB_URL", raising=False)
        assert [address(file) for file in registry.find("vit_large").files] == [
            "https://github.com/valeoai/Franca/releases/download/v1.0.0/franca_vitl14_Laion600M.pth"
        ]
        monkeypatch.setenv("FRANCA_HUB_URL", "https://mirror.example/franca/")
        assert address(registry.find("vit_base").rasa) == (
            "https://mirror.example/franca/v1.0.0/franca_vitb14_In21K_rasa.pth"
        )


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
