"""Published weights: every spelling in use finds them, and a refusal says why."""

import json
import re

import pytest

from franca.hub.registry import DEFAULTS, PUBLISHED, REFUSED, SHORT_NAMES, find, refusal

BY_SIZE = {arch: [published for published in PUBLISHED if published.arch == arch] for arch in SHORT_NAMES}


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.stem)
def test_names_and_file_names_find_their_weights(published) -> None:
    spellings = [published.weights, published.spelling, published.stem, published.name, published.files[-1].name]
    spellings += [published.rasa.name] if published.rasa else []
    for spelling in spellings:
        for written in (spelling, spelling.lower(), spelling.upper(), f" {spelling} ", spelling.replace("_", "-")):
            assert find(published.arch, written) is published, written


@pytest.mark.parametrize(
    ("arch", "spelling", "weights"),
    [
        ("vit_base", "In21k", "IN21K"),
        ("vit_base", "IN21K_518", "IN21K"),
        ("vit_base", "ImageNet-21K", "IN21K"),
        ("vit_base", "franca_vitb14_In21k.pth", "IN21K"),
        ("vit_base", "Dinov2_In21k", "DINOV2_IN21K"),
        ("vit_base", "DINOv2 In21K 518", "DINOV2_IN21K_518"),
        ("vit_large", "LAION600m", "LAION"),
        ("vit_large", "LAION-600M", "LAION"),
        ("vit_large", "Laion_518", "LAION_518"),
        ("vit_large", "laion600m_518", "LAION_518"),
        ("vit_giant2", "franca_vitg14_Laion600M_chunked.tar.gz.part_ab", "LAION"),
    ],
)
def test_spellings_of_upstreams_pages(arch, spelling, weights) -> None:
    assert find(arch, spelling).weights == weights


@pytest.mark.parametrize("spelling", ["LAION600m", "Dinov2_In21k", "In21K", "IN21K", "LAION"])
def test_spellings_that_upstream_takes_or_refuses_are_taken(parity_dir, spelling) -> None:
    recorded = json.loads((parity_dir / "keys.json").read_text())["hub"]
    assert f"weights='{spelling}'" in recorded
    assert any(_found(arch, spelling) for arch in DEFAULTS)


def _found(arch: str, spelling: str) -> bool:
    try:
        return bool(find(arch, spelling))
    except ValueError:
        return False


def test_file_names_are_upstreams(parity_dir) -> None:
    names = json.loads((parity_dir / "keys.json").read_text())["hub"]["hub_names"]
    listed = {f"{published.arch}/{published.weights}": published.stem for published in PUBLISHED}
    assert {key: listed[key] for key in names if key in listed} == {key: names[key] for key in names if key in listed}


def test_default_is_the_documented_one() -> None:
    assert {arch: find(arch).weights for arch in DEFAULTS} == DEFAULTS


def test_a_size_without_weights_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"no weights are published for vit_small.*local_state_dict.*pretrained=False"):
        find("vit_small")


@pytest.mark.parametrize(("arch", "weights"), REFUSED)
def test_known_bad_files_are_refused_with_the_reason(arch, weights) -> None:
    for spelling in (weights, weights.lower(), f"franca_{SHORT_NAMES[arch]}_{weights}.pth", f"{weights}_224"):
        with pytest.raises(ValueError, match=re.escape(REFUSED[arch, weights])):
            find(arch, spelling)


@pytest.mark.parametrize(
    ("arch", "weights"),
    [("vit_base", "LAION"), ("vit_base", "JFT"), ("vit_giant2", "LAION_518"), ("vit_base", "franca_vitl14_In21K.pth")],
)
def test_unknown_weights_list_what_exists_for_that_size(arch, weights) -> None:
    with pytest.raises(ValueError) as caught:
        find(arch, weights)
    listed = str(caught.value).rpartition("There are: ")[2].split(", ")
    assert repr(weights) in str(caught.value)
    assert listed == [published.weights for published in BY_SIZE[arch]]


def test_parts_come_in_order_and_have_one_checkpoint() -> None:
    published = find("vit_giant2")
    assert [file.name[-7:] for file in published.files] == ["part_aa", "part_ab", "part_ac"]
    assert published.name == "franca_vitg14_Laion600M.pth"
    assert published.rasa.name == "franca_vitg14_Laion600M_rasa.pth"


@pytest.mark.parametrize(("arch", "weights"), REFUSED)
def test_known_bad_files_are_known_by_their_names(arch, weights) -> None:
    stem = f"franca_{SHORT_NAMES[arch]}_In21K"
    for name in (f"{stem}.pth", f"{stem}_224.PTH", f"{stem.lower()}.safetensors", f"{stem}_chunked.tar.gz.part_ab"):
        assert refusal(name) == REFUSED[arch, weights], name


@pytest.mark.parametrize(
    "name", ["franca_vitb14_In21K.pth", "my_franca_vitl14_In21K.pth", "franca_vitl14_In21K_mine.pth", "teacher.pth"]
)
def test_other_names_are_not_refused(name) -> None:
    assert refusal(name) is None
    assert not any(refusal(file.name) for published in PUBLISHED for file in published.files)
