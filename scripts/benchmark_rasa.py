"""RASA three ways in one process: closed form, gradient on cached features, gradient with the backbone in every epoch.

    python scripts/benchmark_rasa.py --config configs/rasa/images.yaml data.path=/path/to/images [key=value …]

The last way is how the original trains it. Prints seconds, the ratio to the first, and what each achieved, measured on
the same crops of images set apart. Seconds are those of a whole run; what is not spent in rounds is the pass.
"""

import argparse
import logging
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from franca.config import ConfigError, read_config
from franca.data.errors import DataError
from franca.hub import CheckpointError
from rasa.config import RasaConfig
from rasa.errors import RasaError
from rasa.evidence import gather, measure
from rasa.run import Result, run

WAYS = {
    "closed form": ("closed_form", "auto"),
    "gradient, features cached": ("gradient", "auto"),
    "gradient, backbone in every epoch": ("gradient", "off"),
}


def timed(config: RasaConfig, solver: str, where: str, folder: Path) -> tuple[Result, float]:
    """One whole run without evidence, in a folder of its own, and its seconds."""
    started = time.perf_counter()
    result = run(
        replace(
            config,
            output=str(folder),
            solver=solver,
            cache=replace(config.cache, where=where),
            evidence=replace(config.evidence, crops=0),
        )
    )
    return result, time.perf_counter() - started


def compare(config: RasaConfig, folder: Path) -> list[list[str]]:
    """A row for each way."""
    rows: list[list[str]] = []
    first_seconds, features = 0.0, None
    for number, (name, (solver, where)) in enumerate(WAYS.items()):
        result, seconds = timed(config, solver, where, folder / str(number))
        first_seconds = first_seconds or seconds
        if features is None:
            task, count = result.task, config.evidence.crops
            features = gather(task.engine, task.probe, count), gather(task.engine, task.test, count)
        evidence = measure(*features, result.fit.head, config.evidence.clusters, config.seed)
        rows.append(
            [
                name, f"{seconds:.1f}", f"{seconds / first_seconds:.1f}", str(len(result.fit.rounds)),
                f"{sum(one.seconds for one in result.fit.rounds):.1f}",
                f"{evidence.before.linear.r2:.3f}", f"{evidence.after.linear.r2:.3f}",
                f"{evidence.after.sigmoid.r2:.3f}", f"{100 * evidence.variance_removed:.2f} %",
            ]
        )  # fmt: skip
        print(f"{name}: {seconds:.1f} s", file=sys.stderr)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    usage = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(description=usage[0], epilog="\n".join(usage[2:]))
    parser.add_argument("--config", metavar="FILE", help="as for python -m rasa.train")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="benchmark_rasa"))
    try:
        rows = compare(read_config(RasaConfig, options.config, options.overrides), folder)
    except (ConfigError, RasaError, DataError, CheckpointError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    head = ["", "seconds", "ratio", "rounds", "s in rounds", "R² before", "R² after", "R² sigmoid", "variance removed"]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
