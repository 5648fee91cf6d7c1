"""The protocol logistic on features with a known answer, and interrupted."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from franca.config import ConfigError, read_config
from franca.eval.errors import EvalError
from franca.eval.protocols import logistic
from franca.eval.protocols.linear_head import load_head
from franca.eval.protocols.logistic import LogisticConfig, run, split_for_choice

SMALL = LogisticConfig(weakest=1e-3, strongest=1e3, strengths=5)


def clouds(count: int, classes: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Overlapping classes: (cls, mean_patch) and labels."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    cls = centres[labels] + 1.5 * torch.randn(count, width, generator=random)
    return cls[:, None], torch.randn(count, 1, width, generator=random), labels.tolist()


def test_features_that_name_the_class_are_always_right(planted, one_hot) -> None:
    labels = {"train": [n % 4 for n in range(60)], "test": [n % 4 for n in range(12)]}
    features = {name: one_hot(values, 4, seed=len(name)) for name, values in labels.items()}
    context, task = planted(features, labels, 4, slices=(1, 4), unreadable={"train": [1], "test": [2]})
    found = list(run(context, task, SMALL))
    assert [(score.slice, score.value) for score in found] == [("d", 100.0), ("d/4", 100.0)]


def test_features_that_know_nothing_give_chance(planted, noise) -> None:
    labels = {"train": [n % 5 for n in range(400)], "test": [n % 5 for n in range(1000)]}
    features = {"train": noise(400, seed=1), "test": noise(1000, seed=2)}
    (score,) = run(*planted(features, labels, 5), SMALL)
    assert score.value == pytest.approx(20, abs=100 * 4 * (0.2 * 0.8 / 1000) ** 0.5)  # four standard deviations


@pytest.mark.parametrize("mean_per_class", [False, True])
def test_equals_scikit_learn_fitted_by_hand(planted, mean_per_class) -> None:
    """Every C on the data set's own validation split, the best one on all training images."""
    cls, patch, labels = clouds(160, 3, 6, seed=0)
    test_cls, test_patch, test_labels = clouds(90, 3, 6, seed=1)
    validation = list(range(100, 160))
    context, task = planted(
        {"train": (cls, patch), "test": (test_cls, test_patch)},
        {"train": labels, "test": test_labels},
        3,
        train={"validation": validation},
        mean_per_class=mean_per_class,
    )
    (score,) = run(context, task, SMALL)
    inputs, wanted = cls[:, 0].half().double().numpy(), torch.tensor(labels).numpy()
    accuracy = {}
    for strength in SMALL.grid():
        model = LogisticRegression(C=strength, solver="newton-cg", tol=1e-10, max_iter=1000)
        accuracy[strength] = model.fit(inputs[:100], wanted[:100]).score(inputs[100:], wanted[100:])
    best = max(accuracy, key=lambda strength: (accuracy[strength], -strength))
    model = LogisticRegression(C=best, solver="newton-cg", tol=1e-10, max_iter=1000).fit(inputs, wanted)
    assert score.value == pytest.approx(100 * model.score(test_cls[:, 0].half().double().numpy(), test_labels))
    head, about, classes = load_head(context.output / "logistic-d.pth")
    torch.testing.assert_close(head.weight, torch.from_numpy(model.coef_), atol=1e-5, rtol=0)
    assert about["C"] == pytest.approx(best)
    assert (about["model"], about["data"], len(classes)) == ("planted", "hash of train", 3)


@pytest.mark.parametrize("stop", [4, 6, 10, 12])
def test_an_interrupted_evaluation_goes_on_to_the_same_result(planted, tmp_path, monkeypatch, stop) -> None:
    """Two slices of 5 strengths and one fit of all images each, stopped at one of these 12."""
    cls, patch, labels = clouds(120, 3, 6, seed=0)
    features, both = {"train": (cls, patch), "test": (cls, patch)}, {"train": labels, "test": labels}
    whole = list(run(*planted(features, both, 3, (1, 2), output=tmp_path / "whole"), SMALL))
    context, task = planted(features, both, 3, (1, 2), output=tmp_path / "parts")
    fitted, fit = [], logistic.fit_logistic

    def stopped(*arguments):
        fitted.append((arguments[0].shape[1], arguments[3]))
        if len(fitted) == stop:
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(logistic, "fit_logistic", stopped)
    with pytest.raises(KeyboardInterrupt):
        list(run(context, task, SMALL))
    assert list(run(context, task, SMALL)) == whole
    assert len(fitted) == 12 + 1  # the one that was stopped twice, the others once
    assert fitted[stop - 1] == fitted[stop]
    assert [width for width, _ in fitted] == sorted((width for width, _ in fitted), reverse=True)
    for name in ("logistic-d.pth", "logistic-d_2.pth"):
        heads = [load_head(tmp_path / folder / name)[0] for folder in ("whole", "parts")]
        assert torch.equal(heads[0].weight, heads[1].weight)
    assert not list((tmp_path / "parts").glob("*.partial"))


def test_a_score_names_its_seed(planted, one_hot) -> None:
    labels = [n % 4 for n in range(60)]
    both = {"train": one_hot(labels, 4), "test": one_hot(labels, 4)}
    (score,) = run(*planted(both, {"train": labels, "test": labels}, 4), LogisticConfig(strengths=1, seed=7))
    assert (score.seeds, score.values) == ((7,), (score.value,))


def test_the_data_sets_own_validation_split_is_used(noise) -> None:
    index, labels = torch.tensor([0, 2, 3, 5]), torch.zeros(4, dtype=torch.int64)
    learn, check = split_for_choice(index, labels, [1, 2, 5], SMALL)
    assert (learn.tolist(), check.tolist()) == ([0, 2], [1, 3])
    with pytest.raises(EvalError, match="0 of 4 training images"):
        split_for_choice(index, labels, [1, 4], SMALL)


def test_grid_is_that_of_dinov2() -> None:
    grid = LogisticConfig().grid()
    assert len(grid) == 45
    assert grid == pytest.approx([10 ** (-6 + 11 * n / 44) for n in range(45)])


@pytest.mark.parametrize(
    "setting", ["weakest=0", "strengths=0", "steps=0", "tolerance=0", "holdout=0.6", "precision=fp16"]
)
def test_impossible_settings_are_refused(setting) -> None:
    with pytest.raises(ConfigError, match=setting.split("=")[0]):
        read_config(LogisticConfig, overrides=[setting])
