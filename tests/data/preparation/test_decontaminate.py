"""Evaluation images among those to train on: each is found with the image that it is alike to, the others stay."""

from pathlib import Path

import numpy as np
import pytest

from franca.data.preparation import decontaminate as module
from franca.data.preparation import neighbours
from franca.data.preparation.decontaminate import decontaminate
from franca.data.preparation.errors import PreparationError
from tests.data.preparation.conftest import dropped, near, save_shards, unit_rows


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_PER_PART", 50)
    for name, size in (("QUERIES", 16), ("COLUMNS", 32), ("QUERIES_HELD", 48)):
        monkeypatch.setattr(neighbours, name, size)


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """200 images; `a` holds neighbours of 10 … 29 at 0.95, `b` of 20 … 39 at 0.92; ten of each are of nothing."""
    rows, others = unit_rows(200, 128), unit_rows(20, 128, seed=5)
    save_shards(tmp_path / "train", rows, [f"{i}.jpg" for i in range(200)])
    first, second = near(rows[10:30], 0.95), near(rows[20:40], 0.92, seed=3)
    save_shards(tmp_path / "a", np.concatenate([others[:10], first]), [f"a{i}" for i in range(30)])
    save_shards(tmp_path / "b", np.concatenate([second, others[10:]]), [f"b{i}" for i in range(30)])
    return tmp_path


@pytest.mark.parametrize("engine", ["faiss", "torch"])
def test_evaluation_images_are_dropped_for_the_nearest_one(engine: str, sets: Path) -> None:
    evaluation = [sets / "a", sets / "b"]
    report = decontaminate([sets / "train"], evaluation, sets / "out", threshold=0.9, engine=engine, device="cpu")
    expected = {f"{i}.jpg": f"a{i}" for i in range(10, 30)} | {f"{i}.jpg": f"b{i - 20}" for i in range(30, 40)}
    assert dropped(sets / "out") == expected
    kept = [f"{i}.jpg" for i in range(200) if not 10 <= i < 40]
    assert (sets / "out/kept.txt").read_text().split() == kept
    assert report["dropped"] == {str(sets / "a"): 20, str(sets / "b"): 10}
    assert report["images"] == 200 == report["kept"] + sum(report["dropped"].values())


def test_only_what_reaches_the_threshold_goes(sets: Path) -> None:
    decontaminate([sets / "train"], [sets / "a", sets / "b"], sets / "out", threshold=0.93)
    assert set(dropped(sets / "out")) == {f"{i}.jpg" for i in range(10, 30)}
    report = decontaminate([sets / "train"], [sets / "b"], sets / "none", threshold=0.97)
    assert (report["kept"], dropped(sets / "none")) == (200, {})


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_an_interrupted_step_goes_on_to_the_same_result(parts: int, sets: Path, stop_after) -> None:
    evaluation = [sets / "a", sets / "b"]
    decontaminate([sets / "train"], evaluation, sets / "whole", engine="torch")
    with stop_after(parts):
        decontaminate([sets / "train"], evaluation, sets / "cut", engine="torch")
    decontaminate([sets / "train"], evaluation, sets / "cut", engine="faiss")
    for name in ("kept.txt", "dropped.tsv", "report.json"):
        assert (sets / "cut" / name).read_bytes() == (sets / "whole" / name).read_bytes()


def test_sets_that_do_not_go_together_are_refused(sets: Path) -> None:
    np.save(sets / "narrow.npy", unit_rows(3, 16))
    with pytest.raises(PreparationError, match="width 128, evaluation images of 16"):
        decontaminate([sets / "train"], [sets / "narrow.npy"], sets / "out")
    with pytest.raises(PreparationError, match="given twice"):
        decontaminate([sets / "train"], [sets / "a", sets / "a"], sets / "out")
    with pytest.raises(PreparationError, match="no evaluation set"):
        decontaminate([sets / "train"], [], sets / "out")
    decontaminate([sets / "train"], [sets / "a"], sets / "out")
    with pytest.raises(PreparationError, match=r"evaluation: there .*a'"):
        decontaminate([sets / "train"], [sets / "b"], sets / "out")
