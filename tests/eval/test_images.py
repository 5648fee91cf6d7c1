"""What evaluation sees is complete, in order, and the same however it is decoded."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from franca.eval.images import EvalImages
from franca.eval.parts import evenly_spaced, split_in_two
from franca.eval.views import CentralSquare, Half


def rows(images: EvalImages, batch_size: int = 64) -> tuple[Tensor, list[int]]:
    batches = list(images.batches(batch_size))
    assert all(len(batch.index) <= batch_size for batch in batches)
    return torch.cat([batch.pixels for batch in batches]), torch.cat([batch.index for batch in batches]).tolist()


@pytest.mark.parametrize("broken", [(), (0,), (3, 4, 39), tuple(range(5, 38))])
def test_every_readable_image_once_in_order(make_source, broken) -> None:
    source = make_source(40, broken=broken)
    images = EvalImages(source, CentralSquare(16))
    pixels, index = rows(images, 7)
    assert index == [number for number in range(40) if number not in broken]
    for row, number in zip(pixels, index, strict=True):
        torch.testing.assert_close(row, CentralSquare(16)(source.images[number]), rtol=0, atol=0)
    assert images.skipped == {number: f"image {number}: cut off" for number in broken}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_how_it_is_decoded_changes_nothing(make_source, workers, cache_bytes, batch_size) -> None:
    source = make_source(37, broken=(2, 33))
    expected = rows(EvalImages(source, Half(20)))
    images = EvalImages(source, Half(20), workers=workers, cache_bytes=cache_bytes)
    for _ in range(2):  # the second pass reads the memory, where there is one
        pixels, index = rows(images, batch_size)
        torch.testing.assert_close(pixels, expected[0], rtol=0, atol=0)
        assert index == expected[1]


def test_second_pass_decodes_only_what_does_not_fit(make_source) -> None:
    for cache_bytes, loads in ((10 * 3 * 16 * 16, 10), (10 * 3 * 16 * 16 - 1, 20)):
        source = make_source(10)
        images = EvalImages(source, CentralSquare(16), cache_bytes=cache_bytes)
        for _ in range(2):
            rows(images)
        assert source.loads == loads


def test_no_random_number_is_used(make_source) -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        rows(EvalImages(make_source(4), CentralSquare(16), workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8), (3, 7, 7), (1, 9, 30), (3, 10, 11)])
def test_halves_cover_the_image_along_its_longer_side(shape) -> None:
    image = torch.arange(torch.Size(shape).numel()).view(shape)
    halves = Half(1).part(image), Half(1, second=True).part(image)
    axis = 2 if shape[2] >= shape[1] else 1
    assert torch.equal(torch.cat(halves).unique(), image.flatten())
    shared = shape[axis] % 2  # the middle row or column of an odd side
    assert halves[0].shape[axis] + halves[1].shape[axis] == shape[axis] + shared


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 1, 2), (3, 1, 5000), (3, 5000, 1), (1, 4, 4), (4, 300, 2)])
def test_odd_shapes_become_squares(shape) -> None:
    image = torch.full(shape, 77, dtype=torch.uint8)
    for second in (False, True):
        resized = Half(14, second)(image)
        assert resized.shape == (shape[0], 14, 14)
        assert (resized == 77).all()


def test_the_view_is_cut_before_resizing(make_source) -> None:
    source = make_source(5)
    pixels, _ = rows(EvalImages(source, Half(20, second=True)))
    for row, image in zip(pixels, source.images, strict=True):
        assert torch.equal(row, Half(20, second=True)(image))


def test_square_shows_the_middle() -> None:
    image = torch.zeros(3, 10, 30, dtype=torch.uint8)
    image[..., 10:20] = 200
    assert (CentralSquare(10)(image) == 200).all()


def test_nothing_readable_is_an_error_that_says_why(make_source) -> None:
    with pytest.raises(ValueError, match="none of 3 images can be read, the first: image 0: cut off"):
        next(EvalImages(make_source(3, broken=(0, 1, 2)), CentralSquare(16)).batches())


@pytest.mark.parametrize(("count", "size"), [(0, 16), (3, 0)])
def test_empty_questions_are_refused(make_source, count, size) -> None:
    with pytest.raises(ValueError, match="0"):
        EvalImages(make_source(count), CentralSquare(size))


def test_split_in_two_halves_every_class(make_source) -> None:
    source = make_source(30, classes=4)
    first, second = split_in_two(source)
    assert sorted(first.indices + second.indices) == list(range(30))
    for label in range(4):
        counts = [part.labels.count(label) for part in (first, second)]
        assert counts[0] - counts[1] in (0, 1)
    assert [source.labels[index] for index in first.indices] == first.labels
    assert first.classes == source.classes
    assert torch.equal(second.load(3), source.images[second.indices[3]])
    assert second.name(3) == f"image {second.indices[3]}"


def test_split_needs_labels(make_source) -> None:
    with pytest.raises(ValueError, match="labels"):
        split_in_two(make_source(4))


@pytest.mark.parametrize(("count", "wanted"), [(10, 3), (10, 9), (1000, 7)])
def test_evenly_spaced_covers_the_source(make_source, count, wanted) -> None:
    indices = evenly_spaced(make_source(count), wanted).indices
    gaps = {after - before for before, after in pairwise(indices)}
    assert len(indices) == wanted
    assert indices[0] == 0
    assert gaps <= {count // wanted, count // wanted + 1}


def test_a_small_source_is_taken_whole(make_source) -> None:
    source = make_source(4)
    assert evenly_spaced(source, 4) is source
