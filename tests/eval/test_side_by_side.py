"""Results carry all that is needed to repeat them, and a page shows several models beside one another."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from franca.eval.errors import EvalError
from franca.eval.report.side_by_side import build_page
from franca.eval.result import Origin, Score, read_results, records_of, table, value_text, write_results

ORIGIN = Origin(
    protocol="knn",
    preset="paper",
    options={"ks": [20]},
    model="first",
    model_hash="ab" * 32,
    rasa="",
    img_size=None,
    num_heads=None,
    stored_as="fp16",
    path="folder:/data/birds",
    images=9,
    train_data="folder",
    train_split="train",
    train_hash="11",
    data="folder",
    split="val",
    data_hash="22",
    precision="float32",
    device="cpu",
    versions={"franca": "0", "torch": "0"},
)
SCORES = [
    Score("top1", 50.0, "224", {"k": 20}),
    Score("miou", 2.0, "224", values=(1.0, 2.0, 3.0), seeds=(0, 1, 2), slice="d/2", tta="flip"),
    Score("error", 0.5, "98", unit="of a side", better="lower", data="other", split="test", data_hash="44"),
]
EVERY_SCORE_CARRIES = {"protocol", "data", "split", "resolution", "tta", "model_hash", "seeds", "slice", "settings"}


def write(folder: Path, model: str, scores: list[Score], **changes: object) -> Path:
    origin = replace(ORIGIN, model=model, **changes)
    write_results(folder / model / "results.json", asdict(origin), records_of(origin, scores))
    return folder / model


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    write(tmp_path, "first", SCORES)
    better = [replace(SCORES[0], value=61.25), SCORES[1], replace(SCORES[2], value=0.75)]
    write(tmp_path, "second", better)
    return tmp_path


def test_a_score_is_complete_by_itself(results: Path) -> None:
    content = read_results(results / "first" / "results.json")
    assert all(record.keys() >= EVERY_SCORE_CARRIES for record in content["scores"])
    assert content["origin"] == json.loads(json.dumps(asdict(ORIGIN)))
    assert [(record["data"], record["split"]) for record in content["scores"]] == [
        ("folder", "val"),
        ("folder", "val"),
        ("other", "test"),
    ]
    assert [record["data_hash"] for record in content["scores"]] == ["22", "22", "44"]
    assert (results / "first" / "results.txt").read_text().count("top1") == 1


def test_spread_is_the_sample_standard_deviation() -> None:
    record = records_of(ORIGIN, SCORES)[1]
    assert math.isclose(record["spread"], 1.0)
    assert value_text(record) == "2.0 ± 1.0 %"
    assert Score("top1", 1.0, "224", values=(1.0,), seeds=(0,)).spread is None


def test_the_table_shows_every_score() -> None:
    lines = table(records_of(ORIGIN, SCORES)).splitlines()
    assert len(lines) == 1 + len(SCORES)
    assert lines[1].split() == ["top1", "50.0", "%", "d", "k=20", "folder", "val", "224", "none"]


def test_models_stand_side_by_side_and_the_better_is_pointed_out(results: Path, tmp_path: Path) -> None:
    for model in ("first", "second"):
        (results / model / "pca.png").write_bytes(model.encode())
    page = build_page([results], tmp_path / "page").read_text()
    assert page.count("<section>") == 1
    assert page.count('<th scope="row">') == len(SCORES)
    assert '<td>50.0 %</td><td class="best">61.2 %</td>' in page
    assert '<td class="best">0.5000 of a side</td><td>0.7500 of a side</td>' in page
    assert '<td class="best">2.0 ± 1.0 %</td><td class="best">2.0 ± 1.0 %</td>' in page
    shown = sorted((tmp_path / "page" / "pictures" / "0").iterdir())
    assert [file.read_bytes() for file in shown] == [b"first", b"second"]
    assert all(f'src="pictures/0/{file.name}"' in page for file in shown)


def test_other_settings_are_no_comparison(results: Path, tmp_path: Path) -> None:
    for name, changes in (("third", {"options": {"ks": [20], "temperature": 0.5}}), ("fourth", {"preset": "dinov2"})):
        (tmp_path / name).mkdir()
        write(tmp_path, name, SCORES, **changes)
    page = build_page([results], tmp_path / "page").read_text()
    assert page.count("<section>") == 3
    assert "temperature=0.5" in page


def test_a_setting_that_rows_tell_stands_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    scores = [replace(SCORES[0], settings={"memory": "all"})]
    write(tmp_path, "first", scores, options={"memory": 0, "size": 98})
    page = build_page([tmp_path], tmp_path / "page").read_text()
    assert "memory=all" in page
    assert "size=98" in page
    assert "memory=0" not in page


def test_without_scores_the_table_lists_the_pictures(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    for name in ("slices.png", "pca.png"):
        (tmp_path / "first" / name).touch()
    write(tmp_path, "first", [])
    assert (tmp_path / "first" / "results.txt").read_text().splitlines()[1:] == ["drawn: pca.png, slices.png"]


def test_other_images_are_no_comparison(results: Path, tmp_path: Path) -> None:
    (tmp_path / "third").mkdir()
    write(tmp_path, "third", SCORES, data_hash="33")
    page = build_page([results], tmp_path / "page").read_text()
    assert page.count("<section>") == 2


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": 1}', '{"format": 9, "origin": {"protocol": "a"}, "scores": []}']
)
def test_a_file_without_results_is_named(content: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(content)
    with pytest.raises(EvalError, match=r"results\.json"):
        build_page([tmp_path], tmp_path / "page")


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"holds no results\.json"):
        build_page([tmp_path], tmp_path / "page")
