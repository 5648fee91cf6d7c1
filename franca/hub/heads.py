"""How many attention heads a backbone has, of which its tensors bear no trace: told, known of its width, or guessed."""

import re
from collections.abc import Mapping
from typing import Any

from franca.hub.checkpoint import CheckpointError

HEAD_WIDTH = 64  # of every published Franca, DINOv2 and DINO backbone
USUAL_WIDTHS = (192, 384, 768, 1024, 1536)  # where everybody's heads have that width
# Width -> the network of that width that everybody has copied, and its heads.
KNOWN_HEADS = {1152: ("So400m", 16), 1280: ("ViT-H", 16), 1408: ("ViT-g of CLIP", 16), 1664: ("ViT-bigG", 16)}
# Architectures of timm whose width misleads -> heads. Those of its other plain ViTs follow from the width.
TIMM_HEADS = {r"vit_base_patch16_gap_.*": 16, r"vit_giantopt_.*": 16, r"test_vit2?": 2, r"test_vit[34]": 3}
TIMM_PLAIN = re.compile(r"(vit|deit|deit3|flexivit)_.*")


def attention_heads(width: int, told: int | None, origin: str) -> tuple[int, str | None]:
    """The number of heads, and a note where it is a guess that may be wrong.

    Raises:
        CheckpointError: nothing tells it and the width is no multiple of 64, or it doesn't divide the width.
    """
    heads = heads_of_width(width) if told is None else told
    if heads is None:
        raise CheckpointError(
            f"{origin} doesn't say how many attention heads it has, and its width {width} is no multiple of "
            f"{HEAD_WIDTH}, by which it is guessed: give num_heads=…"
        )
    if heads < 1 or width % heads:
        raise CheckpointError(f"num_heads={heads} doesn't divide the width {width} of {origin}")
    return heads, _doubt(width, heads) if told is None and width not in USUAL_WIDTHS else None


def told_heads(entries: Mapping[str, Any], width: int) -> int | None:
    """Heads from the config.json of transformers or timm, which `read_file` gives beside the tensors."""
    theirs, timms = entries.get("transformers_config", {}), entries.get("timm_config", {})
    told = theirs.get("num_attention_heads") or (timms.get("model_args") or {}).get("num_heads")
    return told or _by_architecture(str(timms.get("architecture", "")), width)


def _by_architecture(name: str, width: int) -> int | None:
    known = next((heads for pattern, heads in TIMM_HEADS.items() if re.fullmatch(pattern, name)), None)
    if known is not None:
        return known
    return heads_of_width(width) if TIMM_PLAIN.fullmatch(name) else None


def heads_of_width(width: int) -> int | None:
    """Those of the known network of that width, else of 64 channels each; None where the width is no multiple of 64."""
    if width in KNOWN_HEADS:
        return KNOWN_HEADS[width][1]
    return None if width % HEAD_WIDTH else width // HEAD_WIDTH


def _doubt(width: int, heads: int) -> str:
    source = f"as of {KNOWN_HEADS[width][0]}" if width in KNOWN_HEADS else f"width / {HEAD_WIDTH}"
    return (
        f"the file doesn't tell its attention heads: num_heads={heads} is taken ({source}); give it where that is wrong"
    )
