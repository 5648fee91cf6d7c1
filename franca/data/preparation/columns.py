"""Which column of a metadata file is what, under the names in circulation.

LAION-400M, LAION-5B, its joined files, Re-LAION and LAION-COCO: SAMPLE_ID, URL, TEXT, WIDTH, HEIGHT, similarity, NSFW,
hash (of URL and TEXT), punsafe, pwatermark, top_caption. DataComp: uid, url, text, original_width, original_height,
clip_…_similarity_score, sha256. COYO: image_phash, nsfw_score_opennsfw2, watermark_score, clip_similarity_….
img2dataset's own output: caption, md5, sha256, phash.
"""

from collections.abc import Mapping, Sequence

from franca.data.preparation.errors import PreparationError

# role -> names in lower case, the first that is there counts; capitals make no difference
SPELLINGS: dict[str, tuple[str, ...]] = {
    "url": ("url", "image_url"),
    "caption": ("caption", "text", "top_caption"),
    "width": ("width", "original_width", "image_width"),
    "height": ("height", "original_height", "image_height"),
    "unsafe": ("punsafe", "p_unsafe", "nsfw_score_opennsfw2"),
    "nsfw": ("nsfw",),
    "watermark": ("pwatermark", "p_watermark", "watermark_score"),
    "similarity": (
        *("similarity", "clip_similarity_vitb32", "clip_b32_similarity_score"),
        *("clip_similarity_vitl14", "clip_l14_similarity_score"),
    ),
    "hash": ("sha256", "md5", "image_phash", "phash", "hash"),
    "id": ("sample_id", "uid", "id", "key"),
}


def find_columns(names: Sequence[str], chosen: Mapping[str, str] | None = None) -> dict[str, str]:
    """Role -> the column's name as the file spells it, for the roles that the file has.

    Args:
        names: columns of the file.
        chosen: role -> name of its column, in place of SPELLINGS.
    """
    spelled: dict[str, str] = {}
    for name in names:
        spelled.setdefault(name.lower(), name)
    wanted = SPELLINGS | {role: (name.lower(),) for role, name in (chosen or {}).items()}
    found = {
        role: next((spelled[name] for name in options if name in spelled), None) for role, options in wanted.items()
    }
    return {role: name for role, name in found.items() if name is not None}


def require(found: Mapping[str, str], needed: Mapping[str, str], names: Sequence[str], origin: str) -> None:
    """Raise PreparationError where a needed column is missing; it names all of them, and what is there.

    Args:
        found: what find_columns gave.
        needed: role -> how to do without it, in words; empty where there is no way.
        names: columns of the file.
        origin: names the file.
    """
    missing = [role for role in needed if role not in found]
    if not missing:
        return
    lines = [
        f"{role} (known as {', '.join(SPELLINGS[role])})" + (f"; {needed[role]}" if needed[role] else "")
        for role in missing
    ]
    raise PreparationError(
        f"{origin} lacks {len(missing)} column(s) that are needed:\n  "
        + "\n  ".join(lines)
        + f"\nIt has: {', '.join(names) or 'none'}. Another name is given with --column ROLE=NAME"
    )
