"""Configurations that are shipped: they hold, say what they change, and are the paper's and the released ones."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from franca.config import read_config
from rasa.config import RasaConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "rasa"


def written(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys of a tree, with dots."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= written(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_configurations_hold_and_say_what_they_change(file: Path) -> None:
    chosen, plain = (written(asdict(config)) for config in (read_config(RasaConfig, file), RasaConfig()))
    stated = written(yaml.safe_load(file.read_text()))
    assert {key for key in chosen if chosen[key] != plain[key]} <= set(stated)
    assert {key: chosen[key] for key in stated} == stated
    assert file.read_text().startswith("#")


def test_the_papers_and_the_released_settings_are_theirs() -> None:
    paper, released = (read_config(RasaConfig, CONFIGS / name) for name in ("voc.yaml", "voc_released.yaml"))
    assert (paper.gradient.lr, released.gradient.lr) == (2e-3, 2e-4)
    for one in (paper, released):
        assert (one.solver, one.gradient.epochs, one.gradient.batch_size, one.data.size) == ("gradient", 5, 128, 518)
    assert paper.rounds == 8
