"""Images per second of one core: the image pipeline against a plain one, in turns within one run.

    python scripts/benchmark_data.py /path/to/images [--sizes 500x375 1000x750] [--quality 75] [--waiting]

Plain: Pillow and torchvision's transforms, ten crops one by one, everything on the CPU, as most code for this recipe
does it. Fast: what a worker of the loader does; what is left for the training device is timed apart, on --device.
The photographs are cut to each size as JPEG files (those that are large enough; their own files make one more row).
Seconds are those of the processor in one thread, so that other work on the machine disturbs them less, and of a clock
on an accelerator. --waiting also gives the share of a step that a device waits for data when it takes --rate images
per second.
"""

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from franca.data.batch import LoadedBatch
from franca.data.config import DataConfig
from franca.data.decode import EXTENSIONS
from franca.data.loader import PretrainLoader
from franca.data.multi_crop import BLURS, CropConfig
from franca.devices import choose_device

PATCH = 14


class Plain(Dataset[list[Tensor]]):
    """Image files in turn without end -> crops, float32 and normalised, one by one by torchvision's transforms."""

    def __init__(self, files: list[Path], config: CropConfig) -> None:
        self.files = files
        first, second, local = BLURS[config.blur]
        kinds = (config.global_size, config.global_scale), (config.local_size, config.local_scale)
        self.crops = [
            self._transforms(config, *kinds[0], first, 0.0),
            self._transforms(config, *kinds[0], second, config.solarize),
            *[self._transforms(config, *kinds[1], local, 0.0)] * config.local_count,
        ]

    @staticmethod
    def _transforms(config: CropConfig, size: int, scale: list[float], blur: float, solarize: float) -> v2.Compose:
        return v2.Compose(
            [
                v2.RandomResizedCrop(size, (scale[0], scale[1]), interpolation=InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(config.flip),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], config.colour_jitter),
                v2.RandomGrayscale(config.grayscale),
                v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], blur),
                v2.RandomSolarize(128, solarize),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(config.mean, config.std),
            ]
        )

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> list[Tensor]:
        with Image.open(self.files[index % len(self.files)]) as image:
            picture = image.convert("RGB")
        return [transforms(picture) for transforms in self.crops]


def stack(samples: list[list[Tensor]]) -> list[Tensor]:
    """Crops of images -> batches of crops, as a loader does last."""
    return [torch.stack(crops) for crops in zip(*samples, strict=True)]


def plain_batches(files: list[Path], config: DataConfig) -> Iterator[list[Tensor]]:
    """Batches of the plain pipeline."""
    loader = DataLoader(Plain(files, config.crops), config.batch_size, num_workers=config.workers, collate_fn=stack)
    return iter(loader)


def make_files(photographs: list[Path], size: tuple[int, int] | None, quality: int, folder: Path) -> list[Path]:
    """JPEG files of one size in ``folder``, of those images that need not be enlarged; None: each file as it is."""
    folder.mkdir()
    for number, path in enumerate(photographs):
        content, suffix = path.read_bytes(), path.suffix
        if size is not None:
            with Image.open(path) as image:
                picture = image.convert("RGB")
            wanted = size if picture.width >= picture.height else size[::-1]
            if picture.width < wanted[0] or picture.height < wanted[1]:
                continue
            file = io.BytesIO()
            ImageOps.fit(picture, wanted, Image.Resampling.LANCZOS).save(file, "jpeg", quality=quality)
            content, suffix = file.getvalue(), ".jpg"
        (folder / f"{number:05}{suffix}").write_bytes(content)
    return sorted(folder.iterdir())


def seconds(work: Callable[[], object]) -> float:
    """Of the processor, all threads of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def compare(files: list[Path], config: DataConfig, device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Milliseconds per image of each way, once a round, A B A B."""
    plain, fast = plain_batches(files, config), loader_of(config).batches()
    next(plain), next(fast).to(device)
    found: dict[str, list[float]] = {"plain": [], "fast": [], "device's part": []}
    for _ in range(rounds):
        loaded: list[LoadedBatch] = []
        found["plain"].append(seconds(lambda: next(plain)))
        found["fast"].append(seconds(lambda loaded=loaded: loaded.append(next(fast))))  # type: ignore[misc]
        found["device's part"].append(seconds_to_finish(loaded[0], device))
    return {name: [1000 * each / config.batch_size for each in values] for name, values in found.items()}


def seconds_to_finish(batch: LoadedBatch, device: torch.device, times: int = 20) -> float:
    """From the cut batch to the finished one on the device, copies included."""
    if device.type == "cpu":
        return seconds(lambda: batch.to(device))
    pinned = batch.pin_memory()
    pinned.to(device)
    torch.accelerator.synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        pinned.to(device)
    torch.accelerator.synchronize(device)
    return (time.perf_counter() - started) / times


def loader_of(config: DataConfig) -> PretrainLoader:
    """The project's loader over the files of its folder."""
    return PretrainLoader(config.build(), config, seed=0, patch_size=PATCH)


def waiting(batches: Iterator[object], config: DataConfig, rate: float, steps: int) -> float:
    """Share of its time that a device waits which takes ``rate`` images per second."""
    next(batches)
    waited, started = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
        time.sleep(config.batch_size / rate)
    return waited / (time.perf_counter() - started)


def spread(values: list[float], digits: int = 2) -> str:
    """Median, least and largest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def row(name: str, files: list[Path], options: argparse.Namespace, folder: Path) -> list[str]:
    """One line of the table."""
    config = DataConfig(path=str(folder), batch_size=options.batch, workers=0)
    found = compare(files, config, choose_device(options.device), options.rounds)
    rate = {way: [1000 / each for each in values] for way, values in found.items()}
    ratios = [fast / plain for fast, plain in zip(rate["fast"], rate["plain"], strict=True)]
    total = [p / (f + d) for p, f, d in zip(*found.values(), strict=True)]
    size = statistics.mean(file.stat().st_size for file in files) / 1000
    cells = [name, str(len(files)), f"{size:.0f}", spread(rate["plain"], 0), spread(rate["fast"], 0), spread(ratios, 1)]
    cells += [spread(found["device's part"]), spread(total, 1)]
    if options.waiting:
        busy = DataConfig(path=str(folder), batch_size=options.batch, workers=options.workers)
        steps = options.rounds * 4
        for batches in (plain_batches(files, busy), loader_of(busy).batches()):
            cells.append(f"{100 * waiting(batches, busy, options.rate, steps):.0f} %")
    return cells


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Command line of this script."""
    usage = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(description=usage[0], epilog="\n".join(usage[4:]))
    parser.add_argument("photographs", type=Path, help="a folder of photographs")
    parser.add_argument("--sizes", nargs="*", default=["500x375", "1000x750", "1632x1224"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--quality", type=int, default=75, help="of the JPEG files that are made (default: 75)")
    parser.add_argument("--batch", type=int, default=16, help="images a batch (default: 16)")
    parser.add_argument("--rounds", type=int, default=9, help="batches of each way, in turns (default: 9)")
    parser.add_argument("--device", default="cpu", help="that finishes the batches (default: cpu)")
    parser.add_argument("--waiting", action="store_true", help="also the share of a step spent waiting")
    parser.add_argument("--rate", type=float, default=300.0, help="images per second of that device (default: 300)")
    parser.add_argument("--workers", type=int, default=1, help="of the loaders then (default: 1)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Prints a table; returns the exit status."""
    options = parse_arguments(arguments)
    torch.set_num_threads(1)
    photographs = sorted(p for p in options.photographs.rglob("*") if p.suffix.lower() in EXTENSIONS)
    header = ["size", "files", "kB", "plain images/s", "fast images/s", "ratio", "device's part, ms", "with it, ratio"]
    header += [f"waiting at {options.rate:.0f}/s, plain", "fast"] if options.waiting else []
    print(f"torch {torch.__version__}, one thread; median (least-largest) of {options.rounds} rounds\n")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for name in ["as they are", *options.sizes]:
        size = None if name == "as they are" else (int(name.partition("x")[0]), int(name.partition("x")[2]))
        with tempfile.TemporaryDirectory() as folder:
            files = make_files(photographs, size, options.quality, Path(folder) / "files")
            if not files:
                print(f"error: no photograph in {options.photographs} is as large as {name}", file=sys.stderr)
                return 2
            print("| " + " | ".join(row(name, files, options, Path(folder) / "files")) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
