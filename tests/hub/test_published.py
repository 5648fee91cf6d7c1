"""Published weights by name, from a server on this machine, with a small network in each size's place."""

import pytest

from franca.hub import CheckpointError, DownloadError, load_model, registry
from franca.hub.cache import address
from tests.hub.releases import network, same, saved

pytestmark = pytest.mark.usefixtures("small_sizes")


@pytest.mark.parametrize("published", registry.PUBLISHED, ids=lambda published: published.stem)
def test_every_one_loads_on_its_own_grid(released, published) -> None:
    name = f"franca_{registry.SHORT_NAMES[published.arch]}"
    expected = released[published.arch, published.weights]
    model = load_model(name, weights=published.weights, use_rasa_head=published.has_rasa)
    assert same(model, expected)
    assert model.grid == expected.grid
    assert (model.rasa_head is not None) == published.has_rasa


@pytest.mark.parametrize(("arch", "weights"), registry.DEFAULTS.items())
def test_defaults(released, arch, weights) -> None:
    assert same(load_model(f"franca_{registry.SHORT_NAMES[arch]}"), released[arch, weights])


def test_second_time_without_network(released, server) -> None:
    load_model("franca_vitg14", use_rasa_head=True)
    asked = len(server.requests)
    server.files.clear()
    assert same(load_model("franca_vitg14", use_rasa_head=True), released["vit_giant2", "LAION"])
    assert len(server.requests) == asked


def test_pieces_leave_one_file(released, tmp_path) -> None:
    load_model("franca_vitg14")
    assert [path.name for path in (tmp_path / "hub" / "checkpoints").iterdir()] == ["franca_vitg14_Laion600M.pth"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_damaged_pieces_are_removed_and_fetched_again(released, server, tmp_path, number) -> None:
    file = registry.find("vit_giant2").files[number]
    path = f"/{file.tag}/{file.name}"
    good = server.files[path]
    middle = len(good) // 2
    server.files[path] = good[:middle] + bytes(byte ^ 0x55 for byte in good[middle : middle + 50]) + good[middle + 50 :]
    with pytest.raises(CheckpointError, match=rf"damaged.*Removed: .*{file.name}.*call again"):
        load_model("franca_vitg14")
    assert not (tmp_path / "hub" / "checkpoints" / file.name).exists()
    server.files[path] = good
    assert same(load_model("franca_vitg14"), released["vit_giant2", "LAION"])


def test_only_the_piece_to_blame_is_removed(released, server, tmp_path) -> None:
    files = registry.find("vit_giant2").files
    path = f"/{files[1].tag}/{files[1].name}"
    server.files[path] = server.files[path][:-100]
    with pytest.raises(CheckpointError, match=rf"truncated.*Removed: {files[1].name}; call again"):
        load_model("franca_vitg14")
    left = [path.name for path in (tmp_path / "hub" / "checkpoints").iterdir()]
    assert sorted(left) == [files[0].name, files[2].name]


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><title>Sign in</title>", b"\n <html>", b"sign in first", b""])
@pytest.mark.parametrize("name", ["franca_vitb14", "franca_vitg14"])
def test_pages_in_a_files_place_are_refused_and_removed(released, server, tmp_path, name, page) -> None:
    arch = {short: arch for arch, short in registry.SHORT_NAMES.items()}[name.removeprefix("franca_")]
    file = registry.find(arch).files[0]
    good, server.files[f"/{file.tag}/{file.name}"] = server.files[f"/{file.tag}/{file.name}"], page
    with pytest.raises(DownloadError, match=rf"{file.name} gave .*What came is removed; try again"):
        load_model(name)
    server.files[f"/{file.tag}/{file.name}"] = good
    load_model(name)


def test_the_licence_is_said_once(released, capsys) -> None:
    load_model("franca_vitb14")
    load_model("franca_vitb14", weights="IN21K_224")
    assert capsys.readouterr().err.count("research-only licence (RAIL)") == 1


def test_the_licence_goes_with_the_file(tmp_path, capsys) -> None:
    path = saved(tmp_path / "franca_vitb14_in21k.pth", network().state_dict())
    load_model(checkpoint=path)
    assert "research-only licence" in capsys.readouterr().err


def test_no_licence_for_files_of_ones_own(tmp_path, capsys) -> None:
    load_model("franca_vitb14", local_state_dict=network().state_dict())
    load_model("franca_vits14", local_state_dict=saved(tmp_path / "a.pth", network().state_dict()))
    assert capsys.readouterr().err == ""


def test_rasa_that_is_not_published(released) -> None:
    with pytest.raises(CheckpointError, match=r"none is published for IN21K_224 of vit_base.*rasa\.train"):
        load_model("franca_vitb14", weights="IN21K_224", use_rasa_head=True)


def test_without_the_file_it_says_what_to_do(server) -> None:
    with pytest.raises(DownloadError) as caught:
        load_model("franca_vitb14")
    message = str(caught.value)
    for part in ("/v1.0.0/franca_vitb14_In21K.pth", "404", "hub/checkpoints", "local_state_dict", "FRANCA_HUB_URL"):
        assert part in message


@pytest.mark.parametrize(("arch", "weights"), registry.REFUSED)
def test_known_bad_files(arch, weights) -> None:
    with pytest.raises(ValueError, match="not offered: "):
        load_model(f"franca_{registry.SHORT_NAMES[arch]}", weights=weights)


def test_vits_asks_for_a_file() -> None:
    with pytest.raises(ValueError, match=r"published for vit_small.*local_state_dict.*pretrained=False"):
        load_model("franca_vits14")


def test_a_hash_is_checked_when_one_is_known(released, monkeypatch) -> None:
    monkeypatch.setitem(registry.SHA256, "franca_vitb14_In21K.pth", "0" * 64)
    with pytest.raises(DownloadError, match="expected 0000"):
        load_model("franca_vitb14")


def test_addresses(monkeypatch) -> None:
    monkeypatch.delenv("FRANCA_HUB_URL", raising=False)
    assert [address(file) for file in registry.find("vit_large").files] == [
        "https://github.com/valeoai/Franca/releases/download/v1.0.0/franca_vitl14_Laion600M.pth"
    ]
    monkeypatch.setenv("FRANCA_HUB_URL", "https://mirror.example/franca/")
    assert address(registry.find("vit_base").rasa) == (
        "https://mirror.example/franca/v1.0.0/franca_vitb14_In21K_rasa.pth"
    )


def test_a_missing_rasa_head_is_said_before_anything_is_fetched(released, server) -> None:
    with pytest.raises(CheckpointError, match="none is published for IN21K_224 of vit_base: give one as RASA_local"):
        load_model("franca_vitb14", weights="IN21K_224", use_rasa_head=True)
    assert not server.requests


def test_all_pieces_are_named_where_one_cannot_be_fetched(server) -> None:
    with pytest.raises(DownloadError, match=r"part_aa, franca_\w+\.tar\.gz\.part_ab, franca_\w+\.tar\.gz\.part_ac$"):
        load_model("franca_vitg14")
