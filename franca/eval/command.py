"""What `python -m franca.eval` does once its arguments are read, and what the help of a protocol says of it."""

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
from franca.eval.overview import overview
from franca.eval.registry import PROTOCOLS
from franca.hub import CheckpointError, DownloadError

MODELS = """\
--model takes franca_vitb14 and the other entry points (franca_vitb14@IN21K_224 for other weights), a checkpoint file of
any layout that franca.hub reads, the folder of a training run, timm:NAME, transformers:NAME, torch_hub:REPO:NAME,
callable:MODULE:FUNCTION, untrained:MODEL (the same network with random weights), pixels and colour (no network).
"""


def run(options: argparse.Namespace) -> int:
    """Evaluate, or compare, as asked; returns the exit status."""
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


def ask(options: argparse.Namespace) -> None:
    """Evaluate; the first process prints the table."""
    own = place()
    speaks = own is None or own.rank == 0
    if not speaks:
        logging.getLogger().setLevel(logging.ERROR)
    answer = evaluate(question_of(options))
    if speaks:
        if answer.records:
            print(overview(answer.records))
        print(answer.folder)


def question_of(options: argparse.Namespace) -> Question:
    """What the arguments of a protocol ask. Raises EvalError."""
    given = vars(options)
    known = {field.name: given[field.name] for field in fields(Question) if field.name in given}
    return Question(**known, slices=parse_slices(options.slice), stored_as=options.store)


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


def explanation(name: str) -> str:
    """Of a protocol: what it does, its settings with their values, its presets, which data and models it takes."""
    entry = PROTOCOLS[name]
    protocol = entry.load()
    paper = asdict(read_config(protocol.config))
    parts = [
        inspect.cleandoc(sys.modules[protocol.config.__module__].__doc__ or ""),
        inspect.cleandoc(protocol.config.__doc__ or ""),
        "As key=value, with the paper's values:\n" + "".join(f"  {_setting(*pair)}\n" for pair in paper.items()),
        *(f"--preset {name}: {' '.join(_setting(*pair) for pair in changes.items())}"
          for name, changes in protocol.presets.items()),
        f"--data LAYOUT:PATH has one of the layouts {', '.join(_layouts(entry.kind))}; dataset_prep.md shows them.",
        MODELS,
    ]  # fmt: skip
    return "\n\n".join(parts)


def _layouts(kind: str) -> list[str]:
    return [name for name, layout in LAYOUTS.items() if kind in ("images", layout.kind)]


def _setting(name: str, value: object) -> str:
    """As it is written on the command line."""
    plain = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"{name}={plain}".replace(", ", ",").replace("'", "")
