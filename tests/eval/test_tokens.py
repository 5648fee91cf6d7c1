"""What networks return becomes a class token and a grid of patches, or an error that says what came instead."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from franca.eval.errors import EvalError
from franca.eval.tokens import has_class_token, patch_size_of, prefix_tokens, read_tokens

SQUARE = (56, 56)
CLASS = -7.0  # what class tokens hold, unlike patches and the other tokens


def tokens(prefix: int, rows: int = 4, columns: int = 4) -> Tensor:
    """(1, prefix + rows * columns, 2): a class token, zeros, then the row and the column of every patch."""
    before = torch.zeros(prefix, 2)
    before[:1] = CLASS
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    return torch.cat([before, places])[None]


def grid(rows: int = 4, columns: int = 4) -> Tensor:
    return tokens(0, rows, columns).view(1, rows, columns, 2)


MAPS = grid().permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("output", "prefix", "with_class"),
    [
        (tokens(0), None, False),
        (tokens(1), None, True),
        (tokens(2), None, True),  # and a token for distillation
        (tokens(5), None, True),  # and four registers
        (tokens(9), 9, True),  # 25 tokens in all, which would be a square
        (tokens(0), 1, False),  # it has a class token, but returns patches alone
        (MAPS, None, False),
        (MAPS.double(), None, False),
        ({"x_norm_patchtokens": tokens(0)}, 1, False),
        ({"x_norm_patchtokens": MAPS}, 1, False),
        ({"x_norm_patchtokens": tokens(0), "x_norm_clstoken": torch.full((1, 2), CLASS)}, 1, True),
        (SimpleNamespace(last_hidden_state=tokens(1)), 1, True),
        (SimpleNamespace(last_hidden_state=tokens(1)), None, True),
    ],
)
@pytest.mark.parametrize("patch_size", [None, 14])
def test_patches_keep_their_place(output: Any, prefix: int | None, with_class: bool, patch_size: int | None) -> None:
    read = read_tokens(output, SQUARE, "mine", prefix, patch_size)
    torch.testing.assert_close(read.patches, grid())
    if with_class:
        torch.testing.assert_close(read.cls, torch.full((1, 2), CLASS))
    else:
        assert read.cls is None


def test_registers_without_a_class_token_are_none() -> None:
    assert read_tokens(tokens(4), SQUARE, "mine", 4, cls=False).cls is None


def test_outputs_of_transformers_are_mappings_with_all_their_tokens() -> None:
    from transformers.modeling_outputs import BaseModelOutput

    read = read_tokens(BaseModelOutput(last_hidden_state=tokens(1)), SQUARE, "mine", 1)
    torch.testing.assert_close(read.patches, grid())


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("told", [True, False])
def test_rows_and_columns_of_wide_and_tall_images(prefix: int, told: bool) -> None:
    for rows, columns in ((2, 5), (5, 2), (1, 9)):
        read = read_tokens(
            tokens(prefix, rows, columns), (14 * rows, 14 * columns), "mine", prefix if told else None, 14
        )
        torch.testing.assert_close(read.patches, grid(rows, columns))
        assert (read.cls is None) == (prefix == 0)


def test_images_that_are_not_square_need_the_patch_size() -> None:
    with pytest.raises(EvalError, match=r"10 tokens for images of 28 x 70 pixels which aren't square: .*patch_size"):
        read_tokens(tokens(0, 2, 5), (28, 70), "mine")
    maps = grid(2, 5).permute(0, 3, 1, 2)
    torch.testing.assert_close(read_tokens(maps, (28, 70), "mine").patches, grid(2, 5))


def test_tokens_that_were_dropped_or_merged_form_no_grid() -> None:
    """Also where as many would form a square: the patch size says how many there are."""
    with pytest.raises(EvalError, match=r"^mine returned 5 tokens for images of 56 x 56 .*drop or merge tokens"):
        read_tokens(tokens(1, 2, 2), SQUARE, "mine", 1, 14)
    with pytest.raises(EvalError, match=r"6 tokens for images of 28 x 70 .*no grid of patches of 14 pixels"):
        read_tokens(tokens(0, 2, 3), (28, 70), "mine", 0, 14)


@pytest.mark.parametrize(
    ("count", "prefix"),
    [(7, None), (10, None), (14, None), (18, 1), (12, None), (224, None), (1000, None), (3, 5)],
)
def test_tokens_that_are_no_square_are_refused(count: int, prefix: int | None) -> None:
    with pytest.raises(
        EvalError, match=rf"^mine returned {count} tokens for images of 56 x 56 pixels.* form no square"
    ):
        read_tokens(torch.zeros(2, count, 8), SQUARE, "mine", prefix)


def test_patch_tokens_alone_have_no_prefix() -> None:
    with pytest.raises(EvalError, match="17 tokens for images of 56 x 56 pixels which form no square grid"):
        read_tokens({"x_norm_patchtokens": torch.zeros(2, 17, 8)}, SQUARE, "mine", 1)


def test_maps_have_the_shape_of_the_images_up_to_rounding() -> None:
    for rows, columns in ((2, 3), (3, 3), (2, 4)):  # 70 x 100 pixels, one value for about 32
        maps = torch.randn(1, 8, rows, columns)
        torch.testing.assert_close(read_tokens(maps, (70, 100), "mine").patches, maps.permute(0, 2, 3, 1))


@pytest.mark.parametrize("output", [torch.zeros(2, 16, 16, 384), {"x_norm_patchtokens": torch.zeros(2, 16, 16, 384)}])
def test_maps_with_their_width_last_are_refused(output: Any) -> None:
    with pytest.raises(EvalError, match=r"maps of shape \(2, 16, 16, 384\), 16 x 384 patches, .* \(B, D, h, w\)"):
        read_tokens(output, (224, 224), "mine")


def test_pooled_features_are_refused() -> None:
    with pytest.raises(EvalError, match=r"mine returned a tensor of shape \(2, 8\) for images of 56 x 56 .*not pooled"):
        read_tokens(torch.zeros(2, 8), SQUARE, "mine")


def test_patches_that_do_not_divide_the_image_name_a_size_that_they_do() -> None:
    with pytest.raises(EvalError, match=r"4 x 4 patches for images of 59 x 59 pixels.*take images of 56 x 56 pixels"):
        read_tokens(tokens(1), (59, 59), "mine", 1)
    with pytest.raises(EvalError, match=r"2 x 5 patches for images of 31 x 70 pixels.*take images of 28 x 70 pixels"):
        read_tokens(tokens(1, 2, 5), (31, 70), "mine", 1, 14)
    assert read_tokens(MAPS, (59, 59), "mine").patches.shape == grid().shape  # maps may overlap


@pytest.mark.parametrize("output", [{"patches": torch.zeros(2, 16, 8)}, (torch.zeros(2, 16, 8),), None])
def test_other_outputs_say_what_was_expected(output: Any) -> None:
    with pytest.raises(
        EvalError, match=rf"returned {type(output).__name__}; expected a tensor.*backbone\.kind=callable"
    ):
        read_tokens(output, SQUARE, "mine")


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


def test_networks_say_whether_they_have_a_class_token() -> None:
    timms = nn.Module()
    timms.cls_token, timms.reg_token, timms.num_prefix_tokens = None, nn.Parameter(torch.zeros(1, 4, 8)), 4
    assert not has_class_token(timms)
    timms.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
    assert has_class_token(timms)
    assert not has_class_token(lambda images: images)


@pytest.mark.parametrize(
    ("network", "side"),
    [
        (SimpleNamespace(patch_size=14), 14),
        (SimpleNamespace(patch_size=(16, 16)), 16),
        (SimpleNamespace(patch_size=(16, 8)), None),
        (SimpleNamespace(patch_embed=SimpleNamespace(patch_size=(14, 14))), 14),
        (SimpleNamespace(config=SimpleNamespace(patch_size=8)), 8),
        (lambda images: images, None),
    ],
)
def test_networks_say_their_patch_size(network: Any, side: int | None) -> None:
    assert patch_size_of(network) == side
