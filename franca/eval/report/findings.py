"""What the numbers of a short run say, in sentences that follow from them."""

import math
from collections.abc import Mapping
from typing import Any

from franca.eval.report.comparison import Comparison, full

PAPER_STEPS, PAPER_BATCH = 625_000, 2048  # ViT-B (paper Appendix B)


def margin(comparison: Comparison) -> float:
    """Differences below this many points can be luck: two standard errors of the difference of two shares.

    A rule of thumb. Both networks answer the same queries, which makes it too wide; queries that resemble each other
    make it too narrow; and how another seed would have come out, one run can't say.
    """
    share = min(max(full(comparison.trained[comparison.best_feature]) / 100, 0.05), 0.95)
    return 100 * 2 * math.sqrt(2 * share * (1 - share) / comparison.queries)


def headline(comparison: Comparison) -> str:
    """One sentence for the top of the page."""
    feature = comparison.best_feature
    trained, untrained = full(comparison.trained[feature]), full(comparison.untrained[feature])
    gain, luck = trained - untrained, margin(comparison)
    if gain > luck:
        word = "Training helped"
    elif gain < -luck:
        word = "Training made it worse"
    else:
        word = "No clear effect of training"
    sentence = (
        f"{word}: {trained:.1f} % with the trained network ({feature}), {untrained:.1f} % with the same network "
        f"untrained, {comparison.pixels:.1f} % with raw pixels, {comparison.chance:.1f} % by chance."
    )
    other = max(comparison.untrained, key=lambda name: full(comparison.untrained[name]))
    if full(comparison.untrained[other]) > max(trained, untrained):
        sentence += f" But the untrained network's {other} reaches {full(comparison.untrained[other]):.1f} %."
    return sentence


def against_untrained(comparison: Comparison) -> str:
    """The effect of training, by the same feature, for each feature."""
    luck = margin(comparison)
    parts = []
    for feature, by_width in comparison.trained.items():
        gain = full(by_width) - full(comparison.untrained[feature])
        sign = "up" if gain >= 0 else "down"
        certain = "" if abs(gain) > luck else ", which is within what luck can do"
        parts.append(f"the {feature} went {sign} by {abs(gain):.1f} points{certain}")
    sentence = "; ".join(parts)
    return (
        f"Against the same network before its first step, {sentence}. With {comparison.queries} queries, "
        f"differences below about {luck:.0f} points can be luck."
    )


def against_pixels(comparison: Comparison) -> str:
    """Whether the network beats thumbnails, in plain words."""
    feature = comparison.best_feature
    trained, untrained = full(comparison.trained[feature]), full(comparison.untrained[feature])
    lead, luck = trained - comparison.pixels, margin(comparison)
    if lead > luck:
        sentence = f"The trained network beats 8×8 thumbnails of the images by {lead:.1f} points."
        if untrained > comparison.pixels:
            sentence += (
                f" But so does the untrained one, by {untrained - comparison.pixels:.1f}: random filters keep more "
                "than thumbnails do, so only the gain over it was learned."
            )
        return sentence
    if lead > 0:
        return (
            f"The trained network is {lead:.1f} points above 8×8 thumbnails of the images; that can be luck. "
            "It can't be said that it knows more than the colours and rough layout that pixels show anyway."
        )
    return (
        f"The trained network does not beat raw pixels: it stays {-lead:.1f} points below 8×8 thumbnails of the "
        "images. For this question, after this short a run, one is better off without it."
    )


def about_slices(comparison: Comparison, trained_widths: list[int]) -> str:
    """How much is left in the narrowest slice that had a head in training."""
    by_width = comparison.trained[comparison.best_feature]
    narrow = min((width for width in trained_widths if width in by_width), default=max(by_width))
    kept, before = by_width[narrow], comparison.untrained[comparison.best_feature][narrow]
    return (
        f"The first {narrow} of {max(by_width)} features, the narrowest slice with a head of its own, reach "
        f"{kept:.1f} % ({full(by_width):.1f} % with all); in the untrained network that slice reaches {before:.1f} %."
    )


def about_length(description: Mapping[str, Any], batch: int) -> str:
    """How short this run was beside the published ones."""
    images = description["images_seen"]
    share = PAPER_STEPS * PAPER_BATCH / max(images, 1)
    return (
        f"This run took {description['step']:,} steps of {batch} images, {images:,} image views in all. The paper's "
        f"ViT-B saw {PAPER_STEPS * PAPER_BATCH / 1e9:.2f} billion, about {_about(share)} times as many, of 13 million "
        "different images, at a larger size and with a larger network."
    )


def _about(ratio: float) -> str:
    """A number with one leading digit: 12345 -> 10,000."""
    unit = 10 ** max(int(math.log10(max(ratio, 1))), 0)
    return f"{round(ratio / unit) * unit:,}"
