"""Square crops of images for RASA: any part of an image may lie anywhere, so that only the network knows a place.

A crop is flipped and turned by quarters at random. Photographs have the sky above; without this a predictor finds
positions from what is seen there, and RASA would remove that too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from franca.config import ConfigError
from franca.data import pixel_ops
from franca.data.decode import EXTENSIONS
from franca.data.errors import DataError, UnreadableImage
from franca.data.loader import spare_cores
from franca.data.random_streams import generator, shuffled
from franca.data.sources import SOURCES, Source
from franca.eval.parts import Part

MAX_BROKEN_SHARE = 0.1  # of the files read; more than that is a damaged data set


@dataclass
class CropsConfig:
    """Images and crops.

    source: one of franca.data's. path: the folder; list: a text file with one image name per line (its ending may be
    left out, as in Pascal VOC's ImageSets), empty for all images. size: side of a crop in pixels; scale: least and
    largest share of the image's area. turned: flip and turn by quarters. colour_jitter, grayscale, blur:
    probabilities. views: crops per image. held_out: share of the images that only measure. max_images: at most so
    many, 0 for all. batch_size: crops that the network sees at once. workers: processes that decode and crop.
    """

    source: str = "folder"
    path: str = ""
    list: str = ""
    channels: int = 3
    size: int = 518
    scale: tuple[float, float] = (0.25, 1.0)
    turned: bool = True
    colour_jitter: float = 0.8
    grayscale: float = 0.2
    blur: float = 0.5
    views: int = 1
    held_out: float = 0.1
    max_images: int = 0
    batch_size: int = 32
    workers: int = field(default_factory=spare_cores)

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ConfigError(f"data.source={self.source!r}: choose one of {', '.join(SOURCES)}")
        for name, least in (("size", 8), ("views", 1), ("batch_size", 1), ("workers", 0), ("max_images", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"data.{name}={getattr(self, name)}: choose {least} or more")
        for name in ("colour_jitter", "grayscale", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.{name}={getattr(self, name)}: choose a probability from 0 to 1")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"data.held_out={self.held_out}: choose a share of the images above 0 and below 1")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"data.scale={list(self.scale)}: give two shares, 0 < least <= largest <= 1")

    def build_source(self) -> Source:
        """The images. Raises DataError when there are none, or a listed one is not there."""
        source = SOURCES[self.source](self.path, self.channels)
        if self.source == "folder" and (Path(self.path).expanduser() / "JPEGImages").is_dir():
            raise DataError(
                f"data.path={self.path!r} is the root of a Pascal VOC tree, which holds masks too; "
                f"give {str(Path(self.path) / 'JPEGImages')!r}"
            )
        return listed(source, Path(self.list).expanduser()) if self.list else source


def listed(source: Source, file: Path) -> Part:
    """The images of a source that a text file names, one a line, with or without their ending.

    Raises:
        DataError: no such file, an empty one, or a name that no image has.
    """
    if not file.is_file():
        raise DataError(f"data.list={str(file)!r} is no file; give a text file with one image name per line")
    numbers = {_bare(source.name(number)): number for number in range(len(source))}
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    found = [numbers.get(_bare(line), numbers.get(Path(_bare(line.split()[0])).name)) for line in lines]
    missing = [line for line, number in zip(lines, found, strict=True) if number is None]
    if missing or not lines:
        raise DataError(
            f"data.list={str(file)!r} names {len(lines)} images, of which data.path lacks {len(missing)}, "
            f"such as {missing[:3]}: give a list and a folder that belong together"
        )
    return Part(source, list(dict.fromkeys(number for number in found if number is not None)))  # each once


def _bare(name: str) -> str:
    """A file's path without the ending of an image."""
    path = Path(name)
    return (path.with_suffix("") if path.suffix.lower() in EXTENSIONS else path).as_posix()


@dataclass(frozen=True)
class CropBatch:
    """Some crops."""

    pixels: Tensor  # (B, C, S, S) uint8
    names: list[str]  # of their images


class Crops:
    """Crops of some images of a source, the same for the same seed and pass whoever makes them.

    Args:
        source: images. numbers: those that are used. config: how they are cropped.
        seed: of all that is random. skipped: filled with "name: reason" of unreadable images.
    """

    def __init__(self, source: Source, numbers: Sequence[int], config: CropsConfig, seed: int) -> None:
        self.source, self.numbers, self.config, self.seed = source, list(numbers), config, seed
        self.skipped: set[str] = set()

    def __len__(self) -> int:
        return len(self.numbers) * self.config.views

    def batches(self, number_of_pass: int = 0) -> Iterator[CropBatch]:
        """Every crop of a pass once; each pass crops anew.

        Raises:
            DataError: more than a tenth of the images can't be read, or none can.
        """
        loader = DataLoader(
            _CropSet(self, number_of_pass),
            batch_size=self.config.batch_size,
            num_workers=self.config.workers,
            collate_fn=list,
            generator=torch.Generator(),  # else the loader draws its seed from the global random state
        )
        found = False
        for group in loader:
            self.skipped |= {crop for _, crop in group if isinstance(crop, str)}
            if len(self.skipped) > max(MAX_BROKEN_SHARE * len(self.numbers), 1):
                raise DataError(
                    f"{len(self.skipped)} of {len(self.numbers)} images can't be read; the first: "
                    f"{'; '.join(sorted(self.skipped)[:3])}. Repair or remove them"
                )
            readable = [(name, crop) for name, crop in group if isinstance(crop, Tensor)]
            if readable:
                found = True
                yield CropBatch(torch.stack([crop for _, crop in readable]), [name for name, _ in readable])
        if not found:
            raise DataError(f"no image of {len(self.numbers)} can be read: {'; '.join(sorted(self.skipped))}")


class _CropSet(Dataset[tuple[str, Tensor | str]]):
    """Number of a crop -> the name of its image, and the crop (C, S, S) or why there is none."""

    def __init__(self, crops: Crops, number_of_pass: int) -> None:
        self.crops, self.number_of_pass = crops, number_of_pass

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> tuple[str, Tensor | str]:
        crops = self.crops
        place = shuffled(index, len(self), "rasa order", crops.seed, self.number_of_pass)
        number, view = crops.numbers[place // crops.config.views], place % crops.config.views
        draws = generator("rasa crop", crops.seed, number, view, self.number_of_pass)
        try:
            image = crops.source.load(number)
        except UnreadableImage as error:
            return crops.source.name(number), str(error)
        return crops.source.name(number), crop_of(image, crops.config, draws)


def crop_of(image: Tensor, config: CropsConfig, draws: torch.Generator) -> Tensor:
    """One random crop, (C, H, W) uint8 -> (C, size, size) uint8."""
    crop = pixel_ops.random_resized_crop(image, config.size, list(config.scale), draws)
    flip, turns, jitter, gray, blurs = pixel_ops.draw(draws, 5)
    if config.turned:
        crop = torch.rot90(crop.flip(-1) if flip < 0.5 else crop, int(4 * turns), (-2, -1))
    if len(image) == 3 and jitter < config.colour_jitter:
        crop = pixel_ops.colour_jitter(crop, draws)
    if len(image) == 3 and gray < config.grayscale:
        crop = pixel_ops.grayscale(crop)
    return pixel_ops.gaussian_blur(crop, draws) if blurs < config.blur else crop.contiguous()


@dataclass(frozen=True)
class Split:
    """Numbers of images by what they are for; no image is in two parts."""

    fit: list[int]  # planes are fitted to these
    held_out: list[int]  # on these a round's error is measured, and with it the ridge and the end are chosen
    probe: list[int]  # set apart: fresh predictors are fitted to these, before and after
    test: list[int]  # set apart: and scored on these


def split(source: Source, config: CropsConfig, seed: int, set_apart: float) -> Split:
    """Deal the images out, drawn by the seed.

    Args:
        set_apart: share of the images that RASA never sees, half of it to fit fresh predictors and half to score them.

    Raises:
        DataError: too few images for that.
    """
    used = min(config.max_images or len(source), len(source))
    apart = max(round(set_apart * used / 2), 1) if set_apart else 0
    if used < 2 * apart + 2:
        evidence = ", and two set apart for evidence (none with evidence.share=0)" if set_apart else ""
        raise DataError(
            f"{used} image{'s' * (used != 1)}: RASA needs at least {2 * apart + 2}, one to fit on and one to measure "
            f"rounds on{evidence}"
        )
    held_out = min(max(round(config.held_out * used), 1), used - 2 * apart - 1)
    order = [shuffled(place, len(source), "rasa split", seed) for place in range(used)]
    ends = (held_out, held_out + apart, held_out + 2 * apart, used)
    held, probe, test, fit = (sorted(order[start:end]) for start, end in zip((0, *ends), ends, strict=False))
    return Split(fit, held, probe, test)
