"""Near-duplicates: planted ones are found and nothing else, by every engine, and after any interruption."""

import json
from pathlib import Path

import numpy as np
import pytest

from franca.data.preparation import deduplicate as module
from franca.data.preparation import neighbours
from franca.data.preparation.deduplicate import deduplicate
from franca.data.preparation.errors import PreparationError
from franca.data.preparation.neighbours import choose_search, pairs_above
from franca.data.preparation.vectors import Embeddings
from tests.data.preparation.conftest import dropped, near, save_shards, unit_rows

ENGINES = ("faiss", "torch")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and tiles of a size that a few hundred rows fill several of."""
    monkeypatch.setattr(module, "ROWS_PER_PART", 64)
    monkeypatch.setattr(module, "CLUSTERS_PER_PART", 2)
    for name, size in (("QUERIES", 16), ("COLUMNS", 32), ("QUERIES_HELD", 48)):
        monkeypatch.setattr(neighbours, name, size)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """300 images: 0 … 199 unique, 200 … 249 alike to 0 … 49, 250 … 299 alike to 200 … 249: fifty groups of three."""
    rows = unit_rows(200, 128)
    copies = near(rows[:50], 0.97)
    more = near(copies, 0.97, seed=2)
    return save_shards(tmp_path / "vectors", np.concatenate([rows, copies, more]), [f"{i}.jpg" for i in range(300)])


@pytest.mark.parametrize("engine", ENGINES)
def test_known_duplicates_are_found_and_unique_images_stay(engine: str, planted: Path, tmp_path: Path) -> None:
    report = deduplicate([planted], tmp_path / "out", threshold=0.95, engine=engine, device="cpu")
    expected = {f"{200 + i}.jpg": f"{i}.jpg" for i in range(50)} | {f"{250 + i}.jpg": f"{i}.jpg" for i in range(50)}
    assert dropped(tmp_path / "out") == expected
    assert (tmp_path / "out/kept.txt").read_text().split() == [f"{i}.jpg" for i in range(200)]
    assert (report["images"], report["kept"], report["dropped"]) == (300, 200, {"near_duplicate": 100})
    assert (report["groups"], report["largest_groups"][0]) == (50, {"image": "0.jpg", "images": 3})
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    assert not (tmp_path / "out/parts").exists()


def test_the_similarity_that_is_told_is_that_of_the_vectors(planted: Path, tmp_path: Path) -> None:
    deduplicate([planted], tmp_path / "out", threshold=0.95)
    told = {}
    for line in (tmp_path / "out/dropped.tsv").read_text().splitlines():
        name, keeper, similarity = line.split("\t")
        told[name, keeper] = float(similarity)
    vectors = Embeddings([planted]).rows(np.arange(300)).astype(np.float64)
    true = {pair: vectors[int(pair[0][:-4])] @ vectors[int(pair[1][:-4])] for pair in told}
    assert told == pytest.approx(true, abs=1e-4)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.969, 0.97, 0.9701])
def test_engines_find_the_same_pairs_as_all_comparisons_in_fp64(threshold: float, planted: Path) -> None:
    """0.97 is the planted similarity itself: rounding would decide."""
    vectors = Embeddings([planted])
    numbers = np.arange(len(vectors))
    rows = vectors.rows(numbers).astype(np.float64)
    expected = {(i, j) for i, j in np.argwhere(rows @ rows.T >= threshold).tolist()}
    found = {}
    for engine in ENGINES:
        pairs = list(pairs_above(vectors, numbers, vectors, numbers, threshold, choose_search(engine, "cpu"), True))
        found[engine] = {
            (int(i), int(j)): float(s)
            for one in pairs
            for i, j, s in zip(one.first, one.second, one.similarity, strict=True)
        }
    assert found["faiss"] == found["torch"]
    others = expected ^ set(found["torch"])  # fp64 sums in another order
    assert all(abs(rows[i] @ rows[j] - threshold) < 1e-12 for i, j in others)


def test_identical_images_in_any_number_become_one(tmp_path: Path) -> None:
    """A placeholder ("image not available") stands in the web thousands of times."""
    rows = unit_rows(300, 16)
    rows[5:290] = rows[5]
    save_shards(tmp_path / "v", rows, [str(i) for i in range(300)])
    report = deduplicate([tmp_path / "v"], tmp_path / "out", threshold=0.999)
    assert report["kept"] == 16
    assert set(dropped(tmp_path / "out").values()) == {"5"}


def test_images_without_an_embedding_stay_and_are_told(tmp_path: Path) -> None:
    rows = unit_rows(40, 64)
    rows[[3, 4]], rows[[8, 9]] = np.nan, 0
    save_shards(tmp_path / "v", rows, [str(i) for i in range(40)])
    report = deduplicate([tmp_path / "v"], tmp_path / "out")
    assert (report["kept"], report["without_embedding"]) == (40, 4)
    assert "4 images have a zero or non-finite embedding" in (tmp_path / "out/report.txt").read_text()


def results(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in ("kept.txt", "dropped.tsv", "report.json", "report.txt")}


@pytest.mark.parametrize("clusters", [1, 6])
@pytest.mark.parametrize("parts", [0, 2, 4])
def test_an_interrupted_step_goes_on_to_the_same_result(clusters, parts, planted, tmp_path, stop_after) -> None:
    deduplicate([planted], tmp_path / "whole", clusters=clusters, engine="torch")
    with stop_after(parts):
        deduplicate([planted], tmp_path / "cut", clusters=clusters, engine="torch")
    assert len(list((tmp_path / "cut/parts").rglob("part.json"))) >= parts
    deduplicate([planted], tmp_path / "cut", clusters=clusters, engine="faiss")  # another engine may go on
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def test_a_finished_part_is_not_made_again(planted: Path, tmp_path: Path, stop_after, monkeypatch) -> None:
    with stop_after(3):
        deduplicate([planted], tmp_path / "out", engine="torch")
    searched = []
    search = module.pairs_above
    monkeypatch.setattr(module, "pairs_above", lambda *given: searched.append(given[1][0]) or search(*given))
    deduplicate([planted], tmp_path / "out", engine="torch")
    assert searched == [192, 256]


def test_clusters_find_what_all_pairs_find_and_nothing_else(planted: Path, tmp_path: Path) -> None:
    deduplicate([planted], tmp_path / "all")
    deduplicate([planted], tmp_path / "near", clusters=5, probes=2)
    everything, found = dropped(tmp_path / "all"), dropped(tmp_path / "near")
    assert set(found) <= set(everything)
    assert len(found) >= 0.9 * len(everything)
    deduplicate([planted], tmp_path / "probed", clusters=5, probes=5)  # every cluster: all pairs
    assert dropped(tmp_path / "probed") == everything


def test_other_options_or_vectors_are_refused_or_start_anew(planted: Path, tmp_path: Path) -> None:
    deduplicate([planted], tmp_path / "out")
    with pytest.raises(PreparationError, match=r"threshold: there 0\.95, here 0\.5"):
        deduplicate([planted], tmp_path / "out", threshold=0.5)
    np.save(planted / "00002.npy", unit_rows(100, 128, seed=9))
    with pytest.raises(PreparationError, match=r"00002\.npy was changed"):
        deduplicate([planted], tmp_path / "out")
    assert deduplicate([planted], tmp_path / "out", restart=True)["dropped"] == {"near_duplicate": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "--threshold 0.0"),
        ({"threshold": 1.5}, "--threshold 1.5"),
        ({"threshold": float("nan")}, "--threshold nan"),
        ({"clusters": 0}, "--clusters 0"),
        ({"clusters": 301}, "the number of images \\(300\\)"),
        ({"probes": 0}, "--probes 0"),
        ({"engine": "annoy"}, "--engine annoy"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str, planted: Path, tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match=message):
        deduplicate([planted], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_without_faiss_torch_does_it_and_asking_for_faiss_says_how(planted, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "find_spec", lambda name: None)
    assert deduplicate([planted], tmp_path / "out")["kept"] == 200
    with pytest.raises(PreparationError, match=r"pip install 'franca\[prepare\]'"):
        deduplicate([planted], tmp_path / "other", engine="faiss")
