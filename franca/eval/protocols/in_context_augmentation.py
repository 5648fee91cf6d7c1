"""Random crops and colours for the memory of in-context segmentation, as open-hummingbird-eval makes them."""

from dataclasses import dataclass

from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional import InterpolationMode

from franca.data.pixel_ops import draw, random_box, shift_hue
from franca.data.random_streams import generator
from franca.eval.datasets import OpenedSplit, SegmentationSource
from franca.eval.protocols.segmentation_task import with_masks

SCALE = [0.5, 2.0]  # share of the area; draws above the whole image are made again
STRENGTH = 0.1  # of brightness, contrast and saturation (1: none is left, or twice as much), and of hue (1: a circle)
PROBABILITY = 0.5  # of each of the four


def augmented(split: OpenedSplit, size: int, seed: int) -> OpenedSplit:
    """Each image of the split as a random crop of ``size`` x ``size`` pixels with random colours, its mask likewise."""
    source = AugmentedImages(with_masks(split.source), size, seed)
    about = f"crop scale={SCALE} colour strength={STRENGTH} p={PROBABILITY} size={size} seed={seed}"
    return split.changed(source, about)


@dataclass
class AugmentedImages:
    """A segmentation source, changed at random; the same each time an image is asked for."""

    source: SegmentationSource
    size: int
    seed: int

    def __post_init__(self) -> None:
        self.classes, self.labels = self.source.classes, None

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """Its name in the source."""
        return self.source.name(index)

    def load(self, index: int) -> Tensor:
        """(3, size, size) uint8. Raises UnreadableImage."""
        image, random = self.source.load(index), self._random(index)
        box = random_box(image.shape[-2], image.shape[-1], SCALE, random)
        image = jitter_colours(image, random)
        return F.resized_crop(image, *box, [self.size] * 2, InterpolationMode.BILINEAR, antialias=True)

    def mask(self, index: int) -> Tensor:
        """(size, size) uint8: the same crop."""
        mask = self.source.mask(index)
        box = random_box(mask.shape[-2], mask.shape[-1], SCALE, self._random(index))
        return F.resized_crop(mask[None], *box, [self.size] * 2, InterpolationMode.NEAREST_EXACT)[0]

    def _random(self, index: int) -> Generator:
        return generator("in-context crop", self.seed, index)


def jitter_colours(image: Tensor, random: Generator) -> Tensor:
    """Brightness, contrast, saturation and hue of an RGB image (3, H, W) uint8, each changed with its own chance."""
    draws = iter(draw(random, 8))
    changes = [
        lambda x, amount: F.adjust_brightness(x, 1 + amount),
        lambda x, amount: F.adjust_contrast(x, 1 + amount),
        lambda x, amount: F.adjust_saturation(x, 1 + amount),
        shift_hue,
    ]
    for change, chance, value in zip(changes, draws, draws, strict=False):
        if chance < PROBABILITY:
            image = change(image, STRENGTH * (2 * value - 1))
    return image
