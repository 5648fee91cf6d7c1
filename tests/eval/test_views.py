"""What evaluation looks at: the right place of an image, and the same place of its mask."""

import pytest
import torch
from torch import Tensor

from franca.eval.views import CentralSquare, Half, ResizeCrop, Squash

SHAPES = [(60, 90), (90, 60), (64, 64), (1, 400), (400, 1), (7, 5)]
VIEWS = [ResizeCrop(40, 28), ResizeCrop(28, 28), Squash(28), CentralSquare(28)]


def quadrants(height: int, width: int) -> Tensor:
    """An image whose value says in which quarter a pixel lies, (H, W) uint8."""
    rows, columns = torch.arange(height) * 2 >= height, torch.arange(width) * 2 >= width
    return (rows[:, None] * 100 + columns[None] * 50).to(torch.uint8)


@pytest.mark.parametrize("view", VIEWS, ids=repr)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_becomes_a_square(view, shape) -> None:
    image = torch.full((3, *shape), 77, dtype=torch.uint8)
    assert view(image).shape == (3, 28, 28)
    assert view(image).unique().tolist() == [77]
    assert view.mask(image[0]).shape == (28, 28)


@pytest.mark.parametrize("view", VIEWS, ids=repr)
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (64, 64)])
def test_a_mask_shows_the_same_place_as_its_image(view, shape) -> None:
    mask = quadrants(*shape)
    image, seen = view(mask.expand(3, -1, -1)), view.mask(mask)
    inside = torch.ones(28, dtype=torch.bool)
    inside[11:17] = False  # near the borders of the quarters the image is blurred
    both = inside[:, None] & inside[None]
    assert torch.equal(image[0][both], seen[both])
    assert set(seen.unique().tolist()) == {0, 50, 100, 150}


def test_resize_crop_keeps_the_share_of_the_shorter_side() -> None:
    """Of 256 pixels the middle 224: a border of 16/256 of the shorter side is cut off."""
    image = torch.zeros(3, 256, 300, dtype=torch.uint8)
    image[:, :16], image[:, -16:] = 255, 255
    image[..., :38], image[..., -38:] = 255, 255
    assert ResizeCrop()(image).unique().tolist() == [0]
    image[:, 16] = 255
    assert ResizeCrop()(image)[:, 0].unique().tolist() == [255]


def test_squash_sees_the_whole_image() -> None:
    image = torch.zeros(3, 30, 90, dtype=torch.uint8)
    image[..., :20], image[..., -20:] = 255, 100
    seen = Squash(9)(image)[0]
    assert seen[:, 0].tolist() == [255] * 9
    assert seen[:, -1].tolist() == [100] * 9


def test_halves_are_disjoint_and_cover() -> None:
    image = torch.arange(6 * 8).view(1, 6, 8)
    first, second = Half(4).part(image), Half(4, second=True).part(image)
    assert torch.equal(torch.cat([first, second], dim=2), image)


@pytest.mark.parametrize("make", [lambda: ResizeCrop(10, 20), lambda: Squash(0), lambda: CentralSquare(0)])
def test_a_view_of_no_pixels_is_refused(make) -> None:
    with pytest.raises(ValueError, match=r"crop|size"):
        make()


def test_its_words_name_a_view() -> None:
    assert len({repr(view) for view in [*VIEWS, Half(28), Half(28, True), ResizeCrop()]}) == len(VIEWS) + 3
