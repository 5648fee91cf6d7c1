"""Everything about speed that only a device can tell, measured by one command and written as one page.

    python scripts/measure_device.py FOLDER [--device auto] [--dry-run] [--only PART …] [--minutes 60] [--tiny]

Each part is a process of its own that takes at most --limit seconds and leaves FOLDER/PART.txt (what it printed) and,
where it has numbers, FOLDER/PART.json. Parts that are finished there are not measured again, so the command continues
where it was stopped; --minutes stops it in time. FOLDER/results.md holds the tables of all that is there.
Nothing is fetched. The image pipeline is measured on --photographs, or on pictures of noise, whose decoding is slower.
"""

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
import torch.nn.functional as F
from PIL import Image

from franca.data.random_streams import generator
from franca.reproduce.machine import commit
from measuring.facts import ROOT, markdown
from measuring.progress import without_progress
from measuring.stored import EAGER, PROJECT
from measuring.timing import spread

STEP, ATTENTION = "scripts/benchmark_step.py", "scripts/benchmark_attention.py"
RUNS = {"b": "configs/pretrain/vitb14_in21k.yaml", "l": "configs/pretrain/vitl14_laion600m.yaml"}
TINY_NETWORK = [
    "model.arch=vit_tiny",
    "model.depth=1",
    "model.embed_dim=32",
    "model.num_heads=2",
    "heads.hidden_dim=16",
    "heads.dino.prototypes=32",
    "heads.ibot.prototypes=32",
    "data.batch_size=2",
    "data.crops.global_size=56",
    "data.crops.local_size=28",
    "data.crops.local_count=2",
]
TINY_STEPS = ["--steps", "1", "--blocks", "2", "--warmup", "0"]
PICTURES = 32


@dataclass(frozen=True)
class Part:
    """One process. numbers: it writes JSON to --output; tiny: arguments that make it short."""

    name: str
    about: str
    command: list[str]
    tiny: list[str]
    numbers: bool = True

    def line(self, options: argparse.Namespace) -> list[str]:
        """As it is started."""
        given = [*self.command, *(self.tiny if options.tiny else [])]
        output = ["--output", str(options.folder / f"{self.name}.json.part")] if self.numbers else []
        return [sys.executable, *given, *output]


def parts(options: argparse.Namespace) -> list[Part]:
    """In the order in which they are worth most."""
    device = ["--device", options.device]
    found = [
        Part(name, about, [STEP, "--config", RUNS[run], *device, *how], [*TINY_NETWORK, *TINY_STEPS])
        for name, about, run, how in (
            ("objective", "6,144 masked rows alone", "b", ["--objective-only", "6144"]),
            ("step_b", "ViT-B/14", "b", ["--profile"]),
            ("step_b_plain", "ViT-B/14, not compiled", "b", ["--profile", "parallel.compile=false"]),
            ("against_b", "ViT-B/14 with the eager objective", "b", ["--against", "eager"]),
            ("step_l", "ViT-L/14", "l", ["--profile"]),
            ("step_l_plain", "ViT-L/14, not compiled", "l", ["--profile", "parallel.compile=false"]),
            ("against_l", "ViT-L/14 with the eager objective", "l", ["--against", "eager"]),
            ("heads_b", "ViT-B/14 with heads level by level", "b", ["--against", "heads-by-level"]),
        )
    ]
    for run in RUNS:
        command = [ATTENTION, "--config", RUNS[run], *device]
        short = [*TINY_NETWORK, "--blocks", "1", "--calls", "1"]
        found.append(Part(f"attention_{run}", f"attention as in ViT-{run.upper()}/14", command, short))
    return [*found, *_others(device, options)]


def _others(device: list[str], options: argparse.Namespace) -> Iterator[Part]:
    photographs = str(options.photographs or options.folder / "photographs")
    data = ["scripts/benchmark_data.py", photographs, "--sizes", "500x375", *device]
    yield Part("data", "the image pipeline", data, ["--rounds", "1", "--batch", "2"], numbers=False)
    search = ["scripts/benchmark_neighbours.py", "--folder", str(options.folder), *device]
    search += ["--only", "k-NN", "--only", "in-context, exact"]
    yield Part("neighbours", "neighbour search", search, ["--scale", "0.0005"], numbers=False)
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *("tests/objective", "tests/models", "tests/data")]
    yield Part("tests", "tests of what computes on a device", tests, ["--collect-only"], numbers=False)


def finished(part: Part, folder: Path) -> bool:
    """Whether its result lies in the folder."""
    return (folder / f"{part.name}.txt").exists()


def measure(part: Part, options: argparse.Namespace, seconds: float) -> str:
    """Run a part; returns what went wrong, "" for nothing. Files bear their names once they are whole."""
    folder: Path = options.folder
    log = folder / f"{part.name}.txt.part"
    with log.open("w", encoding="utf-8") as file:
        status = run(part.line(options), file, seconds)
    if status is None:
        return f"not finished within {seconds:.3g} seconds (what it said is in {log})"
    if status:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"exit status {status}: {lines[-1] if lines else 'it said nothing'} (all of it in {log})"
    if part.numbers:
        (folder / f"{part.name}.json.part").replace(folder / f"{part.name}.json")
    log.replace(folder / f"{part.name}.txt")
    return ""


def run(command: list[str], output: IO[str], seconds: float) -> int | None:
    """Its exit status; None where it took longer. Nothing that it started is left on the device."""
    with subprocess.Popen(
        command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def make_photographs(folder: Path) -> None:
    """Pictures of 640 x 480: noise without the finest grain, which JPEG keeps about as it keeps a photograph."""
    folder.mkdir(exist_ok=True)
    for number in range(PICTURES):
        coarse = torch.rand(1, 3, 60, 80, generator=generator("photographs", number))
        pixels = F.interpolate(coarse, (480, 640), mode="bicubic")[0].clamp(0, 1).mul(255).byte()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{number:03}.jpg", quality=75)


def makes_photographs(wanted: list[Part], options: argparse.Namespace) -> bool:
    """Whether a part needs photographs and none are given."""
    return options.photographs is None and any(part.name == "data" for part in wanted)


def listing(wanted: list[Part], options: argparse.Namespace) -> str:
    """The parts, what they run, and what ends them."""
    width = max(len(part.name) for part in wanted)
    lines = []
    for part in wanted:
        lines.append(f"{part.name:<{width}}  {part.about}{': finished' if finished(part, options.folder) else ''}")
        lines.append(f"{'':<{width}}  python {shlex.join(part.command)}")
    lines += [
        "",
        f"A part that takes longer than {options.limit:g} seconds is stopped (--limit), and all that it started;",
    ]
    lines.append(f"after {options.minutes:g} minutes (--minutes) nothing more begins and what runs is stopped.")
    if makes_photographs(wanted, options):
        lines.append(
            f"{options.folder / 'photographs'}: made by this command before the first part, {PICTURES} pictures"
        )
        lines.append("of noise; --photographs FOLDER takes your own instead.")
    return "\n".join(lines)


def results(folder: Path, wanted: list[Part]) -> str:
    """The page: tables of the numbers, then what each part printed."""
    there = [part for part in wanted if finished(part, folder)]
    numbers = {
        part.name: json.loads((folder / f"{part.name}.json").read_text(encoding="utf-8"))
        for part in there
        if part.numbers
    }
    lines = [f"# Measured at commit {commit()}", ""]
    for name, found in list(numbers.items())[:1]:
        where = found["facts"]
        lines += [f"{where['device']}, {where['precision']}, torch {where['torch']} (as {name} says).", ""]
    about = {part.name: part.about for part in there}
    for table in (step_table(numbers, about), against_table(numbers, about), attention_table(numbers, about)):
        lines += [table, ""] if table else []
    missing = [part.name for part in wanted if part not in there]
    lines += [f"Not measured yet: {', '.join(missing)}.", ""] if missing else []
    for part in there:
        log = (folder / f"{part.name}.txt").read_text(encoding="utf-8", errors="replace")
        text = without_progress(log).strip()
        lines += [f"## {part.name}: {part.about}", "", "```", text, "```", ""]
    return "\n".join(lines)


def step_table(numbers: dict[str, Any], about: dict[str, str]) -> str:
    """Whole steps."""
    rows = []
    for name, found in numbers.items():
        if "step" in found and "against" not in found:
            step = found["step"]
            share = step["utilisation"]
            waits = sum({**step["waits"], **step.get("synchronising_calls", {})}.values())
            rows.append(
                [
                    about[name], spread(step["step_ms"]), spread(step["images_per_second"]),
                    spread(step["executed_tflops"]), "" if share is None else f"{100 * share:.1f} %",
                    f"{step['peak_gb']:.1f}", str(waits), str(step["recompilations"]),
                    f"{sum(step['first_seconds']):.0f}",
                ]
            )  # fmt: skip
    head = ["step", "ms", "images/s", "TFLOP/s", "utilisation", "peak GB", "waits", "recompilations", "first steps, s"]
    return markdown(head, rows) if rows else ""


def against_table(numbers: dict[str, Any], about: dict[str, str]) -> str:
    """Ratios of one run: less than 1 is quicker, or smaller, than the other way."""
    rows = []
    for name, found in numbers.items():
        against = found.get("against", {})
        objective = against.get("objective") or found.get("objective")
        step, memory, error = "", "", ""
        if against:
            step = spread(against["step"]["ratio"], 2)
        if objective:
            mine, eager = (objective["alone_peak_gb"][way] for way in (PROJECT, EAGER))
            memory = f"{mine / eager:.2f} ({mine:.2f} of {eager:.2f} GB)" if eager > 0 else ""
            error = f"{objective['gradient_error'][PROJECT]:.1e}"
        if against or objective:
            alone = spread(objective["ratio"], 2) if objective else ""
            rows.append([about[name], step, alone, memory, error])
    head = ["ratio to the other way", "a step", "objective alone", "its peak memory", "error of its gradient"]
    return markdown(head, rows) if rows else ""


def attention_table(numbers: dict[str, Any], about: dict[str, str]) -> str:
    """Milliseconds, and the ratio to what the networks do."""
    rows = []
    for name, found in numbers.items():
        for way, times in found.get("ms", {}).items():
            rows.append([about[name], way, f"{statistics.median(times):.3f}", spread(found["ratio"][way], 2)])
    return markdown(["attention", "way", "ms", "ratio"], rows) if rows else ""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Command line of this script."""
    about, _, text = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the results; made where it is not there")
    parser.add_argument("--device", default="auto", help="(default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="these parts (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="list the parts and what they run, then stop")
    parser.add_argument("--limit", type=float, default=540, metavar="SECONDS", help="of a part (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60, help="of all parts together (default: %(default)s)")
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="for the image pipeline")
    parser.add_argument("--tiny", action="store_true", help="everything very small: tries the command, on a CPU too")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing and print the tables; 1 where a part failed."""
    options = parse_arguments(arguments)
    options.folder = options.folder.resolve()
    wanted = parts(options)
    unknown = set(options.only) - {part.name for part in wanted}
    if unknown:
        known = ", ".join(part.name for part in wanted)
        print(f"error: --only {' '.join(sorted(unknown))}: no such part; there are {known}", file=sys.stderr)
        return 2
    wanted = [part for part in wanted if not options.only or part.name in options.only]
    if options.dry_run:
        print(listing(wanted, options))
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    if makes_photographs(wanted, options):
        make_photographs(options.folder / "photographs")
    ends, failed = time.monotonic() + 60 * options.minutes, False
    for part in wanted:
        left = ends - time.monotonic()
        if finished(part, options.folder) or left <= 0:
            continue
        began = time.monotonic()
        trouble = measure(part, options, min(options.limit, left))
        failed = failed or bool(trouble)
        print(f"{part.name}: {trouble or f'{time.monotonic() - began:.0f} s'}", file=sys.stderr, flush=True)
    page = results(options.folder, wanted)
    (options.folder / "results.md").write_text(page, encoding="utf-8")
    print(page)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
