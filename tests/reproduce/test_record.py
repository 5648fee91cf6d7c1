"""Records are read as they were written, notice an edited recipe, and say what is wrong with a file."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from franca.reproduce import recipe as recipes
from franca.reproduce.errors import ReproduceError
from franca.reproduce.recipe import Recipe, find_recipe, learned
from franca.reproduce.record import Record, changed_since, read_record, write_record

ROOT = Path(__file__).resolve().parents[2]

MakeRecord = Callable[..., Record]


@pytest.fixture
def record(make_record: MakeRecord) -> Record:
    curves = [{"loss": {10: value, 20: 2.0}, "knn_cls@20": {20: 40.0 + value}} for value in (1.0, 1.5)]
    return make_record(*curves, loss=0.25)


def test_a_record_is_read_as_it_was_written(record: Record, tmp_path: Path) -> None:
    write_record(tmp_path / "recorded" / "some.json", record)
    again = read_record(tmp_path / "recorded" / "some.json")
    assert again.seeds == record.seeds
    assert again.facts == record.facts
    assert again.tolerances["loss"] == record.tolerances["loss"] == {10: 0.25, 20: 0.25}
    assert again.tolerances["knn_cls@20"] == pytest.approx(record.tolerances["knn_cls@20"], rel=1e-4)
    assert again.tolerance == record.tolerance


def test_a_record_changes_line_by_line(record: Record, tmp_path: Path) -> None:
    write_record(tmp_path / "some.json", record)
    rows = [line.strip() for line in (tmp_path / "some.json").read_text().splitlines() if '"step": ' in line]
    assert rows[0] == '{ "step": 10, "loss": 0.25 },'
    assert rows[2] == '{ "step": 10, "loss": 1.0 },'
    assert len(rows) == 2 + 2 * 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no record"),
        ("[]", "is no record"),
        ('{"format": 1}', "is no record .*recipe"),
        ('{"format": 2}', "has format 2, this version of franca reads 1"),
    ],
)
def test_what_is_no_record_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text(text)
    with pytest.raises(ReproduceError, match=words):
        read_record(tmp_path / "some.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": {}}, "it holds no seeds"),
        ({"tolerances": []}, "it holds no tolerances of the loss"),
        ({"tolerances": [{"step": 10, "loss": 0.0}]}, "the tolerance of loss at step 10 is 0, not above 0"),
        (
            {"seeds": {"0": [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 1.0, "knn_cls@20": 4.0}], "1": []}},
            "of seed 1 and the tolerances, only one has loss of step 10",
        ),
        ({"tolerances": [{"step": 20, "loss": 1.0}]}, "of seed 0 and the tolerances, only one has loss of step 10"),
    ],
    ids=["no seeds", "no tolerances", "tolerance of 0", "seed without its points", "points without tolerances"],
)
def test_a_damaged_record_is_refused_with_what_to_do(
    changes: dict[str, Any], words: str, record: Record, tmp_path: Path
) -> None:
    file = tmp_path / "some.json"
    write_record(file, record)
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ReproduceError) as refused:
        read_record(file)
    assert str(refused.value).startswith(f"{file} is damaged: {words}. Restore it, or record the recipe again")


def test_a_record_without_numbers_is_refused(record: Record, tmp_path: Path) -> None:
    file = tmp_path / "some.json"
    write_record(file, record)
    file.write_text(file.read_text().replace('"loss": 1.0', '"loss": null'))
    with pytest.raises(ReproduceError, match=r"some\.json is no record of a recipe .*; restore it"):
        read_record(file)


def test_a_recipe_without_a_record_is_told_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ReproduceError, match=r"does not exist.*--record 0,1,2"):
        read_record(tmp_path / "none.json")


def test_an_edited_recipe_is_noticed_and_a_new_option_is_not(record: Record, recipe: Path) -> None:
    now = json.loads(json.dumps(learned(Recipe(recipe).configure([]))))
    assert changed_since(record, now) == []
    assert changed_since(record, now | {"steps": 41}) == ["steps"]


def test_the_curve_that_training_md_shows_is_the_recorded_one() -> None:
    record = read_record(ROOT / "configs" / "recipes" / "recorded" / "imagenette_cpu.json")
    text = (ROOT / "training.md").read_text()
    for name, quantity in (("class token, seed 1", "knn_cls@20"), ("mean patch, seed 1", "knn_patch@20")):
        (row,) = re.findall(rf"^\| {name} \|(.*)\|$", text, re.MULTILINE)
        untrained, *shown, gain = (float(cell.strip(" *")) for cell in row.split("|"))
        assert shown == [round(value, 1) for value in record.seeds[1][quantity].values()]
        assert gain == pytest.approx(shown[-1] - untrained, abs=0.06)


def test_every_shipped_record_is_that_of_its_recipe() -> None:
    files = sorted(recipes.RECIPES.glob("recorded/*.json"))
    assert files, "the quickstart's at least"
    for file in files:
        record, own = read_record(file), find_recipe(file.stem)
        assert changed_since(record, learned(own.configure([]))) == []
        assert record.recipe == own.name


@pytest.mark.parametrize("name", ["imagenette_minutes", "quickstart"])
def test_a_shipped_record_is_written_as_it_was_read(name: str, tmp_path: Path) -> None:
    shipped = find_recipe(name).record
    write_record(tmp_path / "again.json", read_record(shipped))
    known = json.loads(shipped.read_text())
    known.pop("window", None)  # follows from steps and log.every, which both are in "learned"; nothing reads it
    assert json.loads((tmp_path / "again.json").read_text()) == known


def test_a_recipe_is_a_name_or_a_file(recipe: Path) -> None:
    assert find_recipe("quickstart").record.name == "quickstart.json"
    assert find_recipe(str(recipe)).record == recipe.parent / "recorded" / "some.json"


@pytest.mark.parametrize(
    ("name", "words"), [("quikstart", "did you mean 'quickstart'.*imagenette_cpu"), ("no.yaml", "does not exist")]
)
def test_an_unknown_recipe_is_refused(name: str, words: str) -> None:
    with pytest.raises(ReproduceError, match=words):
        find_recipe(name)


def test_without_configs_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "RECIPES", tmp_path / "none")
    with pytest.raises(ReproduceError, match=r"in a clone.*path of a YAML file"):
        find_recipe("quickstart")


@pytest.mark.parametrize("override", ["optimizer.lr=0.1", "steps=50", "log.every=2", "evaluation.ks=[1]"])
def test_what_changes_the_curve_is_refused_with_both_values(override: str, recipe: Path) -> None:
    with pytest.raises(ReproduceError, match=rf"{re.escape(override)} \(recipe: .*another run") as refused:
        Recipe(recipe).configure([override])
    assert "data.path" in str(refused.value), "what is free is named"


def test_what_is_a_users_own_is_not(recipe: Path) -> None:
    own = ["data.path=/elsewhere", "output=there", "precision=bf16", "checkpoint.every=7", "seed=9", "data.workers=1"]
    config = Recipe(recipe).configure([*own, "optimizer.lr=1e-3"])  # its own value
    assert (config.data.path, config.output, config.seed) == ("/elsewhere", "there", 9)
