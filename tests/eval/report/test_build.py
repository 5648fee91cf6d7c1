"""A run's report: whole, true to the run, and without anything from the network."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from franca.data.loader import DataConfig
from franca.eval.report import page
from franca.eval.report.build import build_report, portraits
from franca.eval.report.run import build_untrained, load_run
from franca.eval.report.task import choose_task
from franca.eval.views import CentralSquare
from franca.hub.checkpoint import hash_tensors
from franca.train.__main__ import main as train
from franca.train.build import build_pair
from franca.train.config import load_config

TINY = """
steps: 3
model: {arch: vit_tiny, embed_dim: 64, depth: 1, num_heads: 2, drop_path_rate: 0.1}
heads: {hidden_dim: 16, dino: {prototypes: 32, bottleneck_dim: 8}, ibot: {prototypes: 32, bottleneck_dim: 8}}
data: {batch_size: 4, workers: 0, crops: {global_size: 42, local_size: 28, local_count: 1}}
optimizer: {warmup_steps: 1}
checkpoint: {every: 3}
log: {every: 1}
monitor: {every: 1}
device: cpu
"""


def write_images(folder: Path, names: list[str]) -> None:
    random = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(folder / name)


@pytest.fixture(scope="module", params=["photographs", "classes", "unlabelled"])
def run_folder(request, tmp_path_factory) -> Path:
    """A very short run of the real trainer."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "tiny.yaml").write_text(TINY)
    images = {"classes": [f"{c}/{i}.png" for c in "ab" for i in range(7)], "unlabelled": [f"{i}.png" for i in range(9)]}
    source = ["data.source=photographs", "data.path=train"]
    if request.param in images:
        write_images(folder / "images", images[request.param])
        (folder / "images" / images[request.param][3]).write_bytes(b"not an image")
        source = [f"data.path={folder / 'images'}", "data.max_broken_share=0.5"]
    assert train(["--config", str(folder / "tiny.yaml"), f"output={folder / 'run'}", *source]) == 0
    return folder / "run"


class Page(HTMLParser):
    """Collects what a page refers to, and checks that its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


@pytest.mark.slow
def test_report_is_whole(run_folder, tmp_path) -> None:
    index = build_report(run_folder, tmp_path / "report")
    text = index.read_text(encoding="utf-8")
    assert index == tmp_path / "report" / "index.html"
    parsed = Page(text)
    assert parsed.open == []
    pictures = {path.name for path in index.parent.glob("*.png")}
    assert set(parsed.links) == pictures
    assert len(pictures) >= 7
    assert not re.search(r"https?:|<script|@import|url\(", text)
    assert 'name="viewport"' in text
    run = load_run(run_folder)
    verdict, reason = run.verdict
    assert verdict == "too early to say"
    for words in (verdict, reason, "class token", "raw pixels", "image views in all", "untrained", "vit_tiny"):
        assert words in text
    assert run.description["hash"][:16] in text
    assert "global_size: 42" in text  # the configuration


def test_untrained_is_the_network_that_training_started_from(run_folder) -> None:
    run = load_run(run_folder)
    start = build_pair(load_config(run_folder / "config.yaml")).teacher.backbone
    assert hash_tensors(run.untrained.state_dict()) == hash_tensors(start.state_dict())
    assert hash_tensors(run.trained.state_dict()) != hash_tensors(start.state_dict())
    state = torch.get_rng_state()
    build_untrained(run.trained.config, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_run_is_read_from_its_folder(run_folder) -> None:
    run = load_run(run_folder)
    assert run.batch == 4
    assert run.description["step"] == 3
    assert run.trained_widths == [4, 8, 16, 32, 64]
    assert run.prototypes == {"dino_head": [2, 4, 8, 16, 32], "ibot_head": [2, 4, 8, 16, 32]}
    assert run.training_seconds > 0
    assert 0 <= run.data_wait < 1


def test_time_is_counted_between_logged_lines(run_folder, tmp_path) -> None:
    run = load_run(run_folder)
    run.lines[:] = [
        {"step": 1, "images": 100, "images_per_second": 50, "data_wait": 0.5, "skipped_files": 1},
        {"step": 1, "verdict": "healthy", "verdict_reason": "first"},
        {"step": 2, "images": 300, "images_per_second": 20, "data_wait": 0.0, "skipped_files": 4},
        {"step": 2, "verdict": "collapsing", "verdict_reason": "last"},
        {"step": 2, "knn_cls@20": 30.0},
    ]
    assert run.training_seconds == pytest.approx(2 + 10)
    assert run.data_wait == pytest.approx(1 / 12)
    assert run.skipped_files == 4
    assert run.verdict == ("collapsing", "last")


@pytest.mark.parametrize("missing", ["config.yaml", "teacher.pth"])
def test_a_folder_without_a_run_is_an_error(tmp_path, missing) -> None:
    for name in {"config.yaml", "teacher.pth"} - {missing}:
        (tmp_path / name).write_text(json.dumps({}))
    with pytest.raises(FileNotFoundError, match=missing):
        load_run(tmp_path)


def test_text_is_escaped() -> None:
    parts = [
        page.paragraph("<b>&"),
        page.table(["<i>"], [["<u>", "<s>"]]),
        page.facts({"<a>": "<p>"}),
        page.folded("<x>", "<y>"),
        page.verdict("healthy", "<z>"),
        page.bullets(["<li>"]),
        page.picture('a".png', "<alt>", "<caption>"),
    ]
    text = page.page("<title>", "<sub>", [page.section("<h>", *parts)])
    assert not re.search(r"<(b|i|u|s|x|y|z|alt|caption|sub|h)>", text)
    assert Page(text).open == []


@pytest.mark.parametrize(
    ("verdict", "kind"), [("healthy", "good"), ("collapsing", "bad"), ("too early to say", "open")]
)
def test_verdicts_have_their_colour(verdict, kind) -> None:
    assert f'class="verdict {kind}"' in page.verdict(verdict, "why")


@pytest.mark.parametrize(("broken", "shown"), [((), 6), ((5, 11), 4), ((1, 5, 8, 11, 15, 18), 1)])
def test_portraits_are_readable_images(make_source, broken, shown) -> None:
    source = make_source(20, broken=broken)
    task = choose_task(DataConfig(), source, 14)
    list(task.queries.batches())
    numbers = [number for number in task.portrayed if number not in broken] or [0]
    assert len(numbers) == shown
    assert torch.equal(portraits(task, 14), torch.stack([CentralSquare(14)(source.images[n]) for n in numbers]))
