"""`franca prepare`: the steps one after the other, one line for what is wrong, statuses."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from franca.data.preparation.__main__ import main, parse
from franca.data.preparation.rules import SelectionConfig
from tests.data.preparation.conftest import GOOD, near, save_shards, unit_rows, write_rows


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_the_steps_follow_each_other(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = unit_rows(20, 64)
    rows[[12, 13]] = near(rows[[2, 3]], 0.99)
    names = [f"{label}/{number}.png" for label in ("cats", "dogs") for number in range(10)]
    save_shards(tmp_path / "vectors", rows, names)
    save_shards(tmp_path / "test", near(rows[[7, 12]], 0.95), ["a", "b"], 1)
    assert run("deduplicate", tmp_path / "vectors", "--output", tmp_path / "near", "--threshold", 0.98) == 0
    assert "near_duplicate   2   10.00%" in capsys.readouterr().out
    evaluation = ["--evaluation", tmp_path / "test", "--output", tmp_path / "seen"]
    assert run("decontaminate", tmp_path / "vectors", *evaluation) == 0
    assert f"{tmp_path / 'test'}   3   15.00%" in capsys.readouterr().out  # 2 and 12 are alike to one of them
    lists = [tmp_path / step / "dropped.tsv" for step in ("near", "seen")]
    assert run("apply", images, "--lists", *lists, "--output", tmp_path / "left") == 0
    left = {str(file.relative_to(tmp_path / "left/images")) for file in (tmp_path / "left/images").rglob("*.png")}
    assert set(names) - left == {"cats/2.png", "cats/7.png", "dogs/2.png", "dogs/3.png"}


def test_select_prints_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "meta.parquet", [GOOD, GOOD | {"WIDTH": 10}])
    assert run("select", file, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "out/report.txt").read_text()
    assert "too_small  1   50.00%  short side below --min-side" in printed
    assert f"img2dataset --url_list {tmp_path / 'out/list'}" in printed


def test_nothing_left_is_a_report_and_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "meta.parquet", [GOOD | {"WIDTH": 10}])
    assert run("select", file, "--output", tmp_path / "out") == 2
    assert capsys.readouterr().err.endswith("error: nothing is left\n")
    assert json.loads((tmp_path / "out/report.json").read_text())["dropped"] == {"too_small": 1}


def test_options_are_those_of_the_rules(tmp_path: Path) -> None:
    defaults = vars(parse(["select", "meta", "--output", "out"]))
    assert SelectionConfig() == SelectionConfig(
        *(defaults[name] for name in ("min_side", "max_aspect", "max_unsafe", "max_watermark")),
        nsfw_tags=tuple(defaults["nsfw_tags"]),
        min_similarity=defaults["min_similarity"],
        duplicates=defaults["duplicates"],
    )
    row = {name: value for name, value in GOOD.items() if name not in ("punsafe", "pwatermark", "URL")}
    file = write_rows(
        tmp_path / "meta.parquet", [row | {"link": "http://a.b/c", "NSFW": "UNSURE"}, row | {"NSFW": "NSFW"}]
    )
    options = "--max-unsafe none --max-watermark none --nsfw-tags UNLIKELY UNSURE --column url=link --duplicates none"
    assert run("select", file, "--output", tmp_path / "out", *options.split()) == 0
    assert json.loads((tmp_path / "out/report.json").read_text())["dropped"] == {"no_url": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["select", "nowhere", "--output", "{place}/out"], "error: nowhere does not exist"),
        (["select", "{place}/meta.parquet", "--output", "{place}/out", "--memory", "x"], "error: --memory x"),
        (["deduplicate", "nowhere", "--output", "{place}/out"], "error: nowhere does not exist"),
        (["deduplicate", "{place}/v", "--output", "{place}/out", "--threshold", "2"], "error: --threshold 2.0"),
        (["deduplicate", "{place}/v", "--output", "{place}/out", "--device", "tape"], "error: device='tape'"),
        (["embed", "nowhere", "--output", "{place}/out", "--model", "x"], "error: nowhere is no folder"),
        (["embed", "{place}/v", "--output", "{place}/out", "--model", "franca_vitb41"], "error: no entry point"),
        (["apply", "nowhere", "--output", "{place}/out", "--lists", "x"], "error: nowhere is no folder"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], message: str, tmp_path: Path, capsys) -> None:
    write_rows(tmp_path / "meta.parquet", [GOOD])
    (tmp_path / "v").mkdir()
    np.save(tmp_path / "v/a.npy", unit_rows(3, 4))
    assert main([argument.format(place=tmp_path) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_without_duckdb_the_extra_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("duckdb", "franca.data.preparation.select", "franca.data.preparation.database"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert run("select", tmp_path, "--output", tmp_path / "out") == 2
    assert "pip install 'franca[prepare]'" in capsys.readouterr().err


@pytest.mark.parametrize("column", ["url", "colour=x", "url="])
def test_a_column_of_no_role_is_refused(column: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(["select", "meta", "--output", "out", "--column", column])
    assert "is not ROLE=NAME with a role among url, caption" in capsys.readouterr().err
