"""The sentences of the report follow from its numbers."""

import pytest
import torch

from franca.eval.report import findings
from franca.eval.report.comparison import Comparison


def comparison(trained: float, untrained: float, pixels: float, queries: int = 1000) -> Comparison:
    return Comparison(
        trained={"class token": {64: trained, 4: trained - 5}, "mean patch": {64: trained - 1, 4: trained - 9}},
        untrained={"class token": {64: untrained, 4: untrained}, "mean patch": {64: untrained, 4: untrained - 3}},
        pixels=pixels,
        chance=10.0,
        queries=queries,
        memory=1000,
    )


@pytest.mark.parametrize(
    ("trained", "untrained", "word"),
    [
        (50, 30, "Training helped"),
        (50, 49.5, "No clear effect"),
        (50, 51, "No clear"),
        (30, 50, "Training made it worse"),
    ],
)
def test_headline_names_the_effect(trained, untrained, word) -> None:
    sentence = findings.headline(comparison(trained, untrained, 40))
    assert sentence.startswith(word)
    for number in (f"{trained:.1f} %", f"{untrained:.1f} %", "40.0 %", "10.0 %"):
        assert number in sentence


def test_headline_does_not_hide_a_better_feature_of_the_untrained_network() -> None:
    numbers = comparison(50, 30, 40)
    assert "But" not in findings.headline(numbers)
    numbers.untrained["mean patch"][64] = 58.5
    assert findings.headline(numbers).endswith("But the untrained network's mean patch reaches 58.5 %.")


def test_few_queries_make_the_same_difference_uncertain() -> None:
    assert findings.headline(comparison(55, 50, 40, queries=20_000)).startswith("Training helped")
    assert findings.headline(comparison(55, 50, 40, queries=50)).startswith("No clear effect")


def test_margin_covers_luck() -> None:
    """Two models of equal skill differ by more than the margin in about one comparison of twenty."""
    generator = torch.Generator().manual_seed(0)
    right = (torch.rand(4000, 2, 300, generator=generator) < 0.5).float().mean(-1) * 100
    exceeded = (right[:, 0] - right[:, 1]).abs() > findings.margin(comparison(50, 50, 50, queries=300))
    assert 0.02 < exceeded.float().mean() < 0.07


def test_a_network_below_raw_pixels_is_said_to_be_so() -> None:
    sentence = findings.against_pixels(comparison(35, 20, 39.2))
    assert "does not beat raw pixels" in sentence
    assert "4.2 points below" in sentence


def test_a_small_lead_over_pixels_may_be_luck() -> None:
    assert "can be luck" in findings.against_pixels(comparison(40, 20, 39.5))
    assert "beats 8×8 thumbnails of the images by 15.8" in findings.against_pixels(comparison(55, 20, 39.2))


def test_what_random_filters_do_is_not_called_learned() -> None:
    assert "so does the untrained one, by 15.0" in findings.against_pixels(comparison(60, 55, 40))
    assert "untrained" not in findings.against_pixels(comparison(60, 35, 40))


def test_each_feature_is_compared_with_itself() -> None:
    sentence = findings.against_untrained(comparison(50, 30, 40))
    assert "class token went up by 20.0" in sentence
    assert "mean patch went up by 19.0" in sentence
    assert "within what luck can do" in findings.against_untrained(comparison(30.5, 30, 40))


def test_slices_are_those_with_a_head() -> None:
    assert "first 4 of 64 features" in findings.about_slices(comparison(50, 30, 40), [4, 8, 16, 32, 64])
    assert "45.0 %" in findings.about_slices(comparison(50, 30, 40), [4, 64])
    assert "first 64 of 64" in findings.about_slices(comparison(50, 30, 40), [64])


def test_length_is_put_in_proportion() -> None:
    sentence = findings.about_length({"step": 200, "images_seen": 12_800}, 64)
    assert "200 steps of 64 images, 12,800 image views" in sentence
    assert "about 100,000 times" in sentence
