"""How images were normalised for a model, as far as its files tell."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What the published weights were trained with, as most others.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def told_normalisation(path: Path, content: Any) -> dict[str, list[float]]:
    """`mean` and `std`, of values between 0 and 1, from what `read_file` gave of `path`; empty where nothing says them.

    This project's files hold them in their description, timm's folders in config.json, transformers' beside it.
    """
    entries = content if isinstance(content, Mapping) else {}
    described = entries.get("description") or entries.get("timm_config", {}).get("pretrained_cfg") or {}
    if "transformers_config" in entries:
        processor = _json(path / "preprocessor_config.json")
        described = {"mean": processor.get("image_mean"), "std": processor.get("image_std")}
    told = {name: described.get(name) for name in ("mean", "std")}
    return {name: [float(value) for value in values] for name, values in told.items() if values}


def _json(path: Path) -> dict[str, Any]:
    """The table in a file, empty where the file is missing or damaged: weights are of use without it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
