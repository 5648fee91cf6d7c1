"""The step against other ways to compute parts of it, in turns; the objective alone against the eager one."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from franca.models import MatryoshkaHead
from franca.models.level_rows import rows_at_once, rows_by_level
from franca.objective.eager import EagerObjective
from franca.train.config import TrainConfig
from franca.train.step import TrainingStep
from measuring.facts import aligned, reset_peak
from measuring.facts import peak_gb as peak_of_step
from measuring.progress import say
from measuring.replaced import replaced
from measuring.stepping import Stepping
from measuring.stored import (
    EAGER,
    OBJECTIVES,
    PROJECT,
    Stored,
    answers,
    errors,
    made_up,
    peak_gb,
    peak_gb_of_process,
    run,
    tensors,
)
from measuring.timing import Took, in_turns, ratios, spread, timed

Found = dict[str, Any]
ERRORS = ("loss", "gradient")
STEP_MEMORY, MEMORY, LESS_GRADIENTS = "peak memory of a step, GB", "its peak memory, GB", "  without its gradients"
ERROR = "error of its "


def compared(stepping: Stepping, other: str, steps: int, rounds: int) -> tuple[Found, str]:
    """Blocks of whole steps as they are and the ``other`` way, in turns, on the same networks: the numbers, and a page.

    other: a name of OTHERS. Against the eager objective the objectives are compared alone as well.
    """
    peaks: dict[str, list[float]] = {PROJECT: [], other: []}

    def block(way: str) -> Took:
        with OTHERS[way](stepping.training) if way != PROJECT else nullcontext():
            stepping.step()  # what the other way left in the caches is not its own
            reset_peak(stepping.device)
            took = stepping.block(steps)
        peaks[way].append(peak_of_step(stepping.device))
        return took

    for way in (other, PROJECT):
        say(f"warm-up of the step, {way}")
        block(way)
        peaks[way].clear()
    took = in_turns([lambda: block(PROJECT), lambda: block(other)], rounds, f"the step and the step with {other}")
    step = _pair(took, stepping.device, steps)
    rows = [["", PROJECT, other, "ratio"], _row("a step, ms", step, stepping.device)]
    if stepping.device.type != "cpu":  # there the count is of the whole process
        step["peak_gb"] = {way: max(values) for way, values in peaks.items()}
        rows.append(_memory_row(STEP_MEMORY, *step["peak_gb"].values()))
    found: Found = {"other": other, "step": step}
    if other == EAGER:
        found["objective"], lines = _alone(answers(stepping), stepping.config, stepping.precision, rounds)
        rows += lines
    return found, _page(rows, stepping.device)


@contextmanager
def _eager_objective(training: TrainingStep) -> Iterator[None]:
    own = training.objective
    training.objective = EagerObjective(training.pair, own.config, own.logsumexp_over_ranks)
    yield
    training.objective = own


@contextmanager
def _other_heads(form: Callable[..., Any], training: TrainingStep) -> Iterator[None]:
    """Slices' maps and MLPs of all heads in the given form of franca.models.level_rows."""

    def rows(head: MatryoshkaHead, features: Tensor) -> list[Tensor]:
        return [head._bottleneck(level) for level in form(features, head.matryoshka_projections, head.mlps)]

    with ExitStack() as stack:
        for encoder in (training.pair.student, training.pair.teacher):
            for head in (encoder.dino_head, encoder.ibot_head):
                stack.enter_context(replaced(head, "_rows", partial(rows, head)))
        yield


OTHERS: dict[str, Callable[[TrainingStep], AbstractContextManager[None]]] = {
    EAGER: _eager_objective,
    "heads-by-level": partial(_other_heads, rows_by_level),
    "heads-at-once": partial(_other_heads, rows_at_once),
}


def alone(
    config: TrainConfig, rows: int, device: torch.device, precision: torch.dtype | None, rounds: int
) -> tuple[Found, str]:
    """The objectives alone, on made-up answers of the configured heads to ``rows`` masked rows."""
    stored = made_up(config, rows, device, precision)
    found, lines = _alone(stored, config, precision, rounds)
    size = f"{stored.rows:,} masked rows x {stored.prototypes:,} prototypes, {stored.batch.n_images} images"
    return found, f"{config.model.arch}, {size}\n{_page([['', PROJECT, EAGER, 'ratio'], *lines], device)}"


def _alone(
    stored: Stored, config: TrainConfig, precision: torch.dtype | None, rounds: int
) -> tuple[Found, list[list[str]]]:
    device = stored.student.class_tokens.device
    say(f"errors of both objectives, {stored.rows:,} masked rows")
    wrong = errors(stored, config, precision)  # and the warm-up

    def once(way: str) -> Took:
        mine = stored.copies()
        return timed(lambda: run(way, mine, config, precision), device)

    found = _pair(in_turns([lambda: once(PROJECT), lambda: once(EAGER)], rounds, "the objectives alone"), device, 1)
    say("memory of both objectives")
    if device.type == "cpu":
        peaks = {way: peak_gb_of_process(way, config, stored.rows, precision) for way in OBJECTIVES}
    else:
        peaks = {way: peak_gb(way, stored, config, precision) for way in OBJECTIVES}
    given = sum(tensor.numel() * tensor.element_size() for tensor in tensors(stored.student)) / 1e9
    found |= {"rows": stored.rows, "prototypes": stored.prototypes, "alone_peak_gb": peaks, "gradients_gb": given}
    found |= {"loss_error": {way: error.loss for way, error in wrong.items()}}
    found |= {"gradient_error": {way: error.gradient for way, error in wrong.items()}}
    rows = [_row("objective alone, ms", found, device)]
    rows.append(_memory_row(MEMORY, peaks[PROJECT], peaks[EAGER]))
    rows.append(_memory_row(LESS_GRADIENTS, peaks[PROJECT] - given, peaks[EAGER] - given))
    rows += [[f"{ERROR}{what}", *(f"{e:.1e}" for e in found[f"{what}_error"].values())] for what in ERRORS]
    return found, rows


def _pair(took: list[list[Took]], device: torch.device, steps: int) -> Found:
    """Milliseconds of the project's way and the other, and the ratios of those seconds that count."""
    mine, other = took
    return {
        "clock_ms": [[1e3 * t.clock / steps for t in way] for way in took],
        "processor_ms": [[1e3 * t.processor / steps for t in way] for way in took],
        "ratio": ratios([t.on(device) for t in mine], [t.on(device) for t in other]),
    }


def _row(name: str, found: Found, device: torch.device) -> list[str]:
    times = found["processor_ms" if device.type == "cpu" else "clock_ms"]
    return [name, *map(spread, times), spread(found["ratio"], 2)]


def _memory_row(name: str, mine: float, other: float) -> list[str]:
    return [name, f"{mine:.3f}", f"{other:.3f}", f"{mine / other if other > 0 else math.nan:.2f}"]


def _page(rows: list[list[str]], device: torch.device) -> str:
    """The table, and what its rows mean: those that it has."""
    on_cpu = device.type == "cpu"
    held = "by how much a fresh process grows" if on_cpu else "what is held beside the answers of the heads"
    notes = {
        STEP_MEMORY: f"{STEP_MEMORY.partition(',')[0]}: all that tensors hold",
        MEMORY: f"memory of the objective alone: {held}",
        LESS_GRADIENTS: "its gradients: those of the answers, which any objective must give",
        ERROR: "errors: relative, against the eager objective in fp32 on the same answers of the heads",
    }
    lines = [aligned(rows), f"median (least-largest), in turns; ms {'of the processor' if on_cpu else 'by the clock'}"]
    return "\n".join(lines + [note for name, note in notes.items() if any(row[0].startswith(name) for row in rows)])
