"""The report of a run: one page and its pictures, made to be looked at by a person."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from franca.eval.class_attention import class_token_attention
from franca.eval.features import in_eval_mode, normalise
from franca.eval.figures.attention import attention_figure, attention_rows
from franca.eval.figures.curves import health_figure, loss_figure, score_figure, uniform_losses
from franca.eval.figures.masks import NAMES, masks_figure, visibility_figure
from franca.eval.figures.pca import pca_figure
from franca.eval.figures.regions import displayed
from franca.eval.figures.widths import width_figure
from franca.eval.images import EvalImages
from franca.eval.parts import Part
from franca.eval.report import findings, page
from franca.eval.report.comparison import FEATURES, Comparison, compare
from franca.eval.report.run import Run, load_run
from franca.eval.report.task import Task, choose_task
from franca.eval.views import CentralSquare

ENLARGED = 2  # figures show images at this many times the training size: more patches to see
SLICES_SHOWN = (1, 4, 16)  # divisors of the feature


def build_report(
    run_folder: str | Path,
    out_folder: str | Path,
    more: Sequence[str] = (),
) -> Path:
    """Write ``index.html`` and its pictures for a run of ``franca.train``; returns the page's path.

    Args:
        run_folder: the run's ``output``. out_folder: made if it isn't there; files of an earlier report are replaced.
        more: sections (HTML) that someone else made, shown behind the run's own.

    Raises:
        FileNotFoundError, DataError, CheckpointError: as `load_run`.
    """
    started = time.perf_counter()
    run, out = load_run(run_folder), Path(out_folder)
    out.mkdir(parents=True, exist_ok=True)
    task = choose_task(run.data, run.source, run.data.crops.global_size)
    comparison = compare(run.trained, run.untrained, task, run.data)
    sections = [
        _summary(run, comparison),
        _knn(run, task, comparison, out),
        _portraits(run, task, out),
        _curves(run, out),
        _masks(run, task, out),
        *more,
        _honesty(run, comparison),
        _details(run, time.perf_counter() - started),
    ]
    title = "What this run learned"
    images = "the sample photographs" if run.data.source == "photographs" else run.data.path
    subtitle = f"{run.description['arch']} after {run.description['step']:,} steps on {images}"
    index = out / "index.html"
    index.write_text(page.page(title, subtitle, sections), encoding="utf-8")
    return index


def _summary(run: Run, comparison: Comparison) -> str:
    return page.section("In short", page.paragraph(findings.headline(comparison), "lead"), page.verdict(*run.verdict))


def _knn(run: Run, task: Task, comparison: Comparison, out: Path) -> str:
    trained_widths = run.trained_widths
    lines = {f"trained, {feature}": comparison.trained[feature] for feature in FEATURES}
    lines |= {f"untrained, {feature}": comparison.untrained[feature] for feature in FEATURES}
    marks = {"raw pixels": comparison.pixels, "chance": comparison.chance}
    width_figure(out / "knn.png", lines, marks, trained_widths, f"{task.goal}, %")
    widths = list(comparison.trained[FEATURES[0]])
    rows = [[name, *(f"{by_width[width]:.1f}" for width in widths)] for name, by_width in lines.items()]
    return page.section(
        "Nearest neighbours, with the whole feature and its slices",
        page.paragraph(f"{task.explanation} Every network looks at the same {task.size}-pixel images; each "
                       f"query is decided by its {task.k} nearest neighbour{'s' if task.k > 1 else ''} (cosine)."),
        page.picture("knn.png", "k-NN accuracy over slice widths", "Trained and untrained network at d, d/2 … d/64 "
                     "features. Raw pixels: the same question to 8×8 thumbnails of the images, without any network."),
        page.table([f"{task.goal}, %", *map(str, widths)], rows),
    )  # fmt: skip


def _portraits(run: Run, task: Task, out: Path) -> str:
    patch = run.trained.patch_size
    size = max(task.size * ENLARGED // patch, 1) * patch
    pixels = portraits(task, size)
    inputs, shown = normalise(pixels, run.data.crops.mean, run.data.crops.std), [displayed(one) for one in pixels]
    trained, untrained = (patch_grid(model, inputs) for model in (run.trained, run.untrained))
    dim = run.trained.embed_dim
    slices = {
        f"trained,\n{dim // divisor} features": trained[..., : dim // divisor]
        for divisor in SLICES_SHOWN
        if dim // divisor >= 3
    }
    pca_figure(out / "pca.png", shown, slices | {f"untrained,\n{dim} features": untrained}, "PCA of patch features")
    heads = attention_rows(attention_grid(run.trained, inputs))
    before = {"untrained,\nmean of heads": list(attention_grid(run.untrained, inputs).mean(dim=1))}
    attention_figure(out / "attention.png", shown, heads | before, "Attention of the class token, last block")
    grid = f"{size // patch}×{size // patch}"
    return page.section(
        "What the patches look like to the network",
        page.paragraph(f"Images at {size} pixels, that is {grid} patches of {patch} pixels (training used "
                       f"{task.size} pixels). Figures show structure, not quality: an untrained network "
                       "already has some, from the colours of its patches."),
        page.picture("pca.png", "PCA colours of patch features", "First three principal components of the patch "
                     "features as red, green and blue, over all images of a row together: equal colours are similar "
                     "features. Colours of different rows have nothing to do with each other. The trained network is "
                     "shown with all its features and with its first d/4 and d/16."),
        page.picture("attention.png", "attention maps", "Bright: patches that the class token attends to. Each map has "
                     "a scale of its own: it shows where, not how much."),
    )  # fmt: skip


def _curves(run: Run, out: Path) -> str:
    objective = run.settings["objective"]
    uniform = uniform_losses(
        run.prototypes,
        run.data.crops.local_count,
        run.data.mask.probability,
        objective["crop_weight"],
        objective["patch_weight"],
    )
    loss_figure(out / "losses.png", run.lines, uniform)
    parts = [
        page.picture("losses.png", "loss curves", "Each term as it was optimised, added over the Matryoshka levels; "
                     "thin: as logged, thick: moving average. Dashed: a student that finds all prototypes alike. "
                     "Losses can rise while features improve, because the teacher that sets the task improves too."),
    ]  # fmt: skip
    if health_figure(out / "health.png", run.lines):
        parts.append(page.picture("health.png", "health curves", "Assignment information: 1 when every image of a "
                     "batch has prototypes of its own, 0 when all share them. Agreement: teacher and student choose "
                     "the same prototype for two crops of an image, widest level."))  # fmt: skip
    if score_figure(out / "scores.png", run.lines):
        parts.append(
            page.picture("scores.png", "k-NN accuracy over steps", "k-NN accuracy of the teacher in training.")
        )
    return page.section("How training went", *parts)


def _masks(run: Run, task: Task, out: Path) -> str:
    size, patch = run.data.crops.global_size, run.trained.patch_size
    grid = (size // patch, size // patch)
    shown = [displayed(one) for one in portraits(task, size * ENLARGED)]
    masks_figure(out / "masks.png", shown, grid, run.data.mask)
    visibility_figure(out / "visibility.png", grid, run.data.mask)
    share = round(100 * run.data.mask.probability)
    return page.section(
        "What was hidden from the student",
        page.paragraph(f"In {share} % of the large crops the student sees a mask token in place of some patches and "
                       "must predict the teacher's assignment there. Kind of mask in this run: "
                       f"{NAMES[run.data.mask.kind]}."),
        page.picture("masks.png", "masks over images", "Masks of every kind with the same numbers of hidden patches "
                     "(above the columns), which every draw meets exactly."),
        page.picture("visibility.png", "visibility of patches", "An inverse block leaves the centre visible more "
                     "often than the border; CyclicMask shifts it around and shows every patch equally often."),
    )  # fmt: skip


def _honesty(run: Run, comparison: Comparison) -> str:
    sentences = [
        findings.against_untrained(comparison),
        findings.against_pixels(comparison),
        findings.about_slices(comparison, run.trained_widths),
        findings.about_length(run.description, run.batch),
        "It can show that the parts work together: losses fall, assignments stay diverse, features change in a useful "
        "or useless direction. It can't show how good the method is, nor rank settings: for that, runs must be longer, "
        "on more images, and repeated with other seeds.",
    ]
    return page.section("What this run can and can't show", page.bullets(sentences))


def _details(run: Run, seconds: float) -> str:
    facts = {
        "steps": f"{run.description['step']:,}",
        "images per step": str(run.batch),
        "training time": _duration(run.training_seconds),
        "images per second": f"{run.description['images_seen'] / max(run.training_seconds, 1e-9):.0f}",
        "waiting for data": f"{100 * run.data_wait:.0f} %",
        "this report": _duration(seconds),
        "parameters": f"{sum(p.numel() for p in run.trained.parameters()) / 1e6:.2f} M",
        "versions": f"franca {run.description['franca']}, torch {run.description['torch']}",
    }
    if run.skipped_files:
        facts["unreadable files"] = str(run.skipped_files)
    settings = (run.folder / "config.yaml").read_text(encoding="utf-8")
    return page.section(
        "The run",
        page.facts(facts),
        page.paragraph(f"Teacher: {run.folder / 'teacher.pth'}, sha256 of its tensors {run.description['hash'][:16]}…"),
        page.folded("Configuration", settings),
    )


def portraits(task: Task, size: int) -> Tensor:
    """The query images that figures show, uint8 (B, C, size, size); call it when the task's images have been read."""
    readable = [number for number in range(len(task.queries.source)) if number not in task.queries.skipped]
    numbers = [number for number in task.portrayed if number in readable] or readable[:1]
    return next(iter(EvalImages(Part(task.queries.source, numbers), CentralSquare(size)).batches(len(numbers)))).pixels


@torch.no_grad()
def patch_grid(model: nn.Module, inputs: Tensor) -> Tensor:
    """Patch features after the last norm, (B, C, H, W) -> (B, h, w, D)."""
    patch: int = model.patch_size  # type: ignore[assignment]
    with in_eval_mode(model):
        patches = model.forward_features(inputs)["x_norm_patchtokens"]  # type: ignore[operator]
    return patches.unflatten(1, (inputs.shape[-2] // patch, inputs.shape[-1] // patch))


@torch.no_grad()
def attention_grid(model: nn.Module, inputs: Tensor) -> Tensor:
    """Attention of the class token to the patches, (B, C, H, W) -> (B, heads, h, w)."""
    with in_eval_mode(model):
        return class_token_attention(model, inputs)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
