"""Neighbour search of an evaluation at full size: k-NN, in-context memory exact, in-context memory quantised.

    python scripts/benchmark_neighbours.py [--scale 0.1] [--folder /somewhere/with/space]

Three cases: 50,000 queries among 1.28 million rows of width 1024 (k-NN on ImageNet-1K), 1 million patches exactly, 10
million patches quantised with the recall against the exact search. Rows are random, in clusters, fp16, in a
memory-mapped temporary file. Each case runs in a process of its own; its peak memory is all that the process had in
memory, the pages of the mapped file included. --scale makes all row and query counts smaller at once.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from franca.data.random_streams import generator
from franca.devices import choose_device
from franca.eval.neighbours import ENGINES, nearest
from franca.eval.quantised_index import QuantisedIndex, recall

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
    """Seconds, peak memory in GiB, and what the index found in percent."""

    build: float
    search: float
    peak: float
    recall: float | None


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


def measure(case: Case, folder: str, device: str, engine: str, probes: int) -> Measured:
    """Run a case in this process."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        memory = clustered(case.rows, case.width, "rows", Path(place) / "rows")
        queries = clustered(case.queries, case.width, "queries")
        started = time.perf_counter()
        index = QuantisedIndex(memory, cosine=True, track=track) if case.quantised else None
        built = time.perf_counter()
        if index:
            found = index.nearest(queries, case.k, probes)[1]
        else:
            found = nearest(queries, memory, case.k, choose_device(device), cosine=True, engine=engine)[1]
        ended = time.perf_counter()
        peak = peak_memory()
        share = None
        if index:
            exact = nearest(queries, memory, case.k, choose_device(device), cosine=True, engine=engine)[1]
            share = recall(found, exact)
        return Measured(built - started, ended - built, peak, share)


def peak_memory() -> float:
    """GiB that this process had in memory at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def line(case: Case, measured: Measured) -> str:
    rate = 2e-12 * case.queries * case.rows * case.width / measured.search
    return (
        f"{case.name:<22} {case.queries:>9,} {case.rows:>11,} {case.width:>5} {case.k:>4} {measured.build:>8.1f} "
        f"{measured.search:>9.1f} {case.queries / measured.search:>10,.0f} "
        f"{'' if case.quantised else f'{rate:.2f}':>8} {measured.peak:>9.2f} "
        f"{'exact' if measured.recall is None else f'{measured.recall:.1f} %':>8}"
    )


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
    add("--probes", type=int, default=32, help="lists that the quantised search looks into (%(default)s)")
    add("--scale", type=float, default=1.0, help="factor of all counts (%(default)s)")
    add("--only", action="append", default=[], metavar="CASE", help="'k-NN', 'in-context, exact' or '…, quantised'")
    add("--folder", default=tempfile.gettempdir(), help="of the temporary file, 2 bytes a number (%(default)s)")
    add("--device", default="auto", help="of the exact search (%(default)s)")
    add("--engine", default="auto", choices=ENGINES, help="of the exact search (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run all cases and print the table."""
    options = parse_arguments(arguments)
    lines = [
        f"{'case':<22} {'queries':>9} {'rows':>11} {'width':>5} {'k':>4} {'build s':>8} {'search s':>9} "
        f"{'queries/s':>10} {'TFLOP/s':>8} {'peak GiB':>9} {'recall':>8}"
    ]
    for case in cases(options):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            settings = options.folder, options.device, options.engine, options.probes
            lines.append(line(case, pool.apply(measure, (case, *settings))))
        print(lines[-1], file=sys.stderr)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
