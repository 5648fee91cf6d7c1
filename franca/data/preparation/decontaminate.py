"""Images that evaluation sets hold too: those whose nearest evaluation image is at least the threshold near."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from franca import __version__
from franca.data.preparation.deduplicate import check_threshold
from franca.data.preparation.errors import PreparationError
from franca.data.preparation.lists import write_lists
from franca.data.preparation.neighbours import Pairs, Search, choose_search, pairs_above
from franca.data.preparation.report import counts_text
from franca.data.preparation.vectors import Embeddings, Integers
from franca.data.preparation.work_folder import WorkFolder
from franca.hub.progress import Progress

ROWS_PER_PART = 8192
COLUMNS = ("row", "nearest", "similarity")


def decontaminate(
    inputs: Sequence[str | Path],
    evaluation: Sequence[str | Path],
    output: str | Path,
    threshold: float = 0.9,
    engine: str = "auto",
    device: str = "auto",
    restart: bool = False,
) -> dict[str, Any]:
    """Write `kept.txt`, `dropped.tsv` (image, nearest evaluation image, similarity), `report.json`, `report.txt`.

    Args:
        inputs: shards of embeddings of the images to train on, or folders of them (vectors.py).
        evaluation: the same for evaluation images, from the same model; the report counts each entry by itself.
        output: folder of this step; the same call goes on in it.
        threshold: least cosine similarity of images that count as the same, above 0.
        engine, device: as in choose_search; they change no result.
        restart: throw away what another call left in `output`.

    Raises:
        PreparationError: inputs that can't be used, or other options than before.
    """
    check_threshold(threshold)
    vectors, sets = Embeddings(inputs), [Embeddings([entry]) for entry in evaluation]
    if not sets:
        raise PreparationError("no evaluation set is given")
    others = Embeddings(evaluation)
    if len(others) != sum(map(len, sets)):
        raise PreparationError("an evaluation set lies inside another one, or is given twice")
    if others.width != vectors.width:
        raise PreparationError(
            f"images have vectors of width {vectors.width}, evaluation images of {others.width}: they must come from "
            "one model"
        )
    search = choose_search(engine, device)
    files = [*vectors.files, *others.files]
    options = {"threshold": threshold, "evaluation": [str(Path(entry).absolute()) for entry in evaluation]}
    with WorkFolder(Path(output), "decontaminate", options, files, restart) as work:
        report = work.report
        if report is None:
            found = _search(work, vectors, others, threshold, search)
            counts = _by_set(found["nearest"], [len(one) for one in sets], list(map(str, evaluation)))
            write_lists(work, vectors, found["row"], others, found["nearest"])
            report = {
                "step": "decontaminate",
                "images": len(vectors),
                "evaluation_images": len(others),
                "kept": len(vectors) - len(found["row"]),
                "dropped": counts,
                "options": options,
                "versions": {"franca": __version__, "torch": torch.__version__},
            }
            meaning = dict.fromkeys(counts, "also among these evaluation images")
            work.finish(report, counts_text("Images", len(vectors), report["kept"], counts, meaning))
    return report


def _search(
    work: WorkFolder, vectors: Embeddings, others: Embeddings, threshold: float, search: Search
) -> Mapping[str, np.ndarray[Any, Any]]:
    """The rows that are too near to an evaluation image, the nearest one, and their similarity."""
    parts: list[dict[str, np.ndarray[Any, Any]]] = []

    def find(rows: Integers, folder: Path) -> dict[str, Any]:
        pairs = pairs_above(vectors, rows, others, np.arange(len(others)), threshold, search, precise=True)
        for name, column in zip(COLUMNS, _nearest(pairs), strict=True):
            np.save(folder / f"{name}.npy", column)
        return {}

    with Progress("evaluation images", len(vectors) * 4 * vectors.width) as progress:
        for start in range(0, len(vectors), ROWS_PER_PART):
            rows = np.arange(start, min(start + ROWS_PER_PART, len(vectors)))
            name = f"rows/{start // ROWS_PER_PART:08}"
            work.part(name, partial(find, rows))
            parts.append({each: np.load(work.folder(name) / f"{each}.npy", allow_pickle=False) for each in COLUMNS})
            progress.add(len(rows) * 4 * vectors.width)
    return {each: np.concatenate([part[each] for part in parts]) for each in COLUMNS}


def _nearest(pairs: Iterator[Pairs]) -> tuple[Integers, Integers, np.ndarray[Any, Any]]:
    """Of all pairs of each row the most alike one, of equals the first; rows ascend."""
    row, nearest = np.empty(0, np.int64), np.empty(0, np.int64)
    similarity = np.empty(0, np.float64)
    for found in pairs:
        row = np.concatenate([row, found.first])
        nearest = np.concatenate([nearest, found.second])
        similarity = np.concatenate([similarity, found.similarity])
        order = np.lexsort((nearest, -similarity, row))
        row, nearest, similarity = row[order], nearest[order], similarity[order]
        first = np.flatnonzero(np.diff(row, prepend=-1))
        row, nearest, similarity = row[first], nearest[first], similarity[first]
    return row, nearest, similarity


def _by_set(nearest: Integers, sizes: Sequence[int], names: Sequence[str]) -> dict[str, int]:
    """How many of the rows are alike to an image of each set."""
    owner = np.searchsorted(np.cumsum(sizes), nearest, side="right")
    return {name: int(count) for name, count in zip(names, np.bincount(owner, minlength=len(names)), strict=True)}
