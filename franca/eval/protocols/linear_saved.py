"""Classifiers that an earlier evaluation left: those trained for the same question serve again."""

from pathlib import Path
from typing import Any

from franca.eval.context import Context
from franca.eval.protocols.linear_head import HeadInput, LinearHead, load_head


def head_file(context: Context, slice_name: str) -> Path:
    """Where the classifier of a slice is saved."""
    return context.output / f"linear-{slice_name.replace('/', '_')}.pth"


def saved_heads(context: Context, inputs: dict[str, list[HeadInput]], about: dict[str, Any]) -> dict[str, LinearHead]:
    """The classifiers that are there, by slice: those that were trained as asked."""
    found = {}
    for name, kinds in inputs.items():
        if not (file := head_file(context, name)).is_file():
            continue
        head, stated, _ = load_head(file)
        if head.reads in kinds and all(stated.get(key) == value for key, value in about.items()):
            found[name] = head.to(context.device)
    return found
