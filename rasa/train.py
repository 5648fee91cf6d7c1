"""Command line: ``python -m rasa.train --config FILE [key=value …]``."""

import argparse
import logging
import signal
import sys
from pathlib import Path

from franca.config import ConfigError, read_config
from franca.data.errors import DataError
from franca.hub import CheckpointError
from rasa.config import RasaConfig
from rasa.errors import RasaError
from rasa.run import Result, run

PROG: str = globals().get("PROG", "python -m rasa.train")  # `franca rasa` gives its own name
DESCRIPTION = "Remove from the patch features of any ViT what predicts where a patch lies (RASA)."
EPILOG = f"""\
examples:
  {PROG} --config configs/rasa/images.yaml data.path=/data/photos
  {PROG} --config configs/rasa/images.yaml data.path=/data/photos backbone.name=runs/mine/teacher.pth
  {PROG} --config configs/rasa/images.yaml data.path=/data/photos \\
      backbone.kind=timm backbone.name=vit_base_patch14_dinov2
  {PROG} --config configs/rasa/voc.yaml data.path=/data/VOCdevkit/VOC2012/JPEGImages

The same command goes on behind the last round of a run that was stopped. It leaves rasa.pth (the head, as published
ones), rasa.json (errors of every round), report/index.html and, for a Franca backbone, folded.pth, a model that
franca.load_model(checkpoint=…) loads and whose patch features hold no position.
"""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file that differs from the defaults; see configs/rasa/")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="overrides, such as rounds=4 data.size=224"
    )
    return parser.parse_intermixed_args(arguments)


def report(result: Result) -> list[Path]:
    """The page of pictures and numbers, where evidence was asked for and what draws it is installed."""
    if result.evidence is None:
        return []
    try:
        from rasa.report import build_report
    except ModuleNotFoundError as error:
        print(f"no report: {error}. It needs: pip install 'franca[quickstart]'", file=sys.stderr)
        return []
    return [build_report(result, result.task.folder / "report")]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        result = run(read_config(RasaConfig, options.config, options.overrides))
        page = report(result)
    except KeyboardInterrupt:
        print("stopped; the same command goes on behind the last round", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ConfigError, RasaError, DataError, CheckpointError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for file in [*result.files, *page]:
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
