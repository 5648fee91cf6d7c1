"""Over-clustering: matching worked by hand and by trying everything, known answers, independence of what may vary."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import permutations, product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from franca.eval.context import Context, Engine
from franca.eval.datasets import VOID, OpenedSplit
from franca.eval.metrics.segmentation import mean_iou, renamed
from franca.eval.protocol import Task
from franca.eval.protocols import overclustering
from franca.eval.protocols.overclustering import (
    OverclusteringConfig,
    cluster_patches,
    count_pixels,
    match_clusters,
    run,
)

SMALL = {"size": 28, "mask_size": 8, "iterations": 20, "restarts": 2, "seeds": [0, 1]}


class Masks:
    """Images that are nothing but their masks."""

    labels = None

    def __init__(self, masks: Tensor, classes: int) -> None:
        self.masks, self.classes = masks, [f"class {number}" for number in range(classes)]

    def __len__(self) -> int:
        return len(self.masks)

    def mask(self, index: int) -> Tensor:
        return self.masks[index]


def patch_masks(images: int, classes: int, side: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A class for every patch, (I, side, side), and masks of 2x2 pixels for each."""
    labels = torch.randint(classes, (images, side, side), generator=torch.Generator().manual_seed(seed))
    return labels, labels.repeat_interleave(2, 1).repeat_interleave(2, 2).to(torch.uint8)


@pytest.fixture
def scores(tmp_path: Path) -> Callable[..., list]:
    return partial(score, tmp_path)


def score(output: Path, features: Tensor, masks: Tensor, classes: int, slices=(1,), **settings) -> list:
    """What the protocol says of stored features (I, h, w, D)."""
    stored = SimpleNamespace(patches=features, index=torch.arange(len(features)))
    store = SimpleNamespace(patches=lambda split, view: stored)
    context = Context(Engine(None, torch.device("cpu")), store, output, slices=slices)
    task = Task(None, OpenedSplit("made", "val", Masks(masks, classes), "hash"))
    return list(run(context, task, OverclusteringConfig(**{**SMALL, "mask_size": masks.shape[-1], **settings})))


class TestMatching:
    def test_by_hand(self) -> None:
        """Clusters 0 and 3 are mostly class 0, cluster 1 is class 1, cluster 2 is mostly class 2."""
        counts = torch.tensor([[90, 0, 20, 6], [10, 40, 0, 4], [0, 0, 30, 0]])
        found = match_clusters(counts)
        assert found.tolist() == [0, 1, 2, 0]
        expected = (96 / 130, 40 / 54, 30 / 50)  # intersection, and union: 96 + 20 missed + 14 wrong
        assert mean_iou(renamed(counts, found)) == pytest.approx(sum(expected) / 3)

    @pytest.mark.parametrize("seed", range(5))
    def test_no_other_assignment_of_merged_clusters_is_better(self, seed) -> None:
        counts = torch.randint(60, (4, 9), generator=torch.Generator().manual_seed(seed))
        greedy = counts.argmax(dim=0)
        best = max(mean_iou(renamed(counts, torch.tensor(order)[greedy]), "zero") for order in permutations(range(4)))
        assert mean_iou(renamed(counts, match_clusters(counts)), "zero") == pytest.approx(best)

    def test_as_many_clusters_as_classes_are_matched_one_to_one(self) -> None:
        """Two clusters of mostly class 0 can't both be it."""
        counts = torch.tensor([[50, 40, 0], [0, 30, 1], [0, 0, 20]])
        assert match_clusters(counts).tolist() == [0, 1, 2]
        assert match_clusters(torch.cat([counts, counts[:, :1]], dim=1)).tolist()[:2] == [0, 0]

    def test_order_of_clusters_plays_no_part(self) -> None:
        counts = torch.randint(60, (5, 30), generator=torch.Generator().manual_seed(1))
        order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
        assert torch.equal(match_clusters(counts)[order], match_clusters(counts[:, order]))


class TestCounting:
    def test_every_pixel_counts_for_the_cluster_of_its_patch(self) -> None:
        assignment = torch.tensor([[[0, 1], [2, 0]]])
        mask = torch.tensor([[[0, 0, 1, 1], [0, VOID, 1, 0], [1, 1, 0, 0], [VOID, VOID, 1, 0]]], dtype=torch.uint8)
        counts = count_pixels(assignment, mask, 3, 2)
        assert counts.tolist() == [[3 + 3, 1, 0], [1, 3, 2]]

    def test_sizes_that_do_not_divide(self) -> None:
        """Against the rule written out: the patch that the middle of the pixel lies in."""
        assignment = torch.randint(7, (3, 5, 4), generator=torch.Generator().manual_seed(0))
        masks = torch.randint(3, (3, 13, 13), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
        counts = torch.zeros(3, 7, dtype=torch.int64)
        for image, row, column in product(range(3), range(13), range(13)):
            patch = assignment[image, int((row + 0.5) / 13 * 5), int((column + 0.5) / 13 * 4)]
            counts[masks[image, row, column].long(), patch] += 1
        assert torch.equal(count_pixels(assignment, masks, 7, 3), counts)


class TestClustering:
    def test_all_rows_go_to_centres_that_were_found_among_some(self) -> None:
        points = 10 * torch.eye(6)
        labels = torch.randint(6, (3000,), generator=torch.Generator().manual_seed(0))
        rows = points[labels] + 0.1 * torch.randn(3000, 6, generator=torch.Generator().manual_seed(1))
        config = OverclusteringConfig(rows_per_cluster=40, iterations=20)
        found = cluster_patches(rows, 6, config, 0, torch.device("cpu"))
        pairs = torch.stack([labels, found], dim=1).unique(dim=0)
        assert len(pairs) == 6
        again = cluster_patches(rows, 6, config, 0, torch.device("cpu"))
        assert torch.equal(found, again)

    def test_of_several_starts_the_best_counts(self) -> None:
        rows = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))

        def spread(restarts: int) -> float:
            config = OverclusteringConfig(restarts=restarts, rows_per_cluster=0, iterations=5)
            found = cluster_patches(rows, 12, config, 0, torch.device("cpu"))
            return sum(float((rows[found == k] - rows[found == k].mean(0)).square().sum()) for k in range(12))

        assert spread(8) <= spread(1) * 1.001


class TestProtocol:
    def test_features_that_encode_the_class_give_100_percent(self, scores) -> None:
        labels, masks = patch_masks(12, 5)
        masks[0, :2] = VOID
        features = torch.nn.functional.one_hot(labels, 5).float()
        features += 0.01 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
        for clusters in (5, 20):
            (score,) = scores(features, masks, 5, clusters=[clusters], components=4)
            assert score.value == pytest.approx(100)
            assert score.values == pytest.approx((100, 100))
            assert (score.metric, score.unit, score.seeds, score.settings) == (
                "miou",
                "%",
                (0, 1),
                {"clusters": clusters},
            )

    def test_noise_gives_what_naming_the_most_frequent_class_gives(self, scores) -> None:
        """All clusters go to it: its IoU is its share, that of the others 0."""
        generator = torch.Generator().manual_seed(0)
        labels = torch.multinomial(torch.tensor([0.7, 0.1, 0.1, 0.1]), 40 * 64, True, generator=generator)
        masks = labels.view(40, 8, 8).to(torch.uint8)
        share = (labels == 0).double().mean().item()
        noise = torch.randn(40, 8, 8, 6, generator=generator)
        (score,) = scores(noise, masks, 4, clusters=[6], components=0)
        assert score.value == pytest.approx(100 * share / 4, abs=0.1)

    def test_classes_that_are_nowhere_are_not_counted(self, scores) -> None:
        labels, masks = patch_masks(8, 3)
        features = torch.nn.functional.one_hot(labels, 8).float()
        (score,) = scores(features, masks, 30, clusters=[40], components=0, restarts=1)
        assert score.value == pytest.approx(100)

    def test_slices_are_cut_before_anything_else(self, scores) -> None:
        """The class lies in the second half of the features alone."""
        labels, masks = patch_masks(12, 4)
        features = torch.randn(12, 4, 4, 16, generator=torch.Generator().manual_seed(0))
        features[..., 8:] = torch.nn.functional.one_hot(labels, 4).repeat(1, 1, 1, 2)
        whole, half = scores(features, masks, 4, slices=(1, 2), clusters=[12], components=8)
        assert (whole.slice, half.slice) == ("d", "d/2")
        assert whole.value > 99
        assert half.value < 50

    @pytest.mark.parametrize("components", [0, 4])
    def test_stored_features_are_never_copied_as_a_whole(self, scores, monkeypatch, components) -> None:
        """k-means and the principal components get a view of the file, whatever the slice."""
        labels, masks = patch_masks(6, 3)
        features = torch.nn.functional.one_hot(labels, 8).half()
        name = "principal_components" if components else "cluster_patches"
        used, seen = getattr(overclustering, name), []

        def seeing(rows, *others, **settings):
            seen.append((tuple(rows.shape), rows.data_ptr(), rows.dtype))
            return used(rows, *others, **settings)

        monkeypatch.setattr(overclustering, name, seeing)
        scores(features, masks, 3, slices=(1, 2), clusters=[5], components=components, seeds=[0], restarts=1)
        assert seen == [((96, width), features.data_ptr(), torch.float16) for width in (8, 4)]

    def test_seeds_say_how_much_is_luck(self, scores) -> None:
        labels, masks = patch_masks(20, 4)
        features = torch.nn.functional.one_hot(labels, 8).float()
        features += 0.8 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
        first, again = (scores(features, masks, 4, clusters=[10], seeds=[0, 1, 2])[0] for _ in range(2))
        assert first == again
        assert len(set(first.values)) > 1
        assert first.value == pytest.approx(sum(first.values) / 3)
        alone = scores(features, masks, 4, clusters=[10], seeds=[2])[0]
        assert alone.values == first.values[2:]

    def test_an_interrupted_run_goes_on(self, scores, monkeypatch, tmp_path) -> None:
        """Stopped in its third k-means, it does that and the rest, and finds what a run in one go finds."""
        labels, masks = patch_masks(8, 3)
        noise = torch.randn(8, 4, 4, 8, generator=torch.Generator().manual_seed(1))
        features = torch.nn.functional.one_hot(labels, 8) + 0.8 * noise
        settings = {"clusters": [6, 9], "components": 4}
        expected = scores(features, masks, 3, **settings)
        asked: list[tuple[int, int]] = []

        def counted(rows, clusters, config, seed, device) -> Tensor:
            asked.append((clusters, seed))
            if len(asked) == 3:
                raise KeyboardInterrupt
            return cluster_patches(rows, clusters, config, seed, device)

        monkeypatch.setattr("franca.eval.protocols.overclustering.cluster_patches", counted)
        with pytest.raises(KeyboardInterrupt):
            scores(features, masks, 3, **settings)
        assert scores(features, masks, 3, **settings) == expected
        assert asked == [(6, 0), (6, 1), (9, 0), (9, 0), (9, 1)]
        assert list(tmp_path.iterdir()) == []

    def test_features_of_any_scale_and_rotation_score_alike(self, scores) -> None:
        """They are standardised, as far as each feature goes; rotation changes what a feature is, so scale alone."""
        labels, masks = patch_masks(16, 4)
        features = torch.nn.functional.one_hot(labels, 8).float()
        features += 0.5 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
        scaled = features * torch.logspace(-2, 3, 8) + 7
        settings = {"clusters": [12], "components": 6}
        assert scores(scaled, masks, 4, **settings)[0].value == pytest.approx(
            scores(features, masks, 4, **settings)[0].value, abs=0.5
        )


def test_the_defaults_are_the_papers() -> None:
    config = OverclusteringConfig()
    assert (config.clusters, config.size, config.mask_size, len(config.seeds)) == ([100, 300], 448, 100, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clusters": []}, r"clusters=\[\]"),
        ({"clusters": [1]}, r"clusters=\[1\]"),
        ({"seeds": [3, 3]}, r"seeds=\[3, 3\]"),
        ({"restarts": 0}, "restarts=0"),
        ({"components": -1}, "components=-1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        OverclusteringConfig(**settings)
    assert replace(OverclusteringConfig(), seeds=[1]).seeds == [1]
