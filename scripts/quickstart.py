"""Pretrain a small model on sample photographs or on your own images, remove position from it, show what it learned.

    python scripts/quickstart.py [--data PATH] [--output report] [key=value …]

Minutes on two CPU cores. Stopped at any moment, the same command continues; finished, it writes the report
again. Options of the training (steps=100, optimizer.lr=1e-3, …) follow as key=value.
"""

import argparse
import hashlib
import json
import logging
import sys
import time
from pathlib import Path

from franca.config import ConfigError, read_config
from franca.data.errors import DataError
from franca.hub import describe
from franca.train.__main__ import main as train
from franca.train.config import TrainConfig
from rasa.config import RasaConfig
from rasa.errors import RasaError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RECIPE = CONFIGS / "recipes" / "quickstart.yaml"
RASA = CONFIGS / "rasa" / "quickstart.yaml"
LARGER = 2  # RASA sees crops of this many times the training size: more patches to tell apart


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Command line of this script."""
    usage = __doc__.splitlines()
    parser = argparse.ArgumentParser(description=usage[0], epilog="\n".join(usage[4:]))
    parser.add_argument("--data", metavar="PATH", help="a folder of images instead of the sample photographs")
    parser.add_argument("--output", metavar="FOLDER", default="report", help="where the report goes (default: report)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options of the training")
    options = parser.parse_intermixed_args(arguments)
    if Path(options.output).exists() and not Path(options.output).is_dir():
        parser.error(f"--output {options.output} is a file; name a folder for the report")
    return options


def run_folder(overrides: list[str]) -> Path:
    """The run's folder: ``output=…`` if given, else one that belongs to exactly these options."""
    for override in reversed(overrides):
        if override.startswith("output="):
            return Path(override.removeprefix("output="))
    name = f"quickstart-{hashlib.sha256(json.dumps(overrides).encode()).hexdigest()[:8]}" if overrides else "quickstart"
    return Path("runs") / name


def rasa_config(folder: Path) -> RasaConfig:
    """RASA on the teacher of a run and the run's own images."""
    trained = read_config(TrainConfig, folder / "config.yaml")
    teacher = folder / "teacher.pth"
    options = {
        "output": str(folder / "rasa" / describe(teacher)["hash"][:8]),  # a teacher trained further starts anew
        "backbone.name": str(teacher),
        "data.source": trained.data.source,
        "data.path": "all" if trained.data.source == "photographs" else trained.data.path,
        "data.channels": trained.data.channels,
        "data.size": LARGER * trained.data.crops.global_size,
    }
    return read_config(RasaConfig, RASA, [f"{key}={json.dumps(value)}" for key, value in options.items()])


def debias(folder: Path, out: Path) -> list[str]:
    """Run RASA on a finished run; returns the sections of the report that show it, or the one that says why not."""
    from franca.eval.report import page
    from rasa.report import sections
    from rasa.run import run

    try:
        return sections(run(rasa_config(folder)), out)
    except (ConfigError, DataError, RasaError, ValueError) as error:
        print(f"no RASA: {error}", file=sys.stderr)
        return [page.section("Position in the patch features", page.paragraph(f"RASA was not run: {error}"))]


def main(arguments: list[str] | None = None) -> int:
    """Train, then write the report; returns the exit status."""
    options = parse_arguments(arguments)
    started = time.perf_counter()
    try:  # before training: what the report needs must not be missing after it
        from franca.eval.report import build_report
    except ModuleNotFoundError as error:
        print(f"error: {error}. The report needs it: pip install 'franca[quickstart]'", file=sys.stderr)
        return 2
    overrides = list(options.overrides)
    if options.data is not None:
        path = json.dumps(str(Path(options.data).expanduser().resolve()), ensure_ascii=False)
        overrides = ["data.source=folder", f"data.path={path}", *overrides]
    folder = run_folder(overrides)
    status = train(["--config", str(RECIPE), f"output={folder}", *overrides])
    if status:
        return status
    logging.getLogger(__name__).info("writing the report")
    try:
        out = Path(options.output)
        out.mkdir(parents=True, exist_ok=True)
        index = build_report(folder, out, debias(folder, out))
    except (OSError, DataError, ValueError) as error:
        print(f"error: no report: {error}. The run is safe; the same command tries again", file=sys.stderr)
        return 2
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes in all. Open {index.resolve().as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
