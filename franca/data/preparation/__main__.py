"""Command line: ``python -m franca.data.preparation STEP …``.

Only what arguments need stands here, so that help and errors don't wait for torch; the steps are in
`franca.data.preparation.steps`.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from franca.data.errors import DataError
from franca.data.preparation.columns import SPELLINGS
from franca.data.preparation.img2dataset import DISTRIBUTORS

PROG: str = globals().get("PROG", "python -m franca.data.preparation")  # `franca prepare` gives its own name
DESCRIPTION = "Prepare a large set of images from the web. Every step goes on where it was stopped."
EPILOG = """\
the steps in order:
  select         rows of LAION's metadata that are worth downloading, as a list for img2dataset
  embed          embeddings of the downloaded images, and of the images of evaluation sets
  deduplicate    near-duplicates among embeddings
  decontaminate  images that evaluation sets hold too
  apply          the images that stay, as a set of their own

Each writes into a folder of its own: report.txt, report.json and its results. STEP --help explains a step.
"""
RAW = argparse.RawDescriptionHelpFormatter


def limit(text: str) -> float | None:
    """A number, or None for "none"."""
    return None if text == "none" else float(text)


def role_and_name(text: str) -> tuple[str, str]:
    """ROLE=NAME of a column."""
    role, equals, name = text.partition("=")
    if role not in SPELLINGS or not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROLE=NAME with a role among {', '.join(SPELLINGS)}")
    return role, name


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog=PROG, description=DESCRIPTION, epilog=EPILOG, formatter_class=RAW)
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    _add_select(_step(steps, "select"))
    _add_embed(_step(steps, "embed"))
    _add_deduplicate(_step(steps, "deduplicate"))
    _add_decontaminate(_step(steps, "decontaminate"))
    _add_apply(_step(steps, "apply"))
    return parser.parse_args(arguments)


def _step(steps: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str) -> argparse.ArgumentParser:
    summary = next(line.split(None, 1)[1] for line in EPILOG.splitlines() if line.split(None, 1)[:1] == [name])
    parser = steps.add_parser(name, description=f"{summary[0].upper()}{summary[1:]}.", formatter_class=RAW)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder of this step, new or its own")
    parser.add_argument("--restart", action="store_true", help="throw away what is there instead of going on")
    return parser


def _add_select(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("metadata", nargs="+", metavar="PARQUET", help="metadata files, or folders of *.parquet")
    add("--min-side", type=float, default=200, metavar="PIXELS", help="least short side (200; 0: any)")
    add("--max-aspect", type=float, default=3.0, metavar="RATIO", help="greatest long side / short side (3; 0: any)")
    add("--max-unsafe", type=limit, default=0.5, metavar="P", help="greatest punsafe (0.5; none: any)")
    add("--max-watermark", type=limit, default=0.8, metavar="P", help="greatest pwatermark (0.8; none: any)")
    add("--min-similarity", type=limit, metavar="S", help="least CLIP similarity of image and text (none)")
    add("--nsfw-tags", nargs="+", default=[], metavar="TAG", help="accepted NSFW tags of older files, as UNLIKELY")
    add(
        "--duplicates", nargs="+", choices=("hash", "url", "none"),
        help="of rows with equal values the first stays (url, and hash where every file has one)",
    )  # fmt: skip
    add(
        "--column", action="append", type=role_and_name, default=[], metavar="ROLE=NAME",
        help="a column under a name that isn't known, as unsafe=my_score",
    )  # fmt: skip
    add("--memory", default="4GB", help="of DuckDB (4GB); what doesn't fit goes to disk, below the output folder")
    add(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="of DuckDB (one per core, 8 at most); each takes 200 MB or so",
    )
    add("--image-size", type=int, default=384, metavar="PIXELS", help="short side of downloaded images (384)")
    add("--distributor", choices=DISTRIBUTORS, default=DISTRIBUTORS[0], help="engine of img2dataset")


def _add_embed(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", metavar="IMAGES", help="folder of *.tar shards or of images")
    add("--model", required=True, metavar="NAME", help="checkpoint file, or published weights such as franca_vitb14")
    add("--size", type=int, default=224, metavar="PIXELS", help="side of the square that images are resized to (224)")
    add("--batch-size", type=int, default=64, metavar="N", help="images at a time (64)")
    add("--workers", type=int, default=0, metavar="N", help="processes that decode images (0: this one)")
    add("--device", default="auto", help="auto, cpu, or a device of torch")


def _add_deduplicate(parser: argparse.ArgumentParser) -> None:
    _add_comparison(parser, 0.95)
    parser.add_argument(
        "--clusters", type=int, default=1, metavar="K",
        help="1 compares all pairs; for many millions of images, compare only those near the same of K centroids",
    )  # fmt: skip
    parser.add_argument("--probes", type=int, default=2, metavar="N", help="centroids near each image (2)")


def _add_decontaminate(parser: argparse.ArgumentParser) -> None:
    _add_comparison(parser, 0.9)
    parser.add_argument(
        "--evaluation", nargs="+", required=True, metavar="FOLDER", help="embeddings of evaluation images"
    )


def _add_apply(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGES", help="folder of *.tar shards or of images, as it was embedded")
    parser.add_argument("--lists", nargs="+", required=True, metavar="FILE", help="dropped.tsv of finished steps")


def _add_comparison(parser: argparse.ArgumentParser, threshold: float) -> None:
    add = parser.add_argument
    add("embeddings", nargs="+", metavar="FOLDER", help="embeddings: .npy or .npz shards, or folders of them")
    add("--threshold", type=float, default=threshold, metavar="S", help=f"least cosine similarity ({threshold})")
    add(
        "--engine",
        choices=("auto", "faiss", "torch"),
        default="auto",
        help="faiss on the CPU where it is installed, else torch",
    )
    add("--device", default="auto", help="auto, cpu, or a device of torch; faiss is used on the CPU only")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a step; returns the exit status."""
    given = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells which of its libraries it tries
    from franca.data.preparation.steps import STEPS  # brings torch

    try:
        report = STEPS[given.step](given)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the parts that are not finished", file=sys.stderr)
        return 128 + signal.SIGINT
    except ModuleNotFoundError as error:
        print(f"error: {error}. This step needs: pip install 'franca[prepare]'", file=sys.stderr)
        return 2
    except (DataError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print((Path(given.output).expanduser() / "report.txt").read_text(encoding="utf-8"), end="")
    if not report["kept"]:
        print("error: nothing is left", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
