"""In-context segmentation as a whole: known answers, what changes no score, interruptions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from franca.config import read_config
from franca.eval.datasets import VOID, open_split
from franca.eval.errors import EvalError
from franca.eval.metrics.segmentation import confusion_matrix
from franca.eval.protocol import Task
from franca.eval.protocols import in_context
from franca.eval.protocols.in_context import PROTOCOL, InContextConfig, run
from tests.eval.segmentation_case import make_context, nothing, random_features, stripes_task

SMALL = InContextConfig(size=56, neighbours=5)


def scores(context, task, config) -> dict[str, float]:
    return {f"{score.metric} {score.slice}": score.value for score in run(context, task, config)}


def test_features_that_tell_the_class_give_everything(tmp_path) -> None:
    assert scores(make_context(tmp_path), stripes_task(), SMALL) == {"miou d": 100.0, "miou_hungarian d": 100.0}


def test_masks_of_full_resolution_are_those_of_the_files(tmp_path) -> None:
    found = list(run(make_context(tmp_path), stripes_task(), replace(SMALL, full_resolution=True)))
    assert [score.value for score in found] == [100.0, 100.0]
    assert found[0].resolution == "56, full masks"


def test_features_that_tell_nothing_give_the_commonest_class(tmp_path) -> None:
    """All rows are equal neighbours, so every pixel gets class 0: its IoU is its share, that of the others 0."""
    task = stripes_task()
    rows = 8 * 16
    found = scores(make_context(tmp_path, nothing), task, replace(SMALL, neighbours=rows))
    masks = torch.stack([in_context.Squash(56).mask(task.test.source.mask(index)) for index in range(5)])
    confusion = confusion_matrix(torch.zeros_like(masks), masks, 4)
    assert found["miou d"] == pytest.approx(100 * float(confusion[0, 0] / confusion.sum()) / 4)


def test_neither_batch_size_nor_workers_change_a_score(tmp_path, monkeypatch) -> None:
    task = stripes_task()
    first = scores(make_context(tmp_path / "a", random_features), task, SMALL)
    monkeypatch.setattr(in_context, "QUERIES_AT_ONCE", 1)
    second = scores(make_context(tmp_path / "b", random_features, batch_size=1, workers=2), task, SMALL)
    assert second == pytest.approx(first, abs=1e-9)


@pytest.mark.parametrize("memory", [0, 8 * 16, 10_240_000])
def test_the_whole_memory_leaves_nothing_to_chance(tmp_path, memory) -> None:
    found = next(run(make_context(tmp_path), stripes_task(), replace(SMALL, memory=memory)))
    assert (len(found.values), found.seeds, found.spread) == (1, (), None)


@pytest.mark.parametrize("change", [{"memory": 40}, {"augment": True}])
def test_a_random_memory_has_a_value_for_each_seed(tmp_path, change) -> None:
    config = replace(SMALL, seeds=[0, 1, 2], full_resolution=True, **change)
    context = make_context(tmp_path, random_features)
    found = next(run(context, stripes_task(), config))
    assert found.seeds == (0, 1, 2)
    assert found.value == pytest.approx(sum(found.values) / 3)
    assert found.value > 50
    alone = next(run(context, stripes_task(), replace(config, seeds=[1])))
    assert alone.values[0] == found.values[1], "a seed means the same whatever others there are"


def test_training_images_are_extracted_seed_by_seed_after_one_line_on_the_disk(tmp_path, monkeypatch, caplog) -> None:
    """4 x 4 patches of 8 numbers of 4 bytes, of 8 images, for each of 3 seeds."""
    caplog.set_level("INFO")
    context, order = make_context(tmp_path, random_features), []
    extract, ask = context.store.patches, in_context._ask
    monkeypatch.setattr(
        context.store, "patches", lambda split, view: (order.append("extract"), extract(split, view))[1]
    )
    monkeypatch.setattr(in_context, "_ask", lambda *given: (order.append(f"search {given[4]}"), ask(*given))[1])
    monkeypatch.setattr(in_context, "GIGABYTE", 8 * 16 * 8 * 4)
    scores(context, stripes_task(), replace(SMALL, augment=True, seeds=[0, 1, 2]))
    assert order == ["extract", *("extract" if odd else f"search [{seed}]" for seed in range(3) for odd in (1, 0))]
    (line,) = (record.message for record in caplog.records if "on disk" in record.message)
    assert "8 training images, 3 times take 3.0 GB" in line


def test_less_than_a_gigabyte_is_said_in_megabytes() -> None:
    assert [in_context._bytes(count) for count in (3.2e9, 17_400_000)] == ["3.2 GB", "17.4 MB"]


def test_slices_are_the_first_features(tmp_path) -> None:
    def first_four(images):
        return random_features(images)[:, :4]

    task = stripes_task()
    found = scores(make_context(tmp_path / "a", random_features, slices=(1, 2)), task, SMALL)
    assert found["miou d/2"] == scores(make_context(tmp_path / "b", first_four), task, SMALL)["miou d"]


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch) -> None:
    task, config = stripes_task(), replace(SMALL, memory=60, seeds=[0, 1])
    expected = scores(make_context(tmp_path / "a", random_features), task, config)
    context = make_context(tmp_path / "b", random_features)
    monkeypatch.setattr(in_context, "QUERIES_AT_ONCE", 1)
    calls = []

    def counted(*arguments):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return predict_patches(*arguments)

    predict_patches = in_context.predict_patches
    monkeypatch.setattr(in_context, "predict_patches", counted)
    with pytest.raises(KeyboardInterrupt):
        scores(context, task, config)
    assert scores(context, task, config) == pytest.approx(expected, abs=1e-9)
    assert len(calls) == 7 + 10 - 6, "what was done is not done again"


def test_a_quantised_search_finds_nearly_the_same_and_says_how_nearly(tmp_path) -> None:
    task, config = stripes_task(train=300), replace(SMALL, search="quantised")
    exact = scores(make_context(tmp_path, random_features), task, replace(SMALL))
    found = scores(make_context(tmp_path, random_features), task, config)
    assert 50 < found["neighbour_recall d"] <= 100
    assert found["miou d"] == pytest.approx(exact["miou d"], abs=5)
    with pytest.raises(EvalError, match="4096"):
        scores(make_context(tmp_path, random_features), stripes_task(), config)


def test_broken_images_are_left_out(tmp_path) -> None:
    assert scores(make_context(tmp_path), stripes_task(broken=(1, 4)), SMALL)["miou d"] == 100.0


def test_more_neighbours_than_patches_are_refused(tmp_path) -> None:
    with pytest.raises(EvalError, match="only 128 patches"):
        scores(make_context(tmp_path), stripes_task(), replace(SMALL, neighbours=129))


def test_presets_are_settings(tmp_path) -> None:
    for changes in PROTOCOL.presets.values():
        assert read_config(InContextConfig, preset=changes) != InContextConfig()
    small = read_config(
        InContextConfig, None, ["size=56", "neighbours=5", "memory=100"], PROTOCOL.presets["hummingbird"]
    )
    found = list(run(make_context(tmp_path), stripes_task(), small))
    assert all(score.value > 50 and len(score.values) == 5 for score in found)


RED, GREEN, BLUE = (250, 10, 10), (10, 250, 10), (10, 10, 250)


def ade20k(root: Path) -> Task:
    """ADE20K's folders: the left half of an image is wall (1, red) or sky (3, blue), the right others (0, green).

    A quarter of the wall to be scored is green.
    """
    folder = root / "ADEChallengeData2016"
    for split in ("training", "validation"):
        for number, (value, colour) in enumerate([(1, RED), (3, BLUE)]):
            mask, image = np.zeros((56, 56), np.uint8), np.full((56, 56, 3), GREEN, np.uint8)
            mask[:, :28], image[:, :28] = value, colour
            if split == "validation" and value == 1:
                image[:28, 14:28] = GREEN
            for kind, ending, array in (("images", "png", image), ("annotations", "png", mask)):
                file = folder / kind / split / f"ADE_{number}.{ending}"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(file)
    train, test = (open_split(f"ade20k:{root}", None, role, "segmentation") for role in ("train", "test"))
    return Task(train, test)


def test_others_of_ade20k_are_a_class_of_the_memory_that_is_never_scored(tmp_path) -> None:
    """Where a wall looks like others it is missed; if others were class 0, which is wall, it would be found."""
    task, config = ade20k(tmp_path), replace(SMALL, neighbours=3, hungarian=True)
    assert len(task.train.source.classes) == 150
    own, first = (
        scores(make_context(tmp_path / void), task, replace(config, void=void)) for void in ("background", "first")
    )
    assert 50 * (1 + 0.7) < own["miou d"] < 50 * (1 + 0.85)
    assert own["miou_hungarian d"] == own["miou d"], "others stand for no class"
    assert first["miou d"] == 100.0


@pytest.mark.parametrize(
    ("choice", "classes", "expected"),
    [
        ("ignore", ["background", "cat"], VOID),
        ("background", ["background", "cat"], 0),
        ("background", ["wall", "sky"], 2),
        ("first", ["wall", "sky"], 0),
    ],
)
def test_void_is_a_background_only_where_there_is_one(choice, classes, expected) -> None:
    assert in_context.void_class(choice, classes) == expected


def test_sets_of_different_classes_are_refused(tmp_path) -> None:
    task = stripes_task()
    task.train.source.classes = ["red", "green", "blue", "black"]
    with pytest.raises(EvalError, match="differ in black, white"):
        scores(make_context(tmp_path), task, SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"memory": -1}, "memory=-1"),
        ({"void": "drop"}, "void='drop'"),
        ({"search": "fast"}, "search='fast'"),
        ({"probes": 0}, "probes=0"),
        ({"seeds": [1, 1]}, "seeds"),
    ],
)
def test_settings_out_of_range_are_named(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        InContextConfig(**change)
