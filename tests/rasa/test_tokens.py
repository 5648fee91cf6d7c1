"""Which patch features RASA takes: square grids; everything else is refused with the option that sets the size."""

import pytest
import torch
from torch import Tensor, nn

from rasa import RasaError
from rasa.tokens import patch_features

IMAGES = torch.randn(2, 3, 56, 56)


def test_a_square_grid_is_taken_as_it_is() -> None:
    maps = nn.functional.avg_pool2d(IMAGES, 14)
    found = patch_features(lambda images: nn.functional.avg_pool2d(images, 14).double(), IMAGES, "mine")
    torch.testing.assert_close(found, maps.permute(0, 2, 3, 1))


def test_maps_that_are_not_square_are_refused() -> None:
    with pytest.raises(RasaError, match=r"images of 56 x 56 pixels form a grid of \(4, 5\); RASA needs a square one"):
        patch_features(lambda images: torch.zeros(2, 8, 4, 5), IMAGES, "mine")


@pytest.mark.parametrize("output", [torch.zeros(2, 8, 1, 1), torch.zeros(2, 1, 8)], ids=["map", "tokens"])
def test_a_single_patch_has_no_place(output: Tensor) -> None:
    with pytest.raises(RasaError, match=r"\(1, 1\).*at least 2 x 2: change data\.size"):
        patch_features(lambda images: output, IMAGES, "mine")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(2, 17, 8, 2, 2), "not pooled ones"),
        (None, "returned NoneType"),
        (torch.zeros(2, 14, 8), "no square"),
    ],
)
def test_other_outputs_are_refused_with_the_size(output: Tensor | None, message: str) -> None:
    with pytest.raises(RasaError, match=rf"^mine .*{message}.*data\.size=56"):
        patch_features(lambda images: output, IMAGES, "mine")


def test_a_size_that_the_network_refuses_is_named() -> None:
    def refuse(images: Tensor) -> Tensor:
        raise ValueError("patches of 16 don't divide it")

    with pytest.raises(RasaError, match=r"mine takes no images of 56 x 56 pixels \(patches of 16.*data\.size=56"):
        patch_features(refuse, IMAGES, "mine")
