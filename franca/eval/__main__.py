"""Command line: ``python -m franca.eval PROTOCOL --model MODEL --data DATA [key=value …]``."""

import argparse
import inspect
import logging
import re
import signal
import sys
from dataclasses import asdict, fields
from pathlib import Path

from franca.config import ConfigError, read_config
from franca.data.errors import DataError
from franca.distributed import place
from franca.eval.datasets import LAYOUTS
from franca.eval.errors import EvalError
from franca.eval.evaluate import Question, evaluate
from franca.eval.protocol import Protocol
from franca.eval.registry import PROTOCOLS
from franca.eval.result import table
from franca.eval.store import STORED_AS
from franca.hub import CheckpointError, DownloadError

EPILOG = """\
examples:
  python -m franca.eval knn --model franca_vitb14 --data imagenet:/data/imagenet
  python -m franca.eval knn --model runs/mine --data /data/photos --slice all
  python -m franca.eval in_context --model teacher.pth --rasa inside --data voc:/data/VOCdevkit/VOC2012
  python -m franca.eval linear --model timm:vit_base_patch14_dinov2 --data imagenet:/data/imagenet --preset dinov2
  python -m franca.eval compare results --output comparison

franca.eval PROTOCOL --help explains a protocol and its settings; docs/evaluation.md all of them.
"""
MODELS = """\
--model takes franca_vitb14 and the other entry points (franca_vitb14@IN21K_224 for other weights), a checkpoint file of
any layout that franca.hub reads, the folder of a training run, timm:NAME, transformers:NAME, torch_hub:REPO:NAME,
callable:MODULE:FUNCTION, untrained:MODEL (the same network with random weights), pixels and colour (no network).
"""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m franca.eval",
        description="Evaluate a frozen backbone: classification, dense tasks, pictures.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="protocol", metavar="PROTOCOL", required=True)
    for protocol in PROTOCOLS.values():
        _add_protocol(commands, protocol)
    compare = commands.add_parser("compare", help="a page that puts the results of several models side by side")
    compare.add_argument("results", nargs="+", metavar="RESULTS", help="results.json files, or folders that hold them")
    compare.add_argument("--output", default="comparison", metavar="FOLDER", help="of the page (%(default)s)")
    options, overrides = parser.parse_known_args(arguments)
    unknown = [override for override in overrides if override.startswith("-") or "=" not in override]
    if unknown or (overrides and options.protocol == "compare"):
        parser.error(f"unrecognised arguments: {' '.join(unknown or overrides)}; settings are given as key=value")
    options.overrides = overrides
    return options


def _add_protocol(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", protocol: Protocol) -> None:
    parser = commands.add_parser(
        protocol.name,
        help=protocol.summary,
        description=protocol.summary,
        epilog=_epilog(protocol),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"python -m franca.eval {protocol.name} --model MODEL --data [LAYOUT:]PATH [options] [key=value ...]",
    )
    add = parser.add_argument
    add("--model", required=True, metavar="MODEL", help="see below")
    add("--data", required=True, metavar="[LAYOUT:]PATH", help=f"layouts: {', '.join(_layouts(protocol))}")
    if protocol.trains:
        add("--train-data", metavar="[LAYOUT:]PATH", help="where the training images are, if not in --data")
        add("--train-split", metavar="SPLIT", help="of the training images; that of the layout")
    add("--test-split", metavar="SPLIT", help="of the images that are scored; that of the layout")
    add("--rasa", metavar="inside|FILE", help="RASA's patch features: of the head in the model's file, or of another")
    add("--num-heads", type=int, metavar="N", help="attention heads, for a checkpoint that doesn't tell")
    add("--img-size", type=int, metavar="PX", help="resample the model's positions for images of this side")
    add("--slice", action="append", default=[], metavar="d/2", help="of the features: d, d/2 … d/64 or all; repeatable")
    add("--preset", default="paper", metavar="NAME", help=f"settings: {', '.join({'paper': 0, **protocol.presets})}")
    add("--config", metavar="FILE", help="YAML file of settings, over the preset")
    add("--output", default="results", metavar="FOLDER", help="of results (%(default)s)")
    add("--cache", metavar="FOLDER", help="of stored features (below the output)")
    add("--store", default="fp16", choices=STORED_AS, help="type of stored features (%(default)s)")
    add("--device", default="auto", help="any torch device (%(default)s)")
    add("--precision", default="auto", choices=("auto", "bf16", "fp32"), help="of the backbone (%(default)s)")
    add("--batch-size", type=int, default=64, metavar="N", help="images at once (%(default)s); changes no score")
    add("--workers", type=int, default=0, metavar="N", help="processes that decode images (%(default)s)")


def _layouts(protocol: Protocol) -> list[str]:
    return [name for name, layout in LAYOUTS.items() if protocol.kind in ("images", layout.kind)]


def _epilog(protocol: Protocol) -> str:
    paper = asdict(read_config(protocol.config))
    parts = [
        inspect.cleandoc(sys.modules[protocol.config.__module__].__doc__ or ""),
        inspect.cleandoc(protocol.config.__doc__ or ""),
        "As key=value, with the paper's values:\n" + "".join(f"  {_setting(*pair)}\n" for pair in paper.items()),
        *(f"--preset {name}: {' '.join(_setting(*pair) for pair in changes.items())}"
          for name, changes in protocol.presets.items()),
        MODELS,
    ]  # fmt: skip
    return "\n\n".join(parts)


def _setting(name: str, value: object) -> str:
    """As it is written on the command line."""
    plain = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"{name}={plain}".replace(", ", ",").replace("'", "")


def parse_slices(texts: list[str]) -> tuple[int, ...]:
    """Divisors of the width: "d", "d/4", "1/4", or several with commas; () for "all". Raises EvalError otherwise."""
    if texts and "all" in ",".join(texts).split(","):
        return ()
    divisors: list[int] = []
    for text in ",".join(texts).replace(" ", "").split(",") if texts else ["d"]:
        found = re.fullmatch(r"d|(?:d|1)/(\d+)", text)
        if not found or (found[1] and int(found[1]) < 1):
            raise EvalError(f"--slice {text}: give d, d/2, d/4 … or all")
        divisors.append(int(found[1] or 1))
    return tuple(dict.fromkeys(divisors))


def ask(options: argparse.Namespace) -> None:
    """Evaluate; the first process prints the table."""
    given = vars(options)
    known = {field.name: given[field.name] for field in fields(Question) if field.name in given}
    own = place()
    speaks = own is None or own.rank == 0
    if not speaks:
        logging.getLogger().setLevel(logging.ERROR)
    answer = evaluate(Question(**known, slices=parse_slices(options.slice), stored_as=options.store))
    if speaks:
        if answer.records:
            print(table(answer.records))
        print(answer.folder)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells which of its builds it tries
    try:
        if options.protocol == "compare":
            from franca.eval.report.side_by_side import build_page

            print(build_page([Path(name) for name in options.results], Path(options.output)))
        else:
            ask(options)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the features that are stored", file=sys.stderr)
        return 128 + signal.SIGINT
    except (EvalError, ConfigError, DataError, CheckpointError, DownloadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
