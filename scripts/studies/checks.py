"""Whether the commands of a study can be carried out, as far as is to be seen without running them."""

import argparse
import io
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout

import rasa.train
from franca.config import ConfigError, read_config
from franca.eval import __main__ as evaluation
from franca.eval.backbones import parse
from franca.eval.command import question_of
from franca.eval.datasets import layout_of
from franca.eval.errors import EvalError
from franca.eval.evaluate import configure
from franca.eval.registry import PROTOCOLS
from franca.train import __main__ as training
from franca.train.config import load_config
from rasa.config import RasaConfig
from studies.plan import Task, with_needs

Parser = Callable[[list[str]], argparse.Namespace]


def require_runnable(tasks: Iterable[Task]) -> None:
    """Raises ConfigError for what doesn't exist: keys, values, protocol, layout, model; looks at one seed of each."""
    seen = set()
    for task in tasks:
        if (task.rung, task.kind) not in seen:
            seen.add((task.rung, task.kind))
            try:
                _check(task)
            except (ConfigError, EvalError) as error:
                raise ConfigError(f"rung {task.rung}, {task.kind}: {error}") from None


def _check(task: Task) -> None:
    _, module, *arguments = task.command
    if module == "franca.train":
        options = _parsed(training.parse_arguments, arguments)
        load_config(options.config, options.overrides)
    elif module == "rasa.train":
        options = _parsed(rasa.train.parse_arguments, arguments)
        read_config(RasaConfig, options.config, options.overrides)
    else:
        question = question_of(_parsed(evaluation.parse_arguments, arguments))
        configure(question)
        kind = PROTOCOLS[question.protocol].kind
        for data in filter(None, (question.data, question.train_data)):
            layout_of(data, kind)
        model = question.model
        for need in with_needs(task.needs):
            model = model.replace(str(need.output / "teacher.pth"), __file__)  # it will be a file by then
        parse(model, question.rasa, question.num_heads, question.img_size)


def _parsed(parse: Parser, arguments: list[str]) -> argparse.Namespace:
    """As the command itself would; its error as ConfigError."""
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            return parse(arguments)
    except SystemExit as end:
        why = said.getvalue().strip().rpartition("error: ")[2] if end.code else f"{' '.join(arguments)} runs nothing"
        raise ConfigError(why) from None
