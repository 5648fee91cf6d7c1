"""Pictures of several images by one or more backbones: what goes into their rows.

Legend: I images of (H, W) pixels, (h, w) patches, D features.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from franca.eval.context import Engine, slice_name, slice_width
from franca.eval.datasets import VOID
from franca.eval.errors import EvalError
from franca.eval.figures import short_name
from franca.eval.figures.attention import attention_rows, heat
from franca.eval.figures.gallery import Image
from franca.eval.figures.pca import foreground, resembling, shared_pca
from franca.eval.figures.regions import NOTHING, by_size, displayed, enlarged, label_colour, label_colours, mixed
from franca.eval.metrics.segmentation import confusion_matrix
from franca.eval.picture_input import Picture, attention_maps, patch_grids
from franca.eval.protocols.clusters import kmeans

Legend = Mapping[str, tuple[float, float, float]]  # what a colour means
DIVISORS = (1, 2, 4, 8, 16)  # of the width, where no slices were asked for (paper Fig. 3)
NAMED_CLUSTERS = 100  # that are given a class, as in over-clustering
LABEL = 16  # characters of a row's name in a line


@dataclass(frozen=True)
class Drawing:
    """Named rows of images, and what is said about them."""

    rows: Mapping[str, Sequence[Image]]
    title: str
    legend: Legend = field(default_factory=dict)

    def parts(self, most: int) -> Iterator[Mapping[str, Sequence[Image]]]:
        """The rows, at most so many images at a time."""
        count = max(len(images) for images in self.rows.values())
        for start in range(0, count, most):
            yield {name: images[start : start + most] for name, images in self.rows.items()}


@dataclass(frozen=True)
class Look:
    """How maps are shown."""

    over: bool  # over the image, not below it
    opacity: float  # of a map over an image
    threshold: float | None  # of the foreground
    heads: int  # 0: all
    clusters: int
    seed: int


@dataclass
class Seen:
    """What one backbone makes of the images, computed when it is asked for."""

    name: str
    engine: Engine
    pictures: Sequence[Picture]
    batch_size: int
    divisor: int = 1  # of the width: grids hold the first D / divisor features

    @cached_property
    def whole(self) -> list[Tensor]:
        """Patch features, (h, w, D) per image."""
        return patch_grids(self.engine, self.pictures, self.batch_size)

    @property
    def grids(self) -> list[Tensor]:
        """Their slice that is looked at, (h, w, D / divisor). Raises EvalError as `slice_width`."""
        width = slice_width(self.whole[0].shape[-1], self.divisor)
        return [grid[..., :width] for grid in self.whole]

    @cached_property
    def attention(self) -> list[Tensor]:
        """(heads, h, w) per image. Raises EvalError for a network that can't tell."""
        return attention_maps(self.engine, self.pictures, self.batch_size)

    def clusters(self, count: int, seed: int) -> list[Tensor]:
        """k-means of all patches of all images: (h, w) per image, numbered by size."""
        rows = torch.cat([grid.flatten(0, 1) for grid in self.grids])
        found = kmeans(rows, min(count, len(rows)), seed=seed, device=self.engine.device).assignment
        parts = found.split([grid.shape[0] * grid.shape[1] for grid in self.grids])
        return by_size([part.view(grid.shape[:2]) for part, grid in zip(parts, self.grids, strict=True)])


@dataclass
class Sheet:
    """The images, the backbones that saw them, and how to show that."""

    models: Sequence[Seen]
    look: Look
    classes: Sequence[str] = ()
    slices: Sequence[int] = DIVISORS

    @cached_property
    def images(self) -> list[Image]:
        """At the size that the first backbone sees."""
        return [displayed(picture.pixels) for picture in self.models[0].pictures]

    def name(self, model: Seen, what: str) -> str:
        """Of a row: that of the backbone stands above where there are several."""
        lines = wrapped(short_name(model.name)) if len(self.models) > 1 else []
        return "\n".join([*lines, what])

    def title(self, what: str) -> str:
        """Of what is made of features; says which, where it isn't all."""
        divisor = self.models[0].divisor
        return what if divisor == 1 else f"{what} (first d/{divisor} features)"

    def shown(self, maps: Sequence[Tensor]) -> list[Image]:
        """Colours (h, w, 3) per image, NaN where nothing is to be seen, as the sheet shows maps."""
        opacity, rest = (self.look.opacity, None) if self.look.over else (1.0, NOTHING)
        return [
            mixed(image, enlarged(colours, *image.shape[:2]), opacity, rest)
            for image, colours in zip(self.images, maps, strict=True)
        ]

    def drawing(self, rows: Mapping[str, Sequence[Tensor]], title: str, legend: Legend | None = None) -> Drawing:
        """The images, and rows of colours (h, w, 3) per image."""
        shown = {name: self.shown(maps) for name, maps in rows.items()}
        return Drawing({"image": self.images} | shown, title, legend or {})


def pca(sheet: Sheet) -> Drawing:
    """Figure 8 of the paper."""
    rows = {sheet.name(model, "PCA"): shared_pca(model.grids) for model in sheet.models}
    return sheet.drawing(rows, sheet.title("PCA of patch features"))


def pca_of_foreground(sheet: Sheet) -> Drawing:
    """The same for the upper side of the first component alone."""
    rows = {}
    for model in sheet.models:
        chosen = foreground(model.grids, sheet.look.threshold)
        rows[sheet.name(model, "foreground")] = shared_pca(model.grids, chosen)
    return sheet.drawing(rows, sheet.title("PCA of the patches on the upper side of the first component"))


def pca_of_slices(sheet: Sheet) -> Drawing:
    """Figure 3 of the paper; colours of narrower slices are made to resemble those of the widest."""
    rows = {}
    for model in sheet.models:
        dim = model.whole[0].shape[-1]
        widest: list[Tensor] | None = None
        for divisor in sheet.slices:
            if divisor <= dim:
                width = slice_width(dim, divisor)
                colours = shared_pca([grid[..., :width] for grid in model.whole])
                widest = widest or colours
                rows[sheet.name(model, f"{slice_name(divisor)} = {width}")] = resembling(colours, widest)
    return sheet.drawing(rows, "PCA of the first features alone")


def attention(sheet: Sheet) -> Drawing:
    """Figure 10 of the paper. Raises EvalError for a network that can't tell."""
    rows = {}
    for model in sheet.models:
        heads = sheet.look.heads or len(model.attention[0])
        for name, maps in attention_rows(model.attention, heads).items():
            rows[sheet.name(model, name)] = [torch.from_numpy(heat(one)) for one in maps]
    return sheet.drawing(rows, "Attention of the class token, last block")


def clusters(sheet: Sheet) -> Drawing:
    """Clusters of patches, the same colour in all images."""
    count = sheet.look.clusters
    rows = {
        sheet.name(model, f"{count} clusters"): [label_colours(one) for one in model.clusters(count, sheet.look.seed)]
        for model in sheet.models
    }
    return sheet.drawing(rows, sheet.title(f"k-means of patch features, {count} clusters across images"))


def masks(sheet: Sheet) -> Drawing:
    """Masks of the data set, and clusters in the colour of the class of most of their pixels.

    Raises EvalError for images without masks.
    """
    pictures = sheet.models[0].pictures
    wanted = [picture.mask for picture in pictures if picture.mask is not None]
    if len(wanted) < len(pictures):
        raise EvalError("the images have no masks: name a data set for segmentation")
    rows = {"mask": wanted}
    rows |= {sheet.name(model, "clusters\nby class"): named_clusters(model, sheet) for model in sheet.models}
    present = {number for maps in rows.values() for one in maps for number in one.unique().tolist()}
    legend = {sheet.classes[number]: label_colour(number) for number in sorted(present - {VOID})}
    if VOID in present and not sheet.look.over:
        legend["void"] = (NOTHING, NOTHING, NOTHING)
    return sheet.drawing(
        {name: [label_colours(one, VOID) for one in maps] for name, maps in rows.items()},
        sheet.title(f"Masks, and {NAMED_CLUSTERS} clusters with the class of most of their pixels"),
        legend,
    )


def named_clusters(model: Seen, sheet: Sheet) -> list[Tensor]:
    """Class of every patch, (h, w) per image: that of most pixels of its cluster, VOID where all of them are void."""
    found = model.clusters(NAMED_CLUSTERS, sheet.look.seed)
    size = len(sheet.classes), NAMED_CLUSTERS
    counts = torch.zeros(size, dtype=torch.int64)
    for picture, labels in zip(model.pictures, found, strict=True):
        assert picture.mask is not None
        predicted = torch.from_numpy(enlarged(labels, *picture.mask.shape))
        counts += confusion_matrix(predicted, picture.mask, size[0], predicted_classes=size[1])
    of_cluster = torch.where(counts.sum(dim=0) > 0, counts.argmax(dim=0), VOID)
    return [of_cluster[labels] for labels in found]


def wrapped(name: str) -> list[str]:
    """A name in lines of about 16 characters, broken behind its slashes, and only then behind its other signs."""
    return [line for part in _packed(name, "/") for line in _packed(part, ":/_.-")]


def _packed(name: str, signs: str) -> list[str]:
    """A name in lines that are as long as may be, broken behind these signs."""
    lines = [""]
    for piece in re.findall(f"[^{signs}]*[{signs}]*", name):
        if lines[-1] and len(lines[-1] + piece) > LABEL:
            lines.append("")
        lines[-1] += piece
    return lines


DRAWINGS: dict[str, Callable[[Sheet], Drawing]] = {
    "pca": pca,
    "foreground": pca_of_foreground,
    "slices": pca_of_slices,
    "attention": attention,
    "clusters": clusters,
    "masks": masks,
}
