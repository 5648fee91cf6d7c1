"""What `benchmark_step.py` measures of a step, and its pages for people."""

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from franca.config import ConfigError
from franca.data.errors import DataError
from franca.devices import choose_device, choose_precision
from franca.peaks import stated_flops
from franca.train.build import flatten
from franca.train.config import TrainConfig, load_config
from measuring.comparing import alone, compared
from measuring.facts import aligned, facts, peak_gb, reset_peak
from measuring.parts import PARTS
from measuring.plan import Plan
from measuring.progress import numbered, say
from measuring.stepping import Stepping
from measuring.timing import Took, spread, timed
from measuring.waits import compiled_graphs, count_waits, profiled

FIRST_STEPS = 20  # that may compile something before the warm-up begins
Found = dict[str, Any]


def first_steps(stepping: Stepping) -> Found:
    """Steps up to the first in which nothing is compiled: their number, seconds, and graphs made."""
    seconds: list[float] = []
    while len(seconds) < FIRST_STEPS:
        graphs = compiled_graphs()
        say(f"first steps, {len(seconds) + 1}: until nothing is compiled")
        seconds.append(timed(stepping.step, stepping.device).clock)
        if compiled_graphs() == graphs:
            break
    return {"first_seconds": seconds, "graphs": compiled_graphs()}


def measured(stepping: Stepping, plan: Plan, more: int) -> Found:
    """The step as it is. more: steps that will be taken after the first ones, in all."""
    found = first_steps(stepping)
    seconds = found["first_seconds"][-1]
    say(f"the last took {seconds:.3g} s; {more} more would take {more * seconds / 60:.1f} minutes")
    for _ in numbered("warm-up, step", plan.warmup):
        stepping.step()
    reset_peak(stepping.device)
    graphs = compiled_graphs()
    blocks = [stepping.block(plan.steps) for _ in numbered("the step, block", plan.blocks)]
    found |= {"recompilations": compiled_graphs() - graphs, "peak_gb": peak_gb(stepping.device)}
    found |= of_blocks(stepping, blocks, plan.steps)
    return found | waits_of(stepping)


def of_blocks(stepping: Stepping, blocks: list[Took], steps: int) -> Found:
    """Milliseconds, images per second and TFLOP/s of every block; utilisation by the median."""
    seconds = [block.clock / steps for block in blocks]
    work, stated = stepping.work, stated_flops(stepping.device, stepping.precision)
    median = statistics.median(seconds)
    return {
        "step_ms": [1e3 * each for each in seconds],
        "processor_ms": [1e3 * block.processor / steps for block in blocks],
        "images_per_second": [stepping.images / each for each in seconds],
        "executed_tflops": [work.executed / each / 1e12 for each in seconds],
        "tflop_per_image": work.model / stepping.images / 1e12,
        "utilisation": work.model / median / stated if stated else None,
    }


def waits_of(stepping: Stepping) -> Found:
    """Of one step: operations that wait, and on an accelerator calls of its runtime that do."""
    say("a step whose waits are counted")
    batches = stepping.draw()
    found: Found = {"waits": dict(count_waits(lambda: stepping.take(batches), stepping.device))}
    if stepping.device.type != "cpu":
        _, activity = profiled(stepping.step, stepping.device)
        found["synchronising_calls"] = dict(activity.calls)
    return found


def profile_of(stepping: Stepping, steps: int, trace: Path | None) -> Found:
    """Milliseconds of every part, step by step; on an accelerator its idle time; a trace of one step where asked."""
    taken = [stepping.parts() for _ in numbered("time by part, step", steps)]
    found: Found = {"parts_ms": {part: [1e3 * each[part] for each in taken] for part in PARTS}}
    if stepping.device.type != "cpu" or trace:
        seen, activity = profiled(stepping.parts, stepping.device)
        if stepping.device.type != "cpu":
            found |= {"idle_ms": 1e3 * activity.idle, "span_ms": 1e3 * activity.span, "kernels": activity.kernels}
        if trace:
            seen.export_chrome_trace(str(trace))
    return found


def step_page(found: Found) -> str:
    """The measured step for people."""
    compiled = f", {found['graphs']} graphs compiled" if found["graphs"] else ""
    waits = {**found["waits"], **found.get("synchronising_calls", {})}
    share = found["utilisation"]
    rows = [
        ("first steps", f"{sum(found['first_seconds']):.2f} s ({len(found['first_seconds'])}{compiled})"),
        ("a step", f"{spread(found['step_ms'])} ms"),
        ("  of the processor", f"{spread(found['processor_ms'])} ms"),
        ("images", f"{spread(found['images_per_second'])} /s"),
        ("executed", f"{spread(found['executed_tflops'])} TFLOP/s"),
        ("utilisation", "no peak is stated for this device" if share is None else f"{100 * share:.1f} %"),
        ("peak memory", f"{found['peak_gb']:.2f} GB"),
        ("waits for the device", str(sum(waits.values()))),
        *((f"  {name}", str(count)) for name, count in waits.items()),
        ("recompilations", str(found["recompilations"])),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def profile_page(found: Found, clock: str) -> str:
    """Where the time goes, for people."""
    medians = {part: statistics.median(values) for part, values in found["parts_ms"].items()}
    total = sum(medians.values())
    rows = [["part", f"{clock}ms", "share"]]
    rows += [[part, f"{value:.2f}", f"{100 * value / total:.1f} %"] for part, value in medians.items() if value]
    rows += [["all", f"{total:.2f}", ""]]
    page = aligned(rows)
    if "kernels" in found:
        share = 100 * found["idle_ms"] / max(found["span_ms"], 1e-9)
        page += f"\nthe device idle for {found['idle_ms']:.2f} ms of them ({share:.1f} %); {found['kernels']:,} kernels"
    return page


def head(config: TrainConfig, where: dict[str, str], device: torch.device) -> str:
    """What is measured, and where."""
    crops, parallel = config.data.crops, config.parallel
    views = f"2 x {crops.global_size}" + (f" + {crops.local_count} x {crops.local_size}" if crops.local_count else "")
    step = f"{config.data.batch_size} images" + (f" x {config.accumulate}" if config.accumulate > 1 else "")
    compiled = "compiled" if parallel.compiles(device) else "not compiled"
    how = f"{compiled}, recomputing {parallel.activation_checkpointing}"
    return f"{config.model.arch}, {step} a step, {views} pixels, {how}\n{place(where)}"


def place(where: dict[str, str]) -> str:
    """Where it is measured."""
    return f"{where['device']}, {where['precision']}, torch {where['torch']}, commit {where['commit']}"


def report(config: TrainConfig, options: argparse.Namespace) -> Found:
    """Measure what is asked for, and print each result as it comes."""
    if options.objective_only:
        device = choose_device(config.device)
        precision = choose_precision(config.precision, device)
        found: Found = {"facts": facts(device, precision), "config": flatten(config)}
        print(place(found["facts"]), flush=True)
        rounds = Plan.of(options, device).blocks
        found["objective"], page = alone(config, options.objective_only, device, precision, rounds)
        print(f"\n{page}")
        return found
    say("the networks are built")
    stepping = Stepping(config, options.files)
    plan = Plan.of(options, stepping.device)
    more = plan.after_the_first(options, stepping.device)
    found = {"facts": facts(stepping.device, stepping.precision), "config": flatten(config)}
    print(f"{head(config, found['facts'], stepping.device)}\n", flush=True)
    say(f"about {more + 1} steps of {stepping.images} images will be taken: {plan}, and what else is asked for")
    found["step"] = measured(stepping, plan, more)
    print(step_page(found["step"]), flush=True)
    if options.profile or options.trace:
        found["profile"] = profile_of(stepping, plan.steps, options.trace)
        clock = "processor " if stepping.device.type == "cpu" else ""
        print(f"\n{profile_page(found['profile'], clock)}", flush=True)
    if options.against:
        found["against"], page = compared(stepping, options.against, plan.steps, plan.blocks)
        print(f"\n{page}", flush=True)
    return found


def run(options: argparse.Namespace) -> int:
    """Measure, print the pages, write the file; returns the exit status."""
    try:
        config = load_config(options.config, options.overrides)
        config = replace(config, world_size=1, device=options.device or config.device)
        found = report(config, options)
        if options.output:
            options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except (ConfigError, DataError, OSError, torch.OutOfMemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
