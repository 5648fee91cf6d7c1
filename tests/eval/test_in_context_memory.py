"""The memory of in-context segmentation and what it says: reference values, a loop, cases worked by hand."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from franca.data.random_streams import generator
from franca.eval.datasets import VOID
from franca.eval.errors import EvalError
from franca.eval.metrics.segmentation import confusion_matrix, hungarian, mean_iou, renamed
from franca.eval.neighbours import Rows
from franca.eval.protocols.in_context_memory import (
    Memory,
    choose_rows,
    count_classes,
    remember,
    sample_patches,
    sampling_scores,
)
from franca.eval.protocols.in_context_prediction import Search, exact_search, predict_patches, predict_pixels


@dataclass
class Reference:
    """open-hummingbird-eval on synthetic features."""

    about: dict[str, Any]
    arrays: dict[str, Tensor]

    def counts(self) -> Tensor:
        """Of the training images, void counted as class 0 as there."""
        masks = self.arrays["train/labels"].clone()
        masks[masks == VOID] = 0
        return count_classes(masks, (self.about["grid"],) * 2, self.about["classes"])

    def memory(self, name: str) -> Memory:
        features, counts = self.arrays["train/features"].flatten(0, 1), self.counts()
        chosen = torch.arange(len(features))
        if name == "bounded":
            noise = torch.cat([self.arrays[f"bounded/uniform_noise_batch{batch}"] for batch in range(3)]).view(6, -1)
            wanted = self.about["results"]["bounded"]["samples_per_image"]
            per_image = self.about["grid"] ** 2
            chosen = torch.cat(
                [
                    sample_patches(of_image, wanted, draws) + number * per_image
                    for number, (of_image, draws) in enumerate(zip(counts, noise, strict=True))
                ]
            )
        return remember(features, counts.flatten(0, 2), chosen, self.about["patch"] ** 2)


def read(memory: Memory) -> Tensor:
    return memory.features.read(slice(None), torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def reference(parity_dir) -> Reference:
    with np.load(parity_dir / "hummingbird.npz", allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    return Reference(json.loads((parity_dir / "hummingbird.json").read_text()), arrays)


@pytest.mark.parametrize("name", ["unbounded", "bounded"])
def test_hummingbird(reference: Reference, name: str) -> None:
    about, arrays = reference.about, reference.arrays
    memory = reference.memory(name)
    features = torch.nn.functional.normalize(read(memory), dim=1)
    torch.testing.assert_close(features, arrays[f"{name}/memory_features"], rtol=0, atol=1e-6)
    torch.testing.assert_close(memory.votes(torch.arange(len(features))), arrays[f"{name}/memory_labels"])

    queries = arrays["val/features"].flatten(0, 1)
    found = predict_patches(queries, memory, exact_search(memory, about["n_neighbours"]), about["temperature"])
    torch.testing.assert_close(found.view(4, -1, about["classes"]), arrays[f"{name}/label_hat"], rtol=0, atol=1e-5)

    masks = arrays["val/labels"]
    grids = found.view(4, about["grid"], about["grid"], -1)
    predicted = torch.stack([predict_pixels(grid, *masks.shape[1:]) for grid in grids])
    assert torch.equal(predicted, arrays[f"{name}/prediction"].long())
    confusion = confusion_matrix(predicted, masks, about["classes"])
    assert torch.equal(confusion, arrays[f"{name}/confusion_gt_by_pred/plain"])
    metrics = about["results"][name]["metrics"]
    assert mean_iou(confusion, "zero") == pytest.approx(metrics["plain/identity"]["miou"], abs=1e-9)
    matched = renamed(confusion, hungarian(confusion))
    assert mean_iou(matched, "zero") == pytest.approx(about["results"][name]["evaluate_returned"], abs=1e-9)


def test_hummingbird_sampling_scores(reference: Reference) -> None:
    found = torch.stack([sampling_scores(of_image) for of_image in reference.counts()])
    torch.testing.assert_close(found, reference.arrays["sampling/patch_scores"])


@pytest.mark.parametrize(("patch", "kind"), [(4, torch.uint8), (16, torch.int16)])
def test_counts_are_those_of_a_loop(patch: int, kind: torch.dtype) -> None:
    random = torch.Generator().manual_seed(patch)
    masks = torch.randint(4, (2, 3 * patch, 2 * patch), dtype=torch.uint8, generator=random)
    masks[masks == 3] = VOID
    found = count_classes(masks, (3, 2), 3)
    assert found.dtype == kind
    for number in range(2):
        for row in range(3):
            for column in range(2):
                part = masks[number, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                assert found[number, row, column].tolist() == [int((part == c).sum()) for c in range(3)]


def test_patches_of_no_whole_pixels_are_refused() -> None:
    with pytest.raises(EvalError, match="grid of 3x3"):
        count_classes(torch.zeros(1, 10, 10, dtype=torch.uint8), (3, 3), 2)


def test_void_votes_for_nothing_and_fills_no_row() -> None:
    mask = torch.tensor([[[0, VOID, VOID, VOID], [1, 1, VOID, VOID]]], dtype=torch.uint8)
    counts = count_classes(mask, (1, 2), 2)
    assert counts.tolist() == [[[[1, 2], [0, 0]]]]
    assert choose_rows(counts, 0, iter([])).tolist() == [0]
    memory = Memory(Rows((torch.eye(2),)), counts.flatten(0, 2), 4)
    assert memory.votes(torch.tensor([0, 1])).tolist() == [[0.25, 0.5], [0, 0]]


def test_a_bounded_memory_prefers_rare_classes() -> None:
    """Class 1 is in one patch of 64: nearly every draw of 8 patches keeps it; patches that are all void are never."""
    mask = torch.zeros(1, 16, 16, dtype=torch.uint8)
    mask[0, 4:6, 6:8] = 1
    mask[0, :2] = VOID
    counts = count_classes(mask, (8, 8), 2)
    rare = 2 * 8 + 3
    draws = [choose_rows(counts, 8, iter([generator(seed)])) for seed in range(50)]
    assert all(len(draw) == len(draw.unique()) == 8 and draw.min() >= 8 for draw in draws)
    assert sum(rare in draw for draw in draws) >= 45
    assert len({tuple(draw.tolist()) for draw in draws}) > 40, "another seed, another memory"


def test_a_limit_above_all_patches_leaves_nothing_to_chance() -> None:
    counts = count_classes(torch.zeros(3, 4, 4, dtype=torch.uint8), (2, 2), 2)
    assert choose_rows(counts, 12, iter([])).tolist() == list(range(12))
    assert len(choose_rows(counts, 2, map(generator, range(3)))) == 3, "one patch of each image at least"


def test_chosen_rows_stay_where_they_are() -> None:
    features, counts = torch.randn(9, 5), torch.arange(18).view(9, 2)
    memory = remember(features, counts, torch.tensor([7, 0, 3]), 4)
    assert memory.features.parts[0] is features
    assert torch.equal(read(memory), features[[7, 0, 3]])
    assert torch.equal(read(memory.first(2)), features[[7, 0, 3], :2])
    assert memory.counts is counts
    assert torch.equal(memory.votes(torch.tensor([[1, 2]])), counts[[0, 3]][None] / 4)
    queries = torch.randn(4, 5)
    expected = predict_patches(queries, *searched(Memory(Rows((features[[7, 0, 3]],)), counts[[7, 0, 3]], 4)), 0.1)
    assert torch.equal(predict_patches(queries, *searched(memory), 0.1), expected)


def searched(memory: Memory) -> tuple[Memory, Search]:
    return memory, exact_search(memory, neighbours=2)


def test_nothing_to_remember_is_an_error() -> None:
    with pytest.raises(EvalError, match="every pixel of every training mask is void"):
        remember(torch.ones(2, 2), torch.zeros(2, 2), torch.tensor([], dtype=torch.int64), 4)


def test_prediction_is_attention_over_the_memory() -> None:
    """With all rows as neighbours it is softmax(q k / T) v; the length of a query and of a row doesn't matter."""
    torch.manual_seed(0)
    rows, queries = torch.randn(12, 6), torch.randn(5, 6)
    counts = torch.randint(10, (12, 3))
    unit = torch.nn.functional.normalize
    expected = (unit(queries, dim=1) @ unit(rows, dim=1).T / 0.1).softmax(dim=1) @ (counts / 30)
    for memory, asked in (
        (Memory(Rows((rows,)), counts, 30), queries),
        (Memory(Rows((rows * torch.rand(12, 1),)), counts, 30), queries * 7),
    ):
        found = predict_patches(asked, memory, exact_search(memory, neighbours=12), temperature=0.1)
        torch.testing.assert_close(found, expected)


def test_pixels_take_the_class_that_prevails_where_they_lie() -> None:
    grid = torch.zeros(2, 2, 3)
    grid[0, 0, 0] = grid[0, 1, 1] = grid[1, :, 2] = 1.0
    found = predict_pixels(grid, 8, 12)
    assert found[0, 0] == 0
    assert found[0, -1] == 1
    assert (found[-3:] == 2).all()
