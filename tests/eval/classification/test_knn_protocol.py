"""The protocol knn on features with a known answer."""

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import normalize

from franca.config import ConfigError, read_config
from franca.eval.errors import EvalError
from franca.eval.protocols.knn import PROTOCOL, KnnConfig, knn_accuracy, run


def scores_of(planted, features, labels, classes, config=None, **options):
    context, task = planted(features, labels, classes, **options)
    return list(run(context, task, config or KnnConfig(ks=[1, 5])))


def test_features_that_name_the_class_are_always_right(planted, one_hot) -> None:
    labels = {"train": [n % 4 for n in range(40)], "test": [n % 4 for n in range(12)]}
    features = {name: one_hot(values, 4, seed=len(name)) for name, values in labels.items()}
    found = scores_of(planted, features, labels, 4, slices=(1, 4, 8), unreadable={"train": [0], "test": [3, 5]})
    by_slice = {name: [score.value for score in found if score.slice == name] for name in ("d", "d/4", "d/8")}
    assert by_slice["d"] == [100.0] * 8
    assert by_slice["d/4"] == [100.0] * 8
    assert max(by_slice["d/8"]) < 100  # two features can't name four classes, and the others are cut off
    settings = [score.settings for score in found if score.slice == "d"]
    assert len({tuple(each.items()) for each in settings}) == 8
    assert {score.metric for score in found} == {"top1"}


def test_features_that_know_nothing_give_chance(planted, noise) -> None:
    labels = {"train": [n % 5 for n in range(1000)], "test": [n % 5 for n in range(1000)]}
    features = {"train": noise(1000, seed=1), "test": noise(1000, seed=2)}
    for score in scores_of(planted, features, labels, 5, KnnConfig(ks=[20])):
        assert score.value == pytest.approx(20, abs=100 * 4 * (0.2 * 0.8 / 1000) ** 0.5)  # four standard deviations


def test_majority_equals_scikit_learn(noise) -> None:
    train, test = noise(80, seed=3)[0][:, 0], noise(60, seed=4)[0][:, 0]
    labels = [torch.randint(4, (len(side),), generator=torch.Generator().manual_seed(0)) for side in (train, test)]
    for k in (1, 4, 9):
        reference = KNeighborsClassifier(k, algorithm="brute").fit(normalize(train).numpy(), labels[0].numpy())
        wanted = 100 * reference.score(normalize(test).numpy(), labels[1].numpy())
        found = knn_accuracy(train, labels[0], test, labels[1], (k,), voting="majority")
        assert found == {k: pytest.approx(wanted)}


def test_class_token_and_mean_patch_stand_side_by_side(planted, noise) -> None:
    """Each alone tells two groups of classes apart, both together all four."""
    labels = [n % 4 for n in range(80)]
    number = torch.tensor(labels)
    features = [0.05 * part for part in noise(80, width=4, blocks=1)]
    features[0][:, 0, 0] += 2 * (number % 2) - 1
    features[1][:, 0, 0] += 2 * (number // 2) - 1
    sides = {"train": tuple(f[:60] for f in features), "test": tuple(f[60:] for f in features)}
    config = KnnConfig(ks=[9], voting=["soft"], features=["cls", "mean_patch", "cls+mean_patch"])
    found = scores_of(planted, sides, {"train": labels[:60], "test": labels[60:]}, 4, config)
    values = {score.settings["features"]: score.value for score in found}
    assert values["cls+mean_patch"] == 100.0
    assert max(values["cls"], values["mean_patch"]) < 80


def test_candidates_and_mean_per_class_are_heeded(planted, one_hot) -> None:
    labels = {"train": [n % 4 for n in range(40)], "test": [0, 0, 0, 1]}
    features = {"train": one_hot(labels["train"], 4), "test": one_hot([0, 0, 2, 1], 4, seed=5)}
    config = KnnConfig(ks=[3], voting=["majority"], features=["cls"])
    assert scores_of(planted, features, labels, 4, config)[0].value == 75.0
    found = scores_of(planted, features, labels, 4, config, mean_per_class=True)[0]
    assert (found.metric, found.value) == ("mean_per_class", pytest.approx(100 * (2 / 3 + 1) / 2))
    restricted = KnnConfig(ks=[40], voting=["soft"], features=["cls"])
    only = scores_of(planted, features, labels, 4, restricted, test={"candidates": [0, 1]})
    everything = scores_of(planted, features, labels, 4, restricted)
    assert only[0].value >= everything[0].value


def test_more_neighbours_than_images_are_left_out(planted, one_hot, caplog) -> None:
    labels = {"train": [0, 1] * 4, "test": [0, 1]}
    features = {name: one_hot(values, 2) for name, values in labels.items()}
    config = KnnConfig(ks=[1, 7, 8, 9, 200], voting=["soft"], features=["cls"])
    found = scores_of(planted, features, labels, 2, config, unreadable={"train": [3]})
    assert [score.settings["k"] for score in found] == [1, 7]
    assert [line.getMessage() for line in caplog.records] == [
        "there are only 8 training images: k = 9, 200 is left out",
        "there are only 7 training images: k = 8 is left out",
    ]


@pytest.mark.parametrize(("ks", "classes", "message"), [([9, 20], 2, r"ks=\[9, 20\] with 8"), ([1], 3, "the same")])
def test_what_can_not_be_asked_is_refused_before_any_feature_is_made(planted, ks, classes, message) -> None:
    context, task = planted({}, {"train": [0, 1] * 4, "test": [0, 1]}, 2)
    context.store = None
    task.test.source.classes = [f"class {n}" for n in range(classes)]
    with pytest.raises(EvalError, match=message):
        list(run(context, task, KnnConfig(ks=ks)))


@pytest.mark.parametrize("setting", ["ks=[]", "ks=[0]", "temperature=0", "voting=[hard]", "features=[patch]"])
def test_impossible_settings_are_refused(setting) -> None:
    with pytest.raises(ConfigError, match=setting.split("=")[0]):
        read_config(KnnConfig, overrides=[setting])


def test_defaults_are_those_of_the_paper() -> None:
    config = PROTOCOL.config()
    assert (config.ks, config.temperature, config.voting) == ([10, 20, 100, 200], 0.07, ["soft", "majority"])
