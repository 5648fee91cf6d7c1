"""What the documents state of the code in tables is what the code holds: published weights, network sizes, options."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from franca.data.loader import spare_cores
from franca.eval.__main__ import main as evaluate
from franca.eval.datasets import LAYOUTS
from franca.eval.protocols.pictures import KINDS, PicturesConfig
from franca.eval.registry import PROTOCOLS
from franca.hub.registry import DEFAULTS, PUBLISHED, REFUSED, SHA256, SHORT_NAMES
from franca.metrics import read_metrics
from franca.models import BACKBONES
from franca.models.feed_forward import swiglu_hidden
from franca.train import data_advice
from franca.train.__main__ import main
from franca.train.config import load_config
from franca.train.logger import LogConfig
from rasa.config import RasaConfig
from rasa.patches import CacheConfig
from tests.tiny import write_tiny

ROOT = Path(__file__).resolve().parents[2]
CARD = ROOT / "model_card.md"
RASA = ROOT / "rasa/README.md"
TRAINING = ROOT / "training.md"
DATA = ROOT / "dataset_prep.md"
EVALUATION = ROOT / "docs/evaluation.md"
FIRST_RUN = ROOT / "docs/first_run.md"


def table(document: Path, *head: str) -> list[list[str]]:
    """The rows of the table that has these first heads."""
    lines = document.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {' | '.join(head)} |"))
    length = next(number for number, line in enumerate(lines[start:]) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 2 : start + length]]


def codes(cell: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]*)`", cell)


def test_published_weights() -> None:
    for row, published in zip(table(CARD, "entry point", "`weights=`", "file"), PUBLISHED, strict=True):
        entry, weights, file, tag, grid, rasa = row
        assert codes(entry) == [f"franca_{SHORT_NAMES[published.arch]}"]
        assert codes(weights) == [published.weights]
        assert ("default" in weights) == (DEFAULTS[published.arch] == published.weights)
        name, *pieces = codes(file)
        assert name == published.name
        ends = [piece.lstrip("…") for piece in pieces]
        assert [each.name.endswith(end) for each, end in zip(published.files, ends, strict=bool(ends))] == [True] * len(
            ends
        )
        assert (tag, int(grid), rasa == "yes") == (published.tag, published.img_size, published.has_rasa)


def test_refused_weights() -> None:
    stated = {
        (codes(entry)[0], codes(weights)[0]): why
        for entry, weights, why in table(CARD, "entry point", "`weights=`", "reason")
    }
    assert stated == {(f"franca_{SHORT_NAMES[arch]}", weights): why for (arch, weights), why in REFUSED.items()}


def test_no_hash_is_said_to_be_known_before_one_is() -> None:
    assert ("none is known today" in CARD.read_text(encoding="utf-8")) == (not SHA256)


@pytest.mark.parametrize("row", table(CARD, "network", "width D"), ids=lambda row: row[0])
def test_network_sizes(row: list[str]) -> None:
    name, width, blocks, heads, hidden, parameters = row
    sizes = []
    for side in (224, 518):
        with torch.device("meta"):
            model = BACKBONES[codes(name)[0]](img_size=side)
        sizes.append(sum(parameter.numel() for parameter in model.parameters()) / 1e6)
    config = model.config
    assert [int(width), int(blocks), int(heads)] == [config["embed_dim"], config["depth"], config["num_heads"]]
    assert int(hidden) == swiglu_hidden(4 * config["embed_dim"])
    assert parameters == "{:.2f} / {:.2f} M".format(*sizes)


def test_options_of_rasa_and_their_defaults() -> None:
    config = OmegaConf.structured(RasaConfig())
    documented = []
    for keys, defaults, _ in table(RASA, "key", "default"):
        stated = codes(defaults) or [""] * len(codes(keys))
        documented += codes(keys)
        for key, default in zip(codes(keys), stated, strict=True):
            if key != "data.workers":
                wanted = yaml.safe_load(default or "''")
                found = OmegaConf.select(config, key)
                assert (list(found) if isinstance(wanted, list) else found) == wanted, key
    parts = [name for name in config if OmegaConf.is_config(config[name])]
    assert set(documented) == {name for name in config if name not in parts} | {
        f"{part}.{name}" for part in parts for name in config[part]
    }
    assert config.data.workers == spare_cores()


def test_size_of_the_cache_for_all_patches_of_voc() -> None:
    text = RASA.read_text(encoding="utf-8")
    images, width, cells = 17125, 768, 37 * 37
    whole, kept = (2e-9 * images * width * CacheConfig(patches=patches).kept(cells) for patches in (0, 256))
    assert f"keeps all {cells:,}: {whole:.0f} GB for ViT-B instead of {kept:.1f}" in text


def test_data_sets_of_the_evaluation() -> None:
    stated = {}
    for name, splits, train, test, score, _ in table(DATA, "layout", "splits", "learned from", "scored on"):
        stated[codes(name)[0]] = (codes(splits), codes(train), codes(test), score)
    scores = {
        name: "IoU" if layout.kind == "segmentation" else "mean per class" if layout.mean_per_class else "accuracy"
        for name, layout in LAYOUTS.items()
    }
    assert stated == {
        name: (list(layout.splits), [layout.train] * bool(layout.train), [layout.test], scores[name])
        for name, layout in LAYOUTS.items()
    }


def test_options_and_pictures_of_the_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    """What the pages explain is what --help lists, and a Config holds."""
    asked = set()
    for protocol in PROTOCOLS:
        with pytest.raises(SystemExit):
            evaluate([protocol, "--help"])
        usage = capsys.readouterr().out.partition("options:")[2].partition("\n\n")[0]
        asked |= set(re.findall(r"^  (?:-h, )?(--[\w-]+)", usage, re.MULTILINE))
    stated = {name for names, _ in table(EVALUATION, "option", "means") for name in codes(names)}
    assert stated == asked - {"--help"}
    assert {name for names, _ in table(EVALUATION, "setting", "means") for name in codes(names)} | {"kinds"} == {
        setting.name for setting in fields(PicturesConfig)
    }
    assert tuple(codes(kind)[0] for kind, *_ in table(EVALUATION, "kind", "rows below the images")) == KINDS


@pytest.mark.parametrize("name", LAYOUTS)
def test_trees_of_data_sets_are_those_that_errors_show(name: str) -> None:
    assert f"`{name}`\n\n```\n{LAYOUTS[name].expected}\n```\n" in DATA.read_text(encoding="utf-8")


def test_numbers_of_a_line(images: Path, tmp_path: Path) -> None:
    """What the page lists is what a run writes; the CPU has no data sheet to be compared with."""
    settings = ("steps=2", "log.every=2", "device=cpu", "monitor.every=0", f"output={tmp_path / 'run'}")
    assert main(["--config", str(write_tiny(tmp_path / "tiny.yaml", images, *settings))]) == 0
    (line,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    documented = [name for numbers, _ in table(TRAINING, "number", "means") for name in codes(numbers)]
    written = dict.fromkeys(re.sub(r"/\d+$", "/J", name) for name in line)
    assert sorted(documented) == sorted([*written, "utilisation"])


def test_limits_of_waiting_and_hanging() -> None:
    text = TRAINING.read_text(encoding="utf-8")
    assert (data_advice.SHARE, data_advice.LINES, data_advice.SECONDS) == (1 / 5, 3, 30.0)
    assert "waits for a fifth of the time or more, in three lines and half a minute on end" in text
    assert f"After `log.hang_minutes` ({LogConfig().hang_minutes:g}) without a completed step" in text


def test_every_change_that_the_first_run_page_advises_can_be_made() -> None:
    given = [text for text in codes(FIRST_RUN.read_text(encoding="utf-8")) if re.match(r"[a-z_.]+=[^ ]", text)]
    assert len(given) > 5
    for text in given:
        load_config(ROOT / "configs/recipes/imagenette_cpu.yaml", text.split())
