"""The page that shows what a RASA head changed: numbers, predicted places, clusters, pictures."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from franca.eval.figures.pca import pca_figure
from franca.eval.figures.positions import cluster_maps_figure, entropy_figure, prediction_figure
from franca.eval.figures.regions import displayed
from franca.eval.images import EvalImages
from franca.eval.parts import Part, evenly_spaced
from franca.eval.report import page
from franca.eval.views import CentralSquare
from rasa.evidence import Evidence, State
from rasa.fold import rasa_matrix
from rasa.run import Result

LITTLE = 0.02  # R² below this is as good as none
FEW = 50  # crops


def build_report(result: Result, out: Path) -> Path:
    """Write ``index.html`` and its pictures into a folder; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    engine = result.task.engine
    title = "What RASA removed"
    subtitle = f"{engine.backbone.name}, {len(result.fit.rounds)} rounds, {result.task.config.solver} solver"
    index = out / "index.html"
    index.write_text(page.page(title, subtitle, sections(result, out)), encoding="utf-8")
    return index


def sections(result: Result, out: Path) -> list[str]:
    """The page's parts as HTML, for this page or a larger one; their pictures go into ``out``."""
    evidence = result.evidence
    if evidence is None:
        planes = f"RASA removed {2 * len(result.fit.rounds)} dimensions; {result.fit.stopped}."
        few = "What that changed was not measured: too few images were set apart for it."
        return [page.section("Position in the patch features", page.paragraph(f"{planes} {few}")), _rounds(result)]
    return [
        page.section("Position in the patch features, before and after RASA", page.paragraph(headline(result), "lead"),
                     _numbers(evidence)),
        _predictions(evidence, out),
        _clusters(evidence, out),
        _pictures(result, out),
        _rounds(result),
    ]  # fmt: skip


def headline(result: Result) -> str:
    """What happened, in two sentences that follow from the numbers."""
    evidence = result.evidence
    assert evidence is not None
    before, after = evidence.before.linear, evidence.after.linear
    dims, width = 2 * len(result.fit.rounds), result.fit.head.input_dim
    cost = f"{dims} of {width} dimensions went, with {100 * evidence.variance_removed:.2g} % of the features' variance."
    if evidence.scored_on < FEW:
        cost += f" Measured on {evidence.scored_on} crops alone, which gives rough numbers: raise evidence.share."
    share = f"{max(100 * before.r2, 0):.0f} %"
    found = result.fit.rounds[0].predictable
    if before.r2 < LITTLE < found / 2:
        return (
            f"The images set apart are too few to show what RASA did: a predictor explained {100 * found:.0f} % of "
            f"position on held-out images, but none can be fitted to those. {cost}"
        )
    if before.r2 < LITTLE:
        return f"There was hardly any position to remove: a linear predictor explained {share} of it. {cost}"
    if after.r2 < LITTLE:
        return f"Position is gone: a fresh linear predictor explained {share} of it before, nothing now. {cost}"
    return (
        f"Less position is left: a fresh linear predictor explained {share} of it before, {100 * after.r2:.0f} % now. "
        f"{cost}"
    )


def _numbers(evidence: Evidence) -> str:
    def row(name: str, number: Callable[[State], float], digits: int, chance: str) -> list[str]:
        sides = (round(number(side), digits) + 0.0 for side in (evidence.before, evidence.after))  # -0.0 + 0.0 is 0.0
        return [name, *(f"{value:.{digits}f}" for value in sides), chance]

    chance = f"{evidence.before.linear.chance_rmse:.3f}"
    rows = [
        row("error of a linear predictor, in sides of the image", lambda side: side.linear.rmse, 3, chance),
        row("R² of a linear predictor", lambda side: side.linear.r2, 3, "0"),
        row("R² of the paper's sigmoid predictor", lambda side: side.sigmoid.r2, 3, "0"),
        row("entropy of places in a cluster, of that by chance", lambda side: side.entropy.mean, 3, "1"),
    ]
    return page.table(["images set apart", "before", "after", "by chance"], rows)


def _predictions(evidence: Evidence, out: Path) -> str:
    scores = {"before": evidence.before.linear, "after": evidence.after.linear}
    prediction_figure(out / "predictions.png", scores, "Where a fresh linear predictor puts the patches")
    return page.section(
        "Where the patches seem to lie",
        page.paragraph(f"A predictor of row and column is fitted anew to the features of {evidence.fitted_on} crops, "
                       f"before and after, and asked about {evidence.scored_on} crops of other images. All of them are "
                       "of images that RASA never saw."),
        page.picture("predictions.png", "predicted positions", "Each point is the mean of what is predicted for a cell "
                     "of the grid; its colour says where the cell lies. Features that know their place give the "
                     "grid back, features that don't give one point in the middle."),
    )  # fmt: skip


def _clusters(evidence: Evidence, out: Path) -> str:
    entropies = {"before": evidence.before.entropy, "after": evidence.after.entropy}
    entropy_figure(out / "entropy.png", entropies, "Entropy of patch positions per cluster")
    cluster_maps_figure(out / "clusters.png", entropies, "Where the most placed clusters lie")
    return page.section(
        "Clusters that belong to a place",
        page.paragraph(f"k-means with {evidence.clusters} clusters of the patch features of those images (paper "
                       "Fig. 6). A cluster whose patches all lie in one corner stands for a place, not for a thing. "
                       f"{_about_entropy(entropies['before'].mean, entropies['after'].mean)}"),
        page.picture("entropy.png", "entropy of positions per cluster", "1: as spread out as patches drawn at random, "
                     "0: all in one cell."),
        page.picture("clusters.png", "maps of clusters", "The six clusters of lowest entropy among the larger half, "
                     "before and after."),
    )  # fmt: skip


def _about_entropy(before: float, after: float) -> str:
    """What the mean entropies, of those expected by chance, say."""
    if before > 1 - LITTLE:
        return "Clusters of this model were hardly about places before, so there was little to gain here."
    if after > before + LITTLE / 2:
        return f"Their mean entropy, of that expected by chance, rose from {before:.3f} to {after:.3f}."
    return f"Their mean entropy, of that expected by chance: {before:.3f} before, {after:.3f} after, no clear change."


def _pictures(result: Result, out: Path) -> str:
    task = result.task
    wanted = task.config.evidence.pictures
    shown = evenly_spaced(Part(task.source, task.test.numbers), wanted)
    images = EvalImages(shown, CentralSquare(task.config.data.size))
    pixels = next(iter(images.batches(wanted))).pixels
    before = task.engine.features(pixels).cpu()
    after = before @ rasa_matrix(result.fit.head).to(before)
    rows: Mapping[str, Tensor] = {"before": before, "after": after, "removed": before - after}
    pca_figure(out / "rasa_pca.png", [displayed(one) for one in pixels], dict(rows), "PCA of patch features")
    return page.section(
        "What the patches look like",
        page.picture("rasa_pca.png", "PCA colours before and after", "First three principal components as colours, "
                     "over all images of a row together. Colours of different rows have nothing to do with each "
                     "other. The last row is what was removed: at its clearest, a ramp across the image."),
    )  # fmt: skip


def _rounds(result: Result) -> str:
    rows = [
        [
            str(one.number), f"{one.held_out_error:.4f}", f"{one.train_error:.4f}", f"{one.chance:.4f}",
            f"{100 * one.predictable:.1f} %",
        ]
        for one in result.fit.rounds
    ]  # fmt: skip
    return page.section(
        "The rounds",
        page.paragraph(f"Each round fits a predictor to what the rounds before it left, then removes its plane of two "
                       f"dimensions. How it ended: {result.fit.stopped}."),
        page.table(["round", "error, held-out", "error, fitted", "by chance", "still predicted"], rows,
                   "Mean squared error over patches and both coordinates, before the round's plane was removed"),
        page.paragraph("This page measures position alone. Whether the features serve a task better is for an "
                       "evaluation of that task to say."),
    )  # fmt: skip
