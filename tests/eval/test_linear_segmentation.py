"""Linear segmentation as a whole: known answers, what changes no score, interruptions."""

from dataclasses import replace

import pytest
import torch

from franca.config import read_config
from franca.eval.errors import EvalError
from franca.eval.metrics.segmentation import confusion_matrix
from franca.eval.protocols import linear_segmentation_training, progress_file
from franca.eval.protocols.linear_segmentation import PROTOCOL, LinearSegmentationConfig, run, whole_patches
from tests.eval.segmentation_case import Stripes, classes, make_context, nothing, random_features, stripes_task

SMALL = LinearSegmentationConfig(crop=28, epochs=20, batch=4, lr=0.05, ratio=[1.0, 1.0])
WHOLE = replace(SMALL, whole=True, crop=56)


def scores(context, task, config) -> dict[str, float]:
    return {score.slice: score.value for score in run(context, task, config)}


@pytest.mark.parametrize("config", [SMALL, WHOLE], ids=["windows", "whole"])
class TestBothWays:
    def test_features_that_tell_the_class_give_everything(self, tmp_path, config) -> None:
        assert scores(make_context(tmp_path, classes), stripes_task(16, train_width=28), config) == {"d": 100.0}

    def test_features_that_tell_nothing_give_the_commonest_class(self, tmp_path, config) -> None:
        task = stripes_task(train=12)
        found = scores(make_context(tmp_path, nothing), task, config)
        masks = torch.stack([task.test.source.mask(index) for index in range(5)])
        confusion = confusion_matrix(torch.zeros_like(masks), masks, 4)
        assert found["d"] == pytest.approx(100 * float(confusion[0, 0] / confusion.sum()) / 4)

    def test_neither_batch_size_nor_workers_change_a_score(self, tmp_path, config) -> None:
        config = replace(config, epochs=3)
        first = scores(make_context(tmp_path / "a", random_features), stripes_task(), config)
        second = scores(make_context(tmp_path / "b", random_features, 1, workers=2), stripes_task(), config)
        assert second == pytest.approx(first, abs=1e-9)

    def test_slices_trained_together_are_those_trained_alone(self, tmp_path, config) -> None:
        config = replace(config, epochs=3)
        together = scores(make_context(tmp_path, random_features, slices=(1, 2, 4)), stripes_task(), config)
        assert len(set(together.values())) > 1
        for divisor, name in ((1, "d"), (2, "d/2"), (4, "d/4")):
            alone = scores(make_context(tmp_path, random_features, slices=(divisor,)), stripes_task(), config)
            assert alone == {name: together[name]}

    def test_broken_images_are_left_out(self, tmp_path, config) -> None:
        """A test image that can't be read is as one that isn't there; training does without those it can't read."""
        config, whole = replace(config, epochs=3), stripes_task(train=12)
        fewer, broken = (
            replace(whole, test=replace(whole.test, source=Stripes(5, seed=1), hash=name)) for name in "ab"
        )
        fewer.test.source.masks = fewer.test.source.masks[[0, 2, 4]]
        broken.test.source.broken = (1, 3)
        expected = scores(make_context(tmp_path, random_features), fewer, config)
        assert scores(make_context(tmp_path, random_features), broken, config) == expected
        found = scores(make_context(tmp_path, classes), stripes_task(train=12, broken=(1, 3)), config)
        assert found["d"] > 12, "more than the commonest class alone"

    @pytest.mark.parametrize("stop", [4, 9, 13])
    def test_an_interrupted_run_continues_to_the_same_score(self, tmp_path, monkeypatch, config, stop) -> None:
        """Stopped in the first training, in the second, and before its last step; two seeds of six steps each."""
        config = replace(config, epochs=3, seeds=[0, 1])
        expected = [
            score.values for score in run(make_context(tmp_path / "a", random_features), stripes_task(), config)
        ]
        context = make_context(tmp_path / "b", random_features)
        monkeypatch.setattr(progress_file, "SECONDS", 0.0)
        learn, calls = linear_segmentation_training._learn, []

        def stopping(*arguments) -> None:
            calls.append(1)
            if len(calls) == stop:
                raise KeyboardInterrupt
            learn(*arguments)

        monkeypatch.setattr(linear_segmentation_training, "_learn", stopping)
        if stop <= 12:
            with pytest.raises(KeyboardInterrupt):
                scores(context, stripes_task(), config)
        found = [score.values for score in run(context, stripes_task(), config)]
        assert found == expected
        assert len(calls) == (13 if stop <= 12 else 12), "no step is done twice"


def test_another_seed_is_another_training(tmp_path) -> None:
    config = replace(SMALL, epochs=2, seeds=[0, 1, 2])
    found = next(run(make_context(tmp_path, random_features), stripes_task(), config))
    assert len(set(found.values)) > 1
    assert found.spread is not None
    alone = next(run(make_context(tmp_path, random_features), stripes_task(), replace(config, seeds=[2])))
    assert (alone.seeds, alone.values) == ((2,), found.values[2:])


def test_scales_and_mirror_images_are_told(tmp_path) -> None:
    config = replace(SMALL, scales=[1.0, 2.0], flip=True)
    found = next(run(make_context(tmp_path, classes), stripes_task(16, train_width=28), config))
    assert (found.resolution, found.tta) == ("28 windows, stride 14", "scales 1.0 2.0, mirrored")
    assert found.value > 95


def test_the_paper_changed_what_dinov2_did_by_data_set() -> None:
    paper, dinov2 = LinearSegmentationConfig(), read_config(LinearSegmentationConfig, preset=PROTOCOL.presets["dinov2"])
    assert paper.choice("voc").optimizer == "sgd"
    assert paper.choice("ade20k").scales == (1.0, 1.32, 1.73)
    assert paper.choice("ade20k").optimizer == paper.choice("camvid").optimizer == "adamw"
    assert len({dinov2.choice(layout) for layout in ("voc", "ade20k", "camvid")}) == 1
    assert replace(paper, optimizer="adamw").choice("voc").optimizer == "adamw", "what is given prevails"
    assert (paper.recipe("voc", 1600).steps, dinov2.recipe("voc", 1600).steps) == (5000, 40_000)
    assert dinov2.warm_up * 40_000 == 1500
    assert [whole_patches(512, patch) for patch in (14, 16, None)] == [518, 512, 512]


def test_sets_of_different_classes_are_refused(tmp_path) -> None:
    task = stripes_task()
    task.train.source.classes = ["red", "green", "blue", "black"]
    with pytest.raises(EvalError, match="differ in black, white"):
        scores(make_context(tmp_path), task, SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 0}, "crop=0"),
        ({"stride": 0.0}, "stride=0.0"),
        ({"optimizer": "adam"}, "optimizer='adam'"),
        ({"ratio": [2.0, 1.0]}, "ratio="),
        ({"scales": []}, "scales="),
        ({"lr": 0.0}, "lr=0.0"),
        ({"seeds": []}, "seeds="),
    ],
)
def test_settings_out_of_range_are_named(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        LinearSegmentationConfig(**change)
