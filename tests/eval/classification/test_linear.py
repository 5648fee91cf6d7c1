"""The protocol linear on features with a known answer, interrupted, and on transfer sets."""

from dataclasses import replace

import pytest
import torch

from franca.config import ConfigError, read_config
from franca.eval.errors import EvalError
from franca.eval.protocols import linear, progress_file
from franca.eval.protocols.linear import PROTOCOL, LinearConfig, run
from franca.eval.protocols.linear_grid import HeadGrid
from franca.eval.protocols.linear_head import load_head

SMALL = LinearConfig(rates=[0.01, 0.5], blocks=[1, 2], steps=60, batch_size=16)


@pytest.fixture
def problem(planted, one_hot, tmp_path):
    """Four classes that the features name, a tenth of the train images to choose on."""

    def make(output=tmp_path, test_labels=None, **options):
        labels = {"train": [n % 4 for n in range(80)], "test": [n % 4 for n in range(20)]}
        features = {name: one_hot(values, 4, seed=len(name)) for name, values in labels.items()}
        return planted(features, labels | ({"test": test_labels} if test_labels else {}), 4, output=output, **options)

    return make


def test_features_that_name_the_class_are_always_right(problem) -> None:
    found = list(run(*problem(slices=(1, 4), unreadable={"train": [0, 7], "test": [1]}), SMALL))
    assert [(score.slice, score.value) for score in found] == [("d", 100.0), ("d/4", 100.0)]
    assert {tuple(score.settings.items()) for score in found} == {(("chosen_on", "held_out"),)}


def test_features_that_know_nothing_give_chance(planted, noise) -> None:
    labels = {"train": [n % 5 for n in range(400)], "test": [n % 5 for n in range(1000)]}
    features = {"train": noise(400, seed=1), "test": noise(1000, seed=2)}
    (score,) = run(*planted(features, labels, 5), SMALL)
    assert score.value == pytest.approx(20, abs=100 * 4 * (0.2 * 0.8 / 1000) ** 0.5)  # four standard deviations


def test_test_labels_decide_nothing_unless_asked(problem, tmp_path) -> None:
    """With wrong test labels the same classifier is chosen and trained."""
    wrong = [(n + 1) % 4 for n in range(20)]
    (right,) = run(*problem(tmp_path / "right"), SMALL)
    (score,) = run(*problem(tmp_path / "wrong", test_labels=wrong), SMALL)
    assert (right.value, score.value) == (100.0, 0.0)
    heads = [load_head(tmp_path / name / "linear-d.pth") for name in ("right", "wrong")]
    assert torch.equal(heads[0][0].weight, heads[1][0].weight)
    assert heads[0][1] == heads[1][1]


def test_held_out_images_are_not_learned_from(problem, monkeypatch) -> None:
    """Their labels may be wrong: then the choice is bad, the classifiers are the same."""
    seen: list[int] = []
    plain = linear.stored_batches

    def watched(features, labels, rows, *rest):
        seen.extend(features.index[rows].tolist())
        return plain(features, labels, rows, *rest)

    monkeypatch.setattr(linear, "stored_batches", watched)
    context, task = problem()
    list(run(context, task, SMALL))
    learn, held = linear.hold_out(torch.tensor(task.train.source.labels), SMALL.holdout, SMALL.seed)
    assert sorted(seen) == learn.tolist()
    assert len(held) == 8


def test_chosen_on_the_test_set_if_asked(problem) -> None:
    config = LinearConfig(rates=[0.01, 0.5], blocks=[1], steps=40, batch_size=16, choose_on="test")
    context, task = problem()
    (score,) = run(context, task, config)
    assert score.settings == {"chosen_on": "test"}
    assert load_head(context.output / "linear-d.pth")[1]["score of choice"] == score.value


def test_saved_classifiers_are_scored_on_further_sets_without_training(problem, monkeypatch, one_hot) -> None:
    context, task = problem(slices=(1, 2))
    first = list(run(context, task, SMALL))
    context.store.features["other"] = one_hot([0, 1, 2], 4)
    source = type(task.test.source)(task.test.source.root, "abc", [0, 1, 3], task.test.source.classes)
    other = type(task.test)("made_up", "other", source, "hash of other")
    monkeypatch.setattr(linear, "open_split", lambda *_: other)
    learn, steps = HeadGrid.learn, []
    monkeypatch.setattr(HeadGrid, "learn", lambda self, *batch: steps.append(1) or learn(self, *batch))
    both = list(run(context, task, replace(SMALL, transfer=["x:other"])))
    assert not steps
    assert both[::2] == first
    assert [(score.slice, score.data, score.data_hash) for score in both[1::2]] == [
        (name, "made_up", "hash of other") for name in ("d", "d/2")
    ]
    assert [score.value for score in both[1::2]] == pytest.approx([200 / 3] * 2)


@pytest.mark.parametrize("change", ["model", "data", "options", "slice"])
def test_classifiers_of_another_question_are_not_reused(problem, monkeypatch, change) -> None:
    context, task = problem()
    list(run(context, task, SMALL))
    config = SMALL
    if change == "model":
        context.backbone.hash = "other weights"
    elif change == "data":
        task = replace(task, train=replace(task.train, hash="other images"))
    elif change == "options":
        config = replace(SMALL, seed=1)
    else:
        context.slices = (1, 2)
    learn, steps = HeadGrid.learn, []
    monkeypatch.setattr(HeadGrid, "learn", lambda self, *batch: steps.append(1) or learn(self, *batch))
    found = list(run(context, task, config))
    assert len(steps) == SMALL.steps
    assert {score.seeds for score in found} == {(config.seed,)}
    assert all(score.values == (score.value,) for score in found)


@pytest.mark.parametrize(("steps", "said"), [(60, False), (451, True)])
def test_many_epochs_of_a_small_set_are_said_before(problem, caplog, monkeypatch, steps, said) -> None:
    """72 images to learn from, 16 in a batch: 450 steps are 100 epochs."""
    monkeypatch.setattr(linear, "stored_batches", lambda *_: iter(()))
    list(run(*problem(), replace(SMALL, steps=steps)))
    hint = f"steps={steps} with batches of 16 are 100 epochs of 72 images; steps=450 makes 100 of them, in less time"
    assert (hint in [record.getMessage() for record in caplog.records]) == said


@pytest.mark.parametrize("unusable", ["classes", "holdout"])
def test_what_can_not_be_asked_is_refused_before_any_feature_is_made(problem, unusable) -> None:
    context, task = problem()
    context.store = None
    if unusable == "classes":
        task.test.source.classes = ["x", "y"]
    config = replace(SMALL, holdout=1e-3) if unusable == "holdout" else SMALL
    with pytest.raises(EvalError, match=unusable):
        list(run(context, task, config))


@pytest.mark.parametrize("stops", [[1], [20, 41], [60]])
def test_an_interrupted_training_goes_on_to_the_same_result(problem, tmp_path, monkeypatch, stops) -> None:
    monkeypatch.setattr(progress_file, "SECONDS", 0.0)
    whole = list(run(*problem(tmp_path / "whole", slices=(1, 2)), SMALL))
    context, task = problem(tmp_path / "parts", slices=(1, 2))
    learn, steps = HeadGrid.learn, []

    def stopped(self, *batch):
        learn(self, *batch)
        steps.append(self.step)
        if self.step in stops:
            stops.remove(self.step)
            raise KeyboardInterrupt

    monkeypatch.setattr(HeadGrid, "learn", stopped)
    for _ in range(len(stops)):
        with pytest.raises(KeyboardInterrupt):
            list(run(context, task, SMALL))
    assert list(run(context, task, SMALL)) == whole
    assert len(steps) < 60 + 3  # what was saved was not done again
    for name in ("linear-d.pth", "linear-d_2.pth"):
        heads = [load_head(tmp_path / folder / name)[0] for folder in ("whole", "parts")]
        assert torch.equal(heads[0].weight, heads[1].weight)
    assert not list((tmp_path / "parts").glob("*.partial"))


def test_a_batch_larger_than_the_training_set_shrinks(problem) -> None:
    context, task = problem()
    list(run(context, task, LinearConfig(rates=[0.1], blocks=[1], steps=3, batch_size=1024)))
    assert load_head(context.output / "linear-d.pth")[1]["rate"] == pytest.approx(0.1 * 72 / 256)


def test_transfer_sets_are_scored_with_the_same_head(problem, monkeypatch, one_hot) -> None:
    """A set with candidates and a set with several labels, beside the test set."""
    context, task = problem()
    features = {"fewer": one_hot([0, 1, 2, 3], 4), "several": one_hot([0, 1, 2], 4)}
    context.store.features |= features
    make = type(task.test)
    listed = type(task.test.source)
    sources = {
        "fewer": listed(task.test.source.root, "abcd", [0, 1, 0, 1], task.test.source.classes, candidates=[0, 1]),
        "several": listed(
            task.test.source.root, "abc", [3, 1, 3], task.test.source.classes, label_sets=[[3, 0], [1], [3, 1]]
        ),
    }
    opened = []

    def open_split(name, split, role, kind):
        opened.append((name, split, role, kind))
        return make("imagenet_x", name.partition(":")[2], sources[name.partition(":")[2]], name)

    monkeypatch.setattr(linear, "open_split", open_split)
    config = LinearConfig(rates=[0.5], blocks=[1], steps=60, batch_size=16, transfer=["x:fewer", "x:several"])
    own, fewer, several = run(context, task, config)
    assert opened == [("x:fewer", None, "test", "classification"), ("x:several", None, "test", "classification")]
    assert (own.data, own.split, own.value) == ("", "", 100.0)
    assert (fewer.data, fewer.split) == ("imagenet_x", "fewer")
    assert fewer.value >= 50.0  # the first two are right, the others are never called 2 or 3
    assert several.value == pytest.approx(200 / 3)


def test_a_network_that_tells_one_block_is_asked_for_one(problem, caplog) -> None:
    context, task = problem()
    context.backbone.blocks = 1
    list(run(context, task, SMALL))
    assert load_head(context.output / "linear-d.pth")[0].reads.blocks == 1
    assert "can tell the last 1 blocks" in caplog.text
    with pytest.raises(EvalError, match=r"blocks=\[4\]: planted features can tell the last 1"):
        list(run(context, task, LinearConfig(blocks=[4])))


def test_weights_beyond_all_numbers_are_an_error(problem) -> None:
    with pytest.raises(EvalError, match="choose smaller rates"):
        list(run(*problem(), LinearConfig(rates=[1e40], steps=30, batch_size=16)))


@pytest.mark.parametrize(
    "setting",
    ["rates=[]", "rates=[0]", "blocks=[0]", "mean_patch=[]", "steps=0", "momentum=1", "holdout=0", "choose_on=val"],
)
def test_impossible_settings_are_refused(setting) -> None:
    with pytest.raises(ConfigError, match=setting.split("=")[0]):
        read_config(LinearConfig, overrides=[setting])


def test_defaults_and_preset_are_those_of_dinov2() -> None:
    config = read_config(PROTOCOL.config, preset=PROTOCOL.presets["dinov2"])
    assert (config.steps, config.batch_size, config.momentum) == (10 * 1250, 8 * 128, 0.9)
    assert len(config.rates) * len(config.blocks) * len(config.mean_patch) == 52
    assert (config.augment, config.choose_on) == (True, "test")
