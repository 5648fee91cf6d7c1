"""The scores that a training run logs."""

import pytest
import torch

from franca.eval.features import extract_features
from franca.eval.images import EvalImages
from franca.eval.online import OnlineKNN
from franca.eval.protocols.knn import knn_accuracy
from franca.eval.views import CentralSquare


def test_scores_are_those_of_the_whole_protocol(make_source, model) -> None:
    train, test = make_source(30, classes=3, broken=(4,)), make_source(20, classes=3, seed=1)
    scores = OnlineKNN(train, test, 28, ks=(1, 5))(model)
    memory, queries = (extract_features(model, EvalImages(source, CentralSquare(28))) for source in (train, test))
    expected = {
        "cls": knn_accuracy(memory.cls, memory.labels, queries.cls, queries.labels, (1, 5)),
        "patch": knn_accuracy(memory.mean_patch, memory.labels, queries.mean_patch, queries.labels, (1, 5)),
    }
    assert scores == {f"knn_{name}@{k}": score for name, by_k in expected.items() for k, score in by_k.items()}


def test_images_are_decoded_once(make_source, model) -> None:
    train, test = make_source(24, classes=3), make_source(8, classes=3)
    online = OnlineKNN(train, test, 28, ks=(2,))
    first = online(model)
    assert online(model) == first
    assert (train.loads, test.loads) == (24, 8)


def test_a_better_model_scores_higher(make_source) -> None:
    """Bright and dark images, a model that sees brightness and one that sees nothing."""
    train, test = make_source(40, classes=2), make_source(40, classes=2, seed=1)
    for source in (train, test):
        source.images = [image // 2 + 100 * (i % 2) for i, image in enumerate(source.images)]

    class Brightness(torch.nn.Module):
        def __init__(self, gain: float) -> None:
            super().__init__()
            self.gain = gain

        def forward_features(self, images):
            level = self.gain * images.mean(dim=(1, 2, 3))
            angle = torch.stack([level.cos(), level.sin()], dim=1)
            return {"x_norm_clstoken": angle, "x_norm_patchtokens": angle[:, None]}

    online = OnlineKNN(train, test, 14, ks=(20,))
    assert online(Brightness(0.5))["knn_cls@20"] == 100.0
    assert online(Brightness(0.0))["knn_cls@20"] == 50.0


def test_a_part_of_large_sets(make_source, model) -> None:
    train, test = make_source(30, classes=3), make_source(20, classes=3)
    OnlineKNN(train, test, 28, ks=(3,), max_images=10)(model)
    assert (train.loads, test.loads) == (10, 10)


def test_labels_are_needed(make_source) -> None:
    with pytest.raises(ValueError, match="k-NN needs labels"):
        OnlineKNN(make_source(5, classes=2), make_source(5), 28)


def test_classes_must_agree(make_source) -> None:
    with pytest.raises(ValueError, match="only in one of them: class 2"):
        OnlineKNN(make_source(30, classes=3), make_source(30, classes=2), 28)


def test_too_large_k_is_an_error_before_training(make_source) -> None:
    with pytest.raises(ValueError, match=r"k=\[20\] with 10 training images"):
        OnlineKNN(make_source(10, classes=2), make_source(10, classes=2), 28)
