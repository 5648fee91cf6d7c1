"""The published weights: which there are, under which names people ask for them, and where their files lie.

The authors' releases (github.com/valeoai/Franca); their licence allows research only. `pos_embed` in a file decides its
grid; `img_size` here says it before the file is there.
"""

import re
from dataclasses import dataclass

# Size -> how file names and entry points abbreviate it.
SHORT_NAMES = {"vit_small": "vits14", "vit_base": "vitb14", "vit_large": "vitl14", "vit_giant2": "vitg14"}
DEFAULTS = {"vit_base": "IN21K", "vit_large": "LAION", "vit_giant2": "LAION"}
LICENCE = (
    "Franca's published weights are under a research-only licence (RAIL): see LICENSE_MODEL at "
    "https://github.com/valeoai/Franca"
)
# File name -> SHA-256, checked after every download. None is known yet. To add one, take the digest that GitHub shows
# beside the file on its release page, or the SHA256SUMS of that release, and compare it with `sha256sum FILE`.
SHA256: dict[str, str] = {}


@dataclass(frozen=True)
class RemoteFile:
    """One file of a release."""

    name: str
    tag: str

    @property
    def sha256(self) -> str | None:
        """None where it isn't known."""
        return SHA256.get(self.name)


@dataclass(frozen=True)
class Published:
    """One set of published weights."""

    arch: str
    weights: str  # as in `weights=`
    spelling: str  # as in the file's name
    tag: str
    img_size: int
    has_rasa: bool
    parts: tuple[str, ...] = ()  # endings of the pieces in which the file is published; () where it is whole

    @property
    def stem(self) -> str:
        return f"franca_{SHORT_NAMES[self.arch]}_{self.spelling}"

    @property
    def name(self) -> str:
        """Of the backbone's checkpoint, joined and unpacked."""
        return f"{self.stem}.pth"

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """What is to be fetched for the backbone: the checkpoint, or the pieces of its archive in order."""
        if not self.parts:
            return (RemoteFile(self.name, self.tag),)
        return tuple(RemoteFile(f"{self.stem}_chunked.tar.gz.{part}", self.tag) for part in self.parts)

    @property
    def rasa(self) -> RemoteFile | None:
        """The file of its RASA head, where one is published."""
        return RemoteFile(f"{self.stem}_rasa.pth", self.tag) if self.has_rasa else None


PUBLISHED = (
    Published("vit_base", "IN21K", "In21K", "v1.0.0", 518, has_rasa=True),
    Published("vit_base", "IN21K_224", "In21K_224", "v1.1.0", 224, has_rasa=False),
    Published("vit_base", "DINOV2_IN21K", "Dinov2_In21K", "v1.1.0", 224, has_rasa=False),
    Published("vit_base", "DINOV2_IN21K_518", "Dinov2_In21K_518", "v1.1.0", 518, has_rasa=True),
    Published("vit_large", "LAION", "Laion600M", "v1.0.0", 518, has_rasa=True),
    Published("vit_large", "LAION_224", "Laion600M_224", "v1.1.0", 224, has_rasa=False),
    Published("vit_large", "LAION_518", "Laion_518", "v1.1.0", 518, has_rasa=True),
    Published("vit_large", "DINOV2_IN21K", "Dinov2_In21K", "v1.1.0", 224, has_rasa=False),
    Published("vit_large", "DINOV2_IN21K_518", "Dinov2_In21K_518", "v1.1.0", 518, has_rasa=True),
    Published("vit_giant2", "LAION", "Laion600M", "v1.0.0", 224, True, ("part_aa", "part_ab", "part_ac")),
)
REFUSED = {
    ("vit_large", "IN21K"): "the file that was kept, franca_vitl14_In21K.pth, is a copy of DINOv2-L",
    ("vit_giant2", "IN21K"): "its release is incomplete",
}


def find(arch: str, weights: str | None = None) -> Published:
    """The published weights of a size; without `weights` its default.

    `weights` is read in any case and with any separators, as a name (IN21K), as it stands in file names (Laion600M) or
    as a whole file name, with or without the grid it has anyway (IN21K_518 is ViT-B's IN21K).

    Raises:
        ValueError: there are none of that name, with what exists for that size; or they are known to be bad, with the
            reason.
    """
    offered = [published for published in PUBLISHED if published.arch == arch]
    if not offered:
        raise ValueError(
            f"no weights are published for {arch}: give a file (local_state_dict=…), or pretrained=False for an "
            "untrained network"
        )
    wanted = _key(arch, DEFAULTS[arch] if weights is None else weights)
    for published in offered:
        if wanted == _key(arch, published.weights):
            return published
    for published in offered:
        if wanted == _key(arch, f"{published.weights}_{published.img_size}"):
            return published
    names = ", ".join(published.weights for published in offered)
    for (refused_arch, refused), reason in REFUSED.items():
        if arch == refused_arch and re.fullmatch(_key(arch, refused) + "(224|518)?", wanted):
            raise ValueError(f"weights={weights!r} of {arch} are not offered: {reason}. There are: {names}")
    raise ValueError(f"weights={weights!r} are not published for {arch}. There are: {names}")


def is_published(name: str) -> bool:
    """Whether a file of that name, in any case, is one of those above."""
    files = [file.name for published in PUBLISHED for file in (*published.files, published.rasa) if file]
    return name.lower() in {known.lower() for known in files + [published.name for published in PUBLISHED]}


def refusal(name: str) -> str | None:
    """Why a file of that name, in any case and packed in any way, is not read; None for all others."""
    for (arch, weights), reason in REFUSED.items():
        stem = f"franca_{SHORT_NAMES[arch]}_{weights}"
        if re.fullmatch(rf"{stem}(_224|_518)?(_chunked)?\.(\w+|tar\.gz)(\.part_\w+)?", name, re.IGNORECASE):
            return reason
    return None


def _key(arch: str, weights: str) -> str:
    """What spellings of the same weights have in common."""
    key = re.sub(r"[^a-z0-9]+", "_", weights.lower()).strip("_")
    key = re.sub(r"_(pth|pt|safetensors)$", "", key)
    key = re.sub(r"(_rasa|_chunked_tar_gz(_part_\w+)?)$", "", key)
    key = key.removeprefix(f"franca_{SHORT_NAMES[arch]}_").replace("_", "")
    return key.replace("laion600m", "laion").replace("imagenet21k", "in21k")
