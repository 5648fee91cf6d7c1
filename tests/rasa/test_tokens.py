"""What networks return becomes a grid of patches, or an error that says what came and for which size."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rasa import RasaError
from rasa.tokens import patch_grid, prefix_tokens

SIDE = 56


def tokens(prefix: int, side: int = 4) -> Tensor:
    """(1, prefix + side², 2): zeros, then the row and the column of every patch."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    patches = torch.stack([rows, columns], dim=-1).flatten(0, 1).float()
    return torch.cat([torch.zeros(prefix, 2), patches])[None]


GRID = tokens(0).view(1, 4, 4, 2)


@pytest.mark.parametrize(
    ("output", "prefix"),
    [
        (tokens(0), None),
        (tokens(1), None),  # class token
        (tokens(2), None),  # and one for distillation
        (tokens(5), None),  # and four registers
        (tokens(9), 9),  # 25 tokens in all, which would be a square
        (GRID.permute(0, 3, 1, 2), None),
        (GRID.permute(0, 3, 1, 2).double(), None),
        ({"x_norm_patchtokens": tokens(0), "x_norm_clstoken": torch.zeros(1, 2)}, 1),
        (SimpleNamespace(last_hidden_state=tokens(1)), 1),
        (SimpleNamespace(last_hidden_state=tokens(1)), None),
    ],
)
def test_patches_keep_their_place(output: Any, prefix: int | None) -> None:
    torch.testing.assert_close(patch_grid(output, SIDE, "mine", prefix), GRID)


def test_outputs_of_transformers_are_mappings_with_all_their_tokens() -> None:
    from transformers.modeling_outputs import BaseModelOutput

    torch.testing.assert_close(patch_grid(BaseModelOutput(last_hidden_state=tokens(1)), SIDE, "mine", 1), GRID)


@pytest.mark.parametrize(
    ("count", "prefix"),
    [(7, None), (10, None), (14, None), (18, 1), (12, None), (224, None), (1000, None), (3, 5)],
)
def test_tokens_that_are_no_square_are_refused(count: int, prefix: int | None) -> None:
    with pytest.raises(
        RasaError, match=rf"^mine returned {count} tokens for images of 56 x 56 pixels.* form no square"
    ):
        patch_grid(torch.zeros(2, count, 8), SIDE, "mine", prefix)


def test_patch_tokens_alone_have_no_prefix() -> None:
    with pytest.raises(RasaError, match="17 tokens for images of 56 x 56 pixels which form no square grid"):
        patch_grid({"x_norm_patchtokens": torch.zeros(2, 17, 8)}, SIDE, "mine", 1)


def test_pooled_features_are_refused() -> None:
    with pytest.raises(RasaError, match=r"mine returned a tensor of shape \(2, 8\) for images of 56 x 56 .*not pooled"):
        patch_grid(torch.zeros(2, 8), SIDE, "mine")


def test_maps_that_are_not_square_are_refused() -> None:
    with pytest.raises(RasaError, match=r"images of 56 x 56 pixels form a grid of \(4, 5\); RASA needs a square one"):
        patch_grid(torch.zeros(2, 8, 4, 5), SIDE, "mine")


@pytest.mark.parametrize("output", [torch.zeros(2, 8, 1, 1), torch.zeros(2, 2, 8)], ids=["map", "tokens"])
def test_a_single_patch_has_no_place(output: Tensor) -> None:
    with pytest.raises(RasaError, match=r"\(1, 1\).*at least 2 x 2: change data\.size"):
        patch_grid(output, SIDE, "mine", 1)


def test_patches_that_do_not_divide_the_image_name_a_size_that_they_do() -> None:
    with pytest.raises(RasaError, match=r"4 x 4 patches for images of 59 x 59 pixels.*set data\.size=56"):
        patch_grid(tokens(1), 59, "mine", 1)
    assert patch_grid(GRID.permute(0, 3, 1, 2), 59, "mine").shape == GRID.shape  # maps may overlap


@pytest.mark.parametrize("output", [{"patches": torch.zeros(2, 16, 8)}, (torch.zeros(2, 16, 8),), None])
def test_other_outputs_say_what_was_expected(output: Any) -> None:
    with pytest.raises(
        RasaError, match=rf"returned {type(output).__name__}; expected a tensor.*backbone\.kind=callable"
    ):
        patch_grid(output, SIDE, "mine")


def test_networks_say_how_many_tokens_come_first() -> None:
    def holding(**shapes: int) -> nn.Module:
        module = nn.Module()
        for name, count in shapes.items():
            module.register_parameter(name, nn.Parameter(torch.zeros(1, count, 8)))
        return module

    assert prefix_tokens(holding(cls_token=1)) == 1
    assert prefix_tokens(holding(cls_token=1, register_tokens=4)) == 5
    within = nn.Module()
    within.embeddings = holding(cls_token=1, distillation_token=1)
    assert prefix_tokens(within) == 2
    bare = nn.Module()
    bare.num_prefix_tokens = 0
    assert prefix_tokens(bare) == 0
    assert prefix_tokens(nn.Module()) is None
    assert prefix_tokens(lambda images: images) is None
