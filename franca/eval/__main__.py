"""Command line: ``python -m franca.eval PROTOCOL --model MODEL --data DATA [key=value …]``.

Only what arguments need stands here, so that help and errors don't wait for torch; the rest is `franca.eval.command`.
"""

import argparse
import sys
from typing import Any

from franca.eval.registry import PROTOCOLS, Entry
from franca.openmp import sleep_while_waiting

PROG: str = globals().get("PROG", "python -m franca.eval")  # `franca eval` gives its own name
EPILOG = f"""\
examples:
  {PROG} knn --model franca_vitb14 --data imagenet:/data/imagenet
  {PROG} knn --model runs/mine --data /data/photos --slice all
  {PROG} in_context --model teacher.pth --rasa inside --data voc:/data/VOCdevkit/VOC2012
  {PROG} linear --model timm:vit_base_patch14_dinov2 --data imagenet:/data/imagenet --preset dinov2
  {PROG} compare results --output comparison

{PROG} PROTOCOL --help explains a protocol and its settings; docs/evaluation.md all of them.
"""


class Explain(argparse.Action):
    """--help of a protocol, whose explanation is brought from its own file only now: that takes torch, and seconds."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from franca.eval.command import explanation

        parser.epilog = explanation(self.const)
        parser.print_help()
        parser.exit()


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Evaluate a frozen backbone: classification, dense tasks, pictures.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="protocol", metavar="PROTOCOL", required=True)
    for entry in PROTOCOLS.values():
        _add_protocol(commands, entry)
    compare = commands.add_parser("compare", help="a page that puts the results of several models side by side")
    compare.add_argument("results", nargs="+", metavar="RESULTS", help="results.json files, or folders that hold them")
    compare.add_argument("--output", default="comparison", metavar="FOLDER", help="of the page (%(default)s)")
    options, overrides = parser.parse_known_args(arguments)
    unknown = [override for override in overrides if override.startswith("-") or "=" not in override]
    if unknown or (overrides and options.protocol == "compare"):
        parser.error(f"unrecognised arguments: {' '.join(unknown or overrides)}; settings are given as key=value")
    options.overrides = overrides
    return options


def _add_protocol(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", protocol: Entry) -> None:
    parser = commands.add_parser(
        protocol.name,
        help=protocol.summary,
        description=protocol.summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"{PROG} {protocol.name} --model MODEL --data [LAYOUT:]PATH [options] [key=value ...]",
        add_help=False,
    )
    add = parser.add_argument
    add("-h", "--help", action=Explain, nargs=0, const=protocol.name, help="this page")
    add("--model", required=True, metavar="MODEL", help="see below")
    add("--data", required=True, metavar="[LAYOUT:]PATH", help="what it is scored on; see below")
    if protocol.trains:
        add("--train-data", metavar="[LAYOUT:]PATH", help="where the training images are, if not in --data")
        add("--train-split", metavar="SPLIT", help="of the training images; that of the layout")
    add("--test-split", metavar="SPLIT", help="of the images that are scored; that of the layout")
    add("--rasa", metavar="inside|FILE", help="RASA's patch features: of the head in the model's file, or of another")
    add("--num-heads", type=int, metavar="N", help="attention heads, for a checkpoint that doesn't tell")
    add("--img-size", type=int, metavar="PX", help="resample the model's positions for images of this side")
    add("--slice", action="append", default=[], metavar="d/2", help="of the features: d, d/2 … d/64 or all; repeatable")
    add("--preset", default="paper", metavar="NAME", help="whose settings: %(default)s, or one of those below")
    add("--config", metavar="FILE", help="YAML file of settings, over the preset")
    add("--output", default="results", metavar="FOLDER", help="of results (%(default)s)")
    add("--cache", metavar="FOLDER", help="of stored features (below the output)")
    add("--store", default="fp16", choices=("fp32", "fp16", "bf16"), help="type of stored features (%(default)s)")
    add("--device", default="auto", help="any torch device (%(default)s)")
    add("--precision", default="auto", choices=("auto", "bf16", "fp32"), help="of the backbone (%(default)s)")
    add("--batch-size", type=int, default=64, metavar="N", help="images at once (%(default)s); changes no score")
    add("--workers", type=int, default=0, metavar="N", help="processes that decode images (%(default)s)")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse_arguments(arguments)
    sleep_while_waiting()
    from franca.eval.command import run  # brings torch

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
