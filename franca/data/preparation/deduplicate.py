"""Near-duplicates: of images whose embeddings are alike, one stays.

Pairs with a cosine similarity of at least the threshold are edges of a graph; of each connected component the first
image stays, in the order of the shards. All pairs are compared, or with `clusters` those near the same centroids.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from franca import __version__
from franca.data.preparation.clusters import nearest, neighbourhoods, train_centroids
from franca.data.preparation.components import Components
from franca.data.preparation.errors import PreparationError
from franca.data.preparation.lists import write_lists
from franca.data.preparation.neighbours import Search, choose_search, pairs_above
from franca.data.preparation.report import counts_text
from franca.data.preparation.vectors import Embeddings, Integers
from franca.data.preparation.work_folder import WorkFolder
from franca.devices import choose_device
from franca.hub.progress import Progress

ROWS_PER_PART = 8192  # queries, after which what was found is kept
CLUSTERS_PER_PART = 64
MEANING = {"near_duplicate": "alike to an earlier image"}
GROUPS_SHOWN = 10


def deduplicate(
    inputs: Sequence[str | Path],
    output: str | Path,
    threshold: float = 0.95,
    clusters: int = 1,
    probes: int = 2,
    engine: str = "auto",
    device: str = "auto",
    restart: bool = False,
) -> dict[str, Any]:
    """Write `kept.txt`, `dropped.tsv` (image, the one that stays, similarity), `report.json`, `report.txt`.

    Args:
        inputs: shards of embeddings, or folders of them (vectors.py).
        output: folder of this step; the same call goes on in it.
        threshold: least cosine similarity of near-duplicates, above 0; right values depend on the model.
        clusters: 1 compares all pairs; more compare each image with the members of its `probes` nearest clusters.
        engine, device: as in choose_search; they change no result.
        restart: throw away what another call left in `output`.

    Raises:
        PreparationError: inputs that can't be used, or other options than before.
    """
    check_threshold(threshold)
    vectors = Embeddings(inputs)
    if not 1 <= clusters <= len(vectors) or probes < 1:
        raise PreparationError(
            f"--clusters {clusters} --probes {probes}: clusters are 1 to the number of images ({len(vectors)}), probes "
            "1 or more"
        )
    search, place = choose_search(engine, device), choose_device(device)
    options: dict[str, Any] = {"threshold": threshold, "clusters": clusters}
    if clusters > 1:
        options["probes"] = min(probes, clusters)
    with WorkFolder(Path(output), "deduplicate", options, vectors.files, restart) as work:
        report = work.report
        if report is None:
            components = Components(len(vectors))
            if clusters > 1:
                _join_near(work, vectors, threshold, search, components, clusters, options["probes"], place)
            else:
                _join_all(work, vectors, threshold, search, components)
            report = _finish(work, vectors, components, options)
    return report


def check_threshold(threshold: float) -> None:
    """Raise PreparationError for what can't be a similarity of near-duplicates."""
    if not 0 < threshold <= 1:
        raise PreparationError(f"--threshold {threshold}: a cosine similarity above 0, at most 1")


def _join_all(work: WorkFolder, vectors: Embeddings, threshold: float, search: Search, components: Components) -> None:
    """Compare every row with itself and the later ones, a part of the rows at a time."""
    total = len(vectors)
    starts = range(0, total, ROWS_PER_PART)
    with Progress("near-duplicates", sum(total - start for start in starts) * 4 * vectors.width) as progress:
        for start in starts:
            queries = np.arange(start, min(start + ROWS_PER_PART, total))
            pair = (queries, np.arange(start, total))
            _join_part(work, f"pairs/{start // ROWS_PER_PART:08}", vectors, [pair], threshold, search, components)
            progress.add((total - start) * 4 * vectors.width)


def _join_near(
    work: WorkFolder,
    vectors: Embeddings,
    threshold: float,
    search: Search,
    components: Components,
    clusters: int,
    probes: int,
    device: torch.device,
) -> None:
    """Compare the rows near each centroid, some centroids at a time."""
    assigned = _assign(work, vectors, clusters, probes, device)
    pending: list[tuple[Integers, Integers]] = []
    with Progress("near-duplicates", assigned.size * 4 * vectors.width) as progress:
        for number, near in enumerate(neighbourhoods(assigned, clusters)):
            pending.append((near.probing, near.members))
            if len(pending) == CLUSTERS_PER_PART or number + 1 == clusters:
                name = f"pairs/{number // CLUSTERS_PER_PART:08}"
                _join_part(work, name, vectors, pending, threshold, search, components)
                progress.add(sum(len(queries) for queries, _ in pending) * 4 * vectors.width)
                pending = []


def _assign(
    work: WorkFolder, vectors: Embeddings, clusters: int, probes: int, device: torch.device
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """(N, probes): the nearest centroids of every row."""

    def train(folder: Path) -> dict[str, Any]:
        np.save(folder / "centroids.npy", train_centroids(vectors, clusters, device))
        return {}

    def assign(numbers: Integers, folder: Path) -> dict[str, Any]:
        rows = torch.from_numpy(vectors.rows(numbers)).to(device)
        np.save(folder / "nearest.npy", nearest(rows, centroids, probes).int().cpu().numpy())
        return {}

    work.part("centroids", train)
    centroids = torch.from_numpy(_load(work.folder("centroids") / "centroids.npy")).to(device)
    assigned = np.empty((len(vectors), probes), np.int32)
    with Progress("clusters", len(vectors) * 4 * vectors.width) as progress:
        for start in range(0, len(vectors), ROWS_PER_PART):
            numbers = np.arange(start, min(start + ROWS_PER_PART, len(vectors)))
            name = f"assigned/{start // ROWS_PER_PART:08}"
            work.part(name, partial(assign, numbers))
            assigned[numbers] = _load(work.folder(name) / "nearest.npy")
            progress.add(len(numbers) * 4 * vectors.width)
    return assigned


def _join_part(
    work: WorkFolder,
    name: str,
    vectors: Embeddings,
    pairs: Sequence[tuple[Integers, Integers]],
    threshold: float,
    search: Search,
    components: Components,
) -> None:
    """Find what some rows join, or join what an earlier run found."""

    def find(folder: Path) -> dict[str, Any]:
        joined = [np.empty((0, 2), np.int64)]
        for queries, database in pairs:
            for found in pairs_above(vectors, queries, vectors, database, threshold, search):
                joined.append(components.join(found.first, found.second))
        np.save(folder / "edges.npy", np.concatenate(joined))
        return {}

    work.part(name, find)
    edges = _load(work.folder(name) / "edges.npy")
    components.join(edges[:, 0], edges[:, 1])


def _load(file: Path) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = np.load(file, allow_pickle=False)
    return array


def _finish(work: WorkFolder, vectors: Embeddings, components: Components, options: dict[str, Any]) -> dict[str, Any]:
    """Write the lists and the report."""
    keeper = components.roots(np.arange(len(vectors)))
    unusable = sum(int((~block.any(axis=1)).sum()) for block in _blocks(vectors))
    dropped = np.flatnonzero(keeper != np.arange(len(vectors)))
    write_lists(work, vectors, dropped, vectors, keeper[dropped])
    groups, sizes = np.unique(keeper[dropped], return_counts=True)
    largest = np.argsort(-sizes, kind="stable")[:GROUPS_SHOWN]
    report = {
        "step": "deduplicate",
        "images": len(vectors),
        "kept": len(vectors) - len(dropped),
        "dropped": {"near_duplicate": len(dropped)},
        "without_embedding": unusable,
        "groups": len(groups),
        "largest_groups": [
            {"image": name, "images": int(size) + 1}
            for name, size in zip(vectors.names(groups[largest]), sizes[largest], strict=True)
        ],
        "options": options,
        "versions": {"franca": __version__, "torch": torch.__version__},
    }
    work.finish(report, _text(report))
    return report


def _blocks(vectors: Embeddings) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    for start in range(0, len(vectors), ROWS_PER_PART):
        yield vectors.rows(np.arange(start, min(start + ROWS_PER_PART, len(vectors))))


def _text(report: dict[str, Any]) -> str:
    text = counts_text("Images", report["images"], report["kept"], report["dropped"], MEANING)
    if report["without_embedding"]:
        text += f"\n{report['without_embedding']} images have a zero or non-finite embedding, and stay\n"
    if report["groups"]:
        text += f"\n{report['groups']} groups of near-duplicates, the largest:\n"
        text += "".join(f"  {group['images']:>8,}  {group['image']}\n" for group in report["largest_groups"])
    return text
