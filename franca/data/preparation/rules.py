"""Which rows stay, as conditions in SQL. The first rule that a row breaks is the reason why it is dropped."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from franca.data.preparation.errors import PreparationError

# reason -> what it says, in the order in which rules apply
REASONS = {
    "no_url": "no http(s) address",
    "size_unknown": "width or height missing",
    "too_small": "short side below --min-side",
    "too_long": "long side / short side above --max-aspect",
    "unsafe_unknown": "punsafe missing",
    "unsafe": "punsafe above --max-unsafe",
    "nsfw_tag": "NSFW tag not among --nsfw-tags",
    "watermark_unknown": "pwatermark missing",
    "watermarked": "pwatermark above --max-watermark",
    "similarity_unknown": "similarity of image and text missing",
    "dissimilar": "similarity of image and text below --min-similarity",
    "duplicate_hash": "hash of an earlier row",
    "duplicate_url": "address of an earlier row",
}


@dataclass(frozen=True)
class SelectionConfig:
    """What a row must have. None turns a rule off; a value that is missing or no number breaks its rule.

    min_side, max_aspect: pixels of the short side, and long side over short side; 0 turns both off. The defaults are
        those of DataComp's basic filter.
    max_unsafe, max_watermark: of the classifiers' probabilities; the defaults are those of LAION's own subsets.
    nsfw_tags: accepted tags of older files, which have no punsafe ("UNLIKELY", "UNSURE", "NSFW"); empty: any.
    min_similarity: of image and text under CLIP. LAION is filtered by it already.
    duplicates: "hash", "url" or both, in this order; None: url, and hash where every file has one.
    """

    min_side: float = 200
    max_aspect: float = 3.0
    max_unsafe: float | None = 0.5
    max_watermark: float | None = 0.8
    nsfw_tags: tuple[str, ...] = ()
    min_similarity: float | None = None
    duplicates: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        numbers = (self.min_side, self.max_aspect, self.max_unsafe, self.max_watermark, self.min_similarity)
        if not all(value is None or math.isfinite(value) for value in numbers):
            raise PreparationError("limits are finite numbers, or none")
        if not self.min_side >= 0 or not (self.max_aspect == 0 or self.max_aspect >= 1):
            raise PreparationError(
                f"--min-side {self.min_side} --max-aspect {self.max_aspect}: 0 or more pixels, and a ratio of long to "
                "short side, 1 or more (0: any)"
            )
        for kind in self.duplicates or ():
            if kind not in ("hash", "url"):
                raise PreparationError(f"--duplicates {kind}: there are hash, url and none")

    @property
    def needed(self) -> dict[str, str]:
        """Role of each column that the rules read -> how to do without it."""
        roles = {"url": ""}
        if self.min_side or self.max_aspect:
            roles |= dict.fromkeys(("width", "height"), "--min-side 0 --max-aspect 0 keeps every size")
        if self.max_unsafe is not None:
            roles["unsafe"] = "--max-unsafe none keeps all, --nsfw-tags UNLIKELY goes by the older tags"
        if self.nsfw_tags:
            roles["nsfw"] = "leave --nsfw-tags out"
        if self.max_watermark is not None:
            roles["watermark"] = "--max-watermark none keeps all"
        if self.min_similarity is not None:
            roles["similarity"] = "--min-similarity none keeps all"
        if self.duplicates and "hash" in self.duplicates:
            roles["hash"] = "--duplicates url goes by addresses alone"
        return roles


def reason_of(config: SelectionConfig, columns: Mapping[str, str]) -> str:
    """SQL of the reason why a row is dropped, NULL for one that stays. columns: role -> SQL of its value."""
    cases = " ".join(f"WHEN {condition} THEN '{reason}'" for reason, condition in _broken(config, columns))
    return f"CASE {cases} END"


def _broken(config: SelectionConfig, columns: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(reason, SQL that is true for a row that breaks the rule), in the order of REASONS."""
    yield "no_url", f"NOT coalesce(regexp_matches({columns['url']}, '^\\s*https?://[^\\s/]', 'i'), false)"
    if config.min_side or config.max_aspect:
        width, height = _number(columns["width"]), _number(columns["height"])
        yield "size_unknown", f"{_unknown(width)} OR {_unknown(height)} OR least({width}, {height}) <= 0"
        yield "too_small", f"least({width}, {height}) < {float(config.min_side)!r}"
    if config.max_aspect:
        yield "too_long", f"greatest({width}, {height}) > {float(config.max_aspect)!r} * least({width}, {height})"
    if config.max_unsafe is not None:
        value = _number(columns["unsafe"])
        yield "unsafe_unknown", _unknown(value)
        yield "unsafe", f"{value} > {float(config.max_unsafe)!r}"
    if config.nsfw_tags:
        accepted = ", ".join(quoted(tag.upper()) for tag in config.nsfw_tags)
        yield "nsfw_tag", f"NOT coalesce(upper(trim({columns['nsfw']}::VARCHAR)) IN ({accepted}), false)"
    if config.max_watermark is not None:
        value = _number(columns["watermark"])
        yield "watermark_unknown", _unknown(value)
        yield "watermarked", f"{value} > {float(config.max_watermark)!r}"
    if config.min_similarity is not None:
        value = _number(columns["similarity"])
        yield "similarity_unknown", _unknown(value)
        yield "dissimilar", f"{value} < {float(config.min_similarity)!r}"


def quoted(text: str) -> str:
    """A string in SQL."""
    return "'" + text.replace("'", "''") + "'"


def _number(value: str) -> str:
    return f"TRY_CAST({value} AS DOUBLE)"


def _unknown(number: str) -> str:
    """True for NULL, NaN and infinities."""
    return f"NOT coalesce(isfinite({number}), false)"
