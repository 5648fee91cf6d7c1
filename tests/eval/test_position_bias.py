"""Position bias as a protocol: known answers, shared with RASA's evidence, independent of what may vary."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from franca.eval.context import Context, Engine
from franca.eval.datasets import OpenedSplit
from franca.eval.errors import EvalError
from franca.eval.protocol import Task
from franca.eval.protocols.clusters import kmeans
from franca.eval.protocols.position import fit_linear, grid_positions, score_positions
from franca.eval.protocols.position_bias import cluster_entropy, predict_position, suitable_clusters
from franca.eval.protocols.position_entropy import position_entropy
from franca.eval.protocols.position_protocol import PositionBiasConfig, run, some_images

SMALL = {"clusters": 16, "iterations": 10, "seeds": [0, 1], "size": 56}


def features(strength: float, images: int = 40, h: int = 5, w: int = 7, dim: int = 12, seed: int = 0) -> Tensor:
    """Noise, with the position along two of the features."""
    noise = torch.randn(images, h, w, dim, generator=torch.Generator().manual_seed(seed))
    noise[..., :2] += strength * (grid_positions(h, w).view(h, w, 2).float() - 0.5)
    return noise


def scores(given: Tensor, output=None, slices=(1,), **settings) -> dict:
    """What the protocol says of stored features, by metric, predictor and slice."""
    stored = SimpleNamespace(patches=given, index=torch.arange(len(given)))
    store = SimpleNamespace(patches=lambda split, view: stored)
    engine = Engine(SimpleNamespace(name="/runs/mine/teacher.pth"), torch.device("cpu"))
    context = Context(engine, store, output, slices=slices)
    task = Task(None, OpenedSplit("made", "val", range(len(given)), "hash"))
    found = list(run(context, task, PositionBiasConfig(**{**SMALL, **settings})))
    return {(score.metric, score.settings.get("predictor", ""), score.slice): score for score in found}


@pytest.fixture(autouse=True)
def no_figures(monkeypatch) -> None:
    monkeypatch.setattr("franca.eval.figures.can_draw", lambda: False)


class TestKnownAnswers:
    def test_features_that_are_the_position_tell_it(self) -> None:
        found = scores(features(200.0))
        for predictor, least in (("linear", 0.99), ("sigmoid", 0.9)):
            assert found["position_r2", predictor, "d"].value > least
        chance = found["position_rmse_by_chance", "", "d"].value
        assert found["position_rmse", "linear", "d"].value < 0.1 * chance
        assert found["cluster_entropy", "", "d"].value < 0.7

    def test_noise_tells_nothing(self) -> None:
        found = scores(features(0.0, images=120))
        for predictor in ("linear", "sigmoid"):
            assert abs(found["position_r2", predictor, "d"].value) < 0.03
            rmse = found["position_rmse", predictor, "d"].value
            assert rmse == pytest.approx(found["position_rmse_by_chance", "", "d"].value, rel=0.02)
        for metric in ("cluster_entropy", "cluster_entropy_by_patch"):
            assert found[metric, "", "d"].value == pytest.approx(1, abs=0.02)

    def test_the_slice_that_has_no_position_shows_none(self) -> None:
        given = features(200.0).flip(-1)  # the position lies in the last two features
        found = scores(given, slices=(1, 2))
        assert found["position_r2", "linear", "d"].value > 0.99
        assert abs(found["position_r2", "linear", "d/2"].value) < 0.1

    def test_numbers_by_hand(self) -> None:
        """Two features that are row and column, in units of the grid, and nothing else: an error of 0."""
        exact = (10 * grid_positions(3, 4)).view(1, 3, 4, 2).float().expand(12, 3, 4, 2)
        found = scores(exact, clusters=12)
        assert found["position_rmse", "linear", "d"].value == pytest.approx(0, abs=1e-3)
        expected = (grid_positions(3, 4) - 0.5).square().mean().sqrt().item()
        assert found["position_rmse_by_chance", "", "d"].value == pytest.approx(expected)


class TestMeasurement:
    def test_fitted_and_scored_images_differ(self) -> None:
        """Every other image is scored; those that are not scored decide the predictor alone."""
        given = features(3.0)
        expected = predict_position(given[::4], given[2::4], given[1::2])
        found = scores(given)
        assert found["position_rmse", "linear", "d"].value == pytest.approx(expected.linear.rmse)
        assert found["position_r2", "sigmoid", "d"].value == pytest.approx(expected.sigmoid.r2)
        entropies = [cluster_entropy(given[1::2], 14, 10, seed) for seed in (0, 1)]
        score = found["cluster_entropy", "", "d"]
        assert score.settings == {"clusters": 14}  # one for every 50 of 20 * 35 patches
        assert score.values == tuple(entropy.mean for entropy in entropies)
        assert score.value == pytest.approx(sum(score.values) / 2)

    def test_ridge_does_no_worse_than_least_squares_on_other_images(self) -> None:
        given = features(1.0, images=16, dim=100)
        plain = score_positions(fit_linear(given[::2]), given[1::2])
        assert predict_position(given[::4], given[2::4], given[1::2]).linear.mse < plain.mse

    def test_entropy_is_that_of_k_means_clusters(self) -> None:
        given = features(3.0)
        clusters = kmeans(given.flatten(0, 2), 9, 10, seed=4)
        expected = position_entropy(clusters.assignment, 5, 7, 9)
        assert torch.equal(cluster_entropy(given, 9, 10, 4).counts, expected.counts)

    def test_half_precision_features_are_read_as_they_are(self) -> None:
        exact, half = scores(features(3.0).half().float()), scores(features(3.0).half())
        for name, score in exact.items():
            assert half[name].value == pytest.approx(score.value, abs=1e-4), name

    def test_runs_agree_to_the_last_digit(self) -> None:
        assert scores(features(3.0)) == scores(features(3.0))

    def test_the_number_of_clusters_follows_the_patches(self) -> None:
        given = torch.zeros(20, 6, 6, 3)
        assert suitable_clusters(given, 512) == 20 * 36 // 50
        assert suitable_clusters(given, 8) == 8
        assert suitable_clusters(given[:2], 512) == 2


class TestProtocol:
    def test_some_images_are_spread_and_named_apart(self, make_source) -> None:
        split = OpenedSplit("folder", "val", make_source(30), "hash")
        part = some_images(split, 10)
        assert [part.source.name(i) for i in (0, 1, 9)] == ["image 0", "image 3", "image 27"]
        assert part.hash != split.hash
        assert some_images(split, 30) is split

    def test_figures_are_drawn_once_for_the_widest_slice(self, tmp_path, monkeypatch) -> None:
        monkeypatch.undo()
        scores(features(3.0), tmp_path, slices=(1, 2))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["clusters.png", "entropy.png", "predictions.png"]

    def test_without_matplotlib_the_scores_are_there_all_the_same(self, caplog) -> None:
        assert scores(features(3.0))
        assert "matplotlib" in caplog.text

    def test_too_few_images_are_refused(self) -> None:
        with pytest.raises(EvalError, match="needs 4 images, and 3 can be read"):
            scores(features(1.0, images=3))
        with pytest.raises(EvalError, match="position bias can't be measured: 4 images"):
            scores(features(1.0, images=8, h=2, w=2, dim=64))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [({"images": 3}, "images=3"), ({"clusters": 1}, "clusters=1"), ({"seeds": []}, r"seeds=\[\]")],
    )
    def test_settings_that_make_no_sense_are_refused(self, settings, message) -> None:
        with pytest.raises(ValueError, match=message):
            PositionBiasConfig(**settings)
