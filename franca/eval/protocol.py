"""What a protocol of evaluation is: typed settings, and a function from a backbone and data to scores."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from franca.eval.context import Context
from franca.eval.datasets import OpenedSplit
from franca.eval.result import Score


@dataclass(frozen=True)
class Task:
    """The data of one evaluation. ``train`` is None for protocols that learn nothing."""

    train: OpenedSplit | None
    test: OpenedSplit


@dataclass(frozen=True)
class Protocol:
    """One way to score a backbone; its name and what it reads stand in `franca.eval.registry`.

    Attributes:
        config: a dataclass whose defaults are the paper's settings (Appendix C).
        presets: named settings of others, each only what differs from the defaults.
        run: scores, one after another. Every process of a group calls it; what it asks of ``context.store`` is done by
            all of them together, the rest by the first alone.
    """

    config: type
    run: Callable[[Context, Task, Any], Iterator[Score]]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
