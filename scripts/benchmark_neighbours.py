"""Neighbour search of an evaluation at full size: k-NN, in-context memory exact, in-context memory quantised.

    python scripts/benchmark_neighbours.py [--scale 0.1] [--folder /somewhere/with/space]

Three cases: 50,000 queries among 1.28 million rows of width 1024 (k-NN on ImageNet-1K), 1 million patches exactly, 10
million patches quantised, and exactly for their recall. Rows are random, in clusters, fp16, in a memory-mapped
temporary file. Each case runs in a process of its own; its peak memory is all that the process had in memory, the pages
of the mapped file included. Seconds are those of the clock, and those of the processor, all threads together, which
other work on the machine changes least. --scale makes all row and query counts smaller at once.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from rich.progress import track
from torch import Tensor

from franca.data.random_streams import generator
from franca.devices import choose_device
from franca.eval.candidates import ENGINES
from franca.eval.neighbours import nearest
from franca.eval.protocols.in_context_config import InContextConfig
from franca.eval.quantised_index import QuantisedIndex, recall
from measuring.facts import aligned, facts

T = TypeVar("T")

HEAD = ["case", "queries", "rows", "width", "k", "clock s", "processor s", "queries/s", "TFLOP/s", "peak GiB", "recall"]
CLUSTERS = 2000
SPREAD = 1.0  # of rows around their centre, whose coordinates have standard deviation 1
WRITTEN_AT_ONCE = 65_536


@dataclass(frozen=True)
class Case:
    """One search. ``quantised``: by the index, and exactly as well."""

    name: str
    queries: int
    rows: int
    width: int
    k: int
    quantised: bool = False


@dataclass(frozen=True)
class Measured:
    """One piece of work. Seconds; GiB that the process had in memory at most until then; percent that was found."""

    name: str
    clock: float
    processor: float
    peak: float
    recall: float | None = None
    searched: bool = True  # else built


def cases(options: argparse.Namespace) -> list[Case]:
    """Those asked for, at their scale."""

    def scaled(count: int) -> int:
        return max(1, int(count * options.scale))

    found = [
        Case("k-NN", scaled(options.queries), scaled(options.references), options.width, 200),
        Case("in-context, exact", scaled(options.patch_queries), scaled(options.patches), options.patch_width, 30),
        Case(
            "in-context, quantised",
            scaled(options.quantised_queries),
            scaled(options.quantised),
            options.quantised_width,
            30,
            quantised=True,
        ),
    ]
    return [case for case in found if not options.only or case.name in options.only]


def clustered(count: int, width: int, seed: str, file: Path | None = None) -> Tensor:
    """(count, width) fp16, in memory or in a file."""
    if file is None:
        rows = torch.empty(count, width, dtype=torch.float16)
    else:
        rows = torch.from_file(str(file), shared=True, size=count * width, dtype=torch.float16).view(count, width)
    centres = torch.randn(CLUSTERS, width, generator=generator("centres"))
    for start in track(range(0, count, WRITTEN_AT_ONCE), f"making {seed}", transient=True, disable=file is None):
        random = generator(seed, start)
        part = min(WRITTEN_AT_ONCE, count - start)
        chosen = centres[torch.randint(CLUSTERS, (part,), generator=random)]
        rows[start : start + part] = chosen + SPREAD * torch.randn(part, width, generator=random)
    return rows


def measure(case: Case, options: argparse.Namespace) -> list[Measured]:
    """Run a case in this process."""
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        memory = clustered(case.rows, case.width, "rows", Path(place) / "rows")
        queries = clustered(case.queries, case.width, "queries")
        return list(
            _quantised(case, memory, queries, options) if case.quantised else _exact(case, memory, queries, options)
        )


def _exact(case: Case, memory: Tensor, queries: Tensor, options: argparse.Namespace) -> Iterator[Measured]:
    device = choose_device(options.device)
    yield timed(case.name, lambda: nearest(queries, memory, case.k, device, cosine=True, engine=options.engine))[1]


def _quantised(case: Case, memory: Tensor, queries: Tensor, options: argparse.Namespace) -> Iterator[Measured]:
    """Built, searched once for every number of probes, and searched exactly."""
    index, built = timed("", lambda: QuantisedIndex(memory, cosine=True, track=track))
    name = f"{case.name}: building, {index.lists} lists, {index.code_bytes} bytes"
    yield replace(built, name=name, searched=False)
    searches = []
    for probes in options.probes:
        found, took = timed(f"{case.name}: {probes} lists", lambda: index.nearest(queries, case.k, probes)[1])  # noqa: B023
        searches.append((found, took))
    exact, whole = timed(
        f"{case.name}: all rows, exact",
        lambda: nearest(queries, memory, case.k, choose_device(options.device), cosine=True, engine=options.engine)[1],
    )
    for found, took in searches:
        yield replace(took, recall=recall(found, exact))
    yield whole


def timed(name: str, work: Callable[[], T]) -> tuple[T, Measured]:
    """The result of a piece of work, and what it took."""
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, Measured(name, time.perf_counter() - clock, time.process_time() - processor, peak_memory())


def peak_memory() -> float:
    """GiB that this process had in memory at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def row(case: Case, measured: Measured) -> list[str]:
    """A line of the table."""
    every, rate = measured.searched and measured.recall is None, measured.searched
    flops = 2 * case.queries * case.rows * case.width
    return [
        measured.name,
        f"{case.queries:,}" if rate else "",
        f"{case.rows:,}",
        str(case.width),
        str(case.k) if rate else "",
        f"{measured.clock:.1f}",
        f"{measured.processor:.1f}",
        f"{case.queries / measured.clock:,.0f}" if rate else "",
        f"{flops / measured.clock / 1e12:.3f}" if every else "",
        f"{measured.peak:.2f}",
        "" if not rate else "exact" if every else f"{measured.recall:.1f} %",
    ]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Command line of this script."""
    about, _, text = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=about, epilog=text, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--queries", type=int, default=50_000, help="of k-NN (%(default)s)")
    add("--references", type=int, default=1_280_000, help="rows of k-NN (%(default)s)")
    add("--width", type=int, default=1024, help="of k-NN (%(default)s)")
    add("--patches", type=int, default=1_000_000, help="rows of the exact memory (%(default)s)")
    add("--patch-queries", type=int, default=50_000, help="of the exact memory (%(default)s)")
    add("--patch-width", type=int, default=768, help="of the exact memory (%(default)s)")
    add("--quantised", type=int, default=10_000_000, help="rows of the quantised memory (%(default)s)")
    add("--quantised-queries", type=int, default=2000, help="of the quantised memory, and of its recall (%(default)s)")
    add("--quantised-width", type=int, default=768, help="of the quantised memory (%(default)s)")
    add(
        "--probes",
        type=int,
        nargs="+",
        default=[InContextConfig().probes],
        help="lists that are looked into (%(default)s)",
    )
    add("--scale", type=float, default=1.0, help="factor of all counts (%(default)s)")
    add("--only", action="append", default=[], metavar="CASE", help="'k-NN', 'in-context, exact' or '…, quantised'")
    add("--folder", default=tempfile.gettempdir(), help="of the temporary file, 2 bytes a number (%(default)s)")
    add("--device", default="auto", help="of the exact search (%(default)s)")
    add("--engine", default="auto", choices=ENGINES, help="of the exact search (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run all cases and print the table."""
    options = parse_arguments(arguments)
    rows = [HEAD]
    for case in cases(options):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows += [row(case, measured) for measured in pool.apply(measure, (case, options))]
        print(aligned(rows[-1:]), file=sys.stderr)
    where = facts(choose_device(options.device), None)
    print(f"{aligned(rows)}\n\n{where['device']}, torch {where['torch']}, commit {where['commit']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
