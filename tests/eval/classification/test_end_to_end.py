"""The classification protocols from images to results.json, on classes that a mean colour tells apart."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from franca.eval.__main__ import main
from franca.eval.datasets.imagenet import wnids
from franca.eval.protocols import progress_file
from franca.eval.protocols.linear_grid import HeadGrid
from franca.eval.protocols.linear_head import load_head
from tests import warm
from tests.distributed.ranks import command_on_ranks

COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
SHORT = {
    "knn": ["ks=[1,5]"],
    "linear": ["steps=30", "batch_size=16", "rates=[1.0,5.0]"],
    "logistic": ["strengths=4", "weakest=0.01", "strongest=100"],
}
AUGMENTED = ["--preset", "dinov2", "steps=20", "batch_size=13", "rates=[1.0,5.0]"]


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy images of three colours, train and val; one training file can't be read."""
    folder = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.array(colour) + random.integers(-50, 51, (40 + number, 50, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / split / name / f"{number}.png")
    (folder / "train" / "red" / "5.png").write_bytes(b"no image")
    return folder


def arguments(protocol: str, data: Path, output: Path, *more: str) -> list[str]:
    sizes = ["resize=32", "size=28"]
    return [protocol, "--model", "colour", "--data", str(data), "--output", str(output), *more, *sizes]


def scores(output: Path) -> list[tuple]:
    (file,) = output.glob("*/results.json")
    return [(s["metric"], s["slice"], s["settings"], s["value"]) for s in json.loads(file.read_text())["scores"]]


@pytest.mark.parametrize("protocol", SHORT)
def test_images_of_one_colour_are_of_one_class(protocol, colours, tmp_path) -> None:
    for number, options in enumerate((["--batch-size", "64"], ["--batch-size", "7", "--workers", "2"])):
        assert main(arguments(protocol, colours, tmp_path / str(number), *options, *SHORT[protocol])) == 0
    found = scores(tmp_path / "0")
    assert {value for *_, value in found} == {100.0}
    assert scores(tmp_path / "1") == found


def test_the_probe_learns_from_random_crops(colours, tmp_path) -> None:
    for number, options in enumerate((["--batch-size", "64"], ["--batch-size", "5", "--workers", "2"])):
        assert main(arguments("linear", colours, tmp_path / str(number), *options, *AUGMENTED)) == 0
    (found,) = scores(tmp_path / "0")
    assert found == ("top1", "d", {"chosen_on": "test"}, 100.0)
    assert scores(tmp_path / "1") == [found]


SETS = ("v2", "a", "r", "sketch", "real")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of ImageNet's classes in three colours, and its five transfer sets beside them.

    Of the 200 classes of -A and -R the others' images can't be read. ReaL has another label as well for the first
    image, another one for the second, two others for the third, none for the fourth, of the second class.
    """
    folder = tmp_path_factory.mktemp("imagenet")
    chosen = dict(zip(wnids()[::400], COLOURS.values(), strict=True))
    for number, (wnid, colour) in enumerate(chosen.items()):
        names = [f"train/{wnid}/{n}.png" for n in range(12)] + [f"val/{wnid}/ILSVRC2012_val_0000000{number + 1}.JPEG"]
        names += [f"val/{wnid}/ILSVRC2012_val_00000004.JPEG"] * (number == 1)
        names += [f"imagenetv2-matched-frequency-format-val/{400 * number}/0.png", f"sketch/{wnid}/sketch_0.JPEG"]
        names += [f"imagenet-a/{wnid}/0.png", f"imagenet-r/{wnid}/0.png"]
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (50 if "-r" in name else 40, 40), colour).save(folder / name)
    for wnid in [wnid for wnid in wnids() if wnid not in chosen][:197]:
        for name in ("imagenet-a", "imagenet-r"):
            (folder / name / wnid).mkdir()
            (folder / name / wnid / "0.png").write_bytes(b"no image")
    # one drawing of the first class is called the last: two of three are right
    (folder / f"sketch/{wnids()[0]}/sketch_0.JPEG").rename(folder / f"sketch/{wnids()[800]}/sketch_1.JPEG")
    (folder / "real.json").write_text(json.dumps([[7, 0], [7], [800, 9], []]))
    return folder


def test_transfer_sets_of_imagenet_are_scored_by_their_class_maps(imagenet, tmp_path, caplog) -> None:
    transfer = ",".join(f"imagenet_{name}:{imagenet}" for name in SETS)
    settings = ["steps=60", "batch_size=16", "rates=[5.0]", "holdout=0.25", f"transfer=[{transfer}]"]
    command = arguments("linear", imagenet, tmp_path / "results", *settings)
    command[command.index(str(imagenet))] = f"imagenet:{imagenet}"
    assert main(command) == 0
    (file,) = (tmp_path / "results").glob("*/results.json")
    scores = json.loads(file.read_text())["scores"]
    assert {score["data"]: score["value"] for score in scores} == {
        "imagenet": 100.0,
        "imagenet_v2": 100.0,
        "imagenet_a": 100.0,
        "imagenet_r": 100.0,
        "imagenet_sketch": pytest.approx(200 / 3),
        "imagenet_real": pytest.approx(200 / 3),
    }
    assert [score["elsewhere"] for score in scores] == [False, True, True, True, True, True]
    assert scores[0]["left_out"] == dict.fromkeys(["imagenet_a test", "imagenet_r test"], 197) | dict.fromkeys(
        [
            "imagenet train",
            "imagenet val",
            "imagenet_v2 matched-frequency",
            "imagenet_sketch test",
            "imagenet_real val",
        ],
        0,
    )
    # ReaL looks at the validation images, whose features are there
    assert len(list((tmp_path / "results" / "features").iterdir())) == 6


def test_the_same_command_goes_on_with_an_interrupted_probe(colours, tmp_path, monkeypatch) -> None:
    """Order, crops and weights go on as if nothing had happened."""
    monkeypatch.setattr(progress_file, "SECONDS", 0.0)
    assert main(arguments("linear", colours, tmp_path / "whole", *AUGMENTED)) == 0
    learn = HeadGrid.learn

    def stopped(self: HeadGrid, *batch: torch.Tensor) -> None:
        if self.step == 11:
            raise KeyboardInterrupt
        learn(self, *batch)

    command = arguments("linear", colours, tmp_path / "parts", *AUGMENTED)
    monkeypatch.setattr(HeadGrid, "learn", stopped)
    assert main(command) == 130
    monkeypatch.setattr(HeadGrid, "learn", learn)
    assert main(command) == 0
    heads = [load_head(next((tmp_path / name).glob("*/linear-d.pth")))[0] for name in ("whole", "parts")]
    assert torch.equal(heads[0].weight, heads[1].weight)


@pytest.mark.parametrize(("protocol", "options"), [("knn", SHORT["knn"]), ("linear", AUGMENTED)])
def test_class_token_and_patches_may_differ_in_width(protocol, options, colours, tmp_path, caplog) -> None:
    """A thumbnail has 192 values, a patch 588."""
    command = arguments(protocol, colours, tmp_path, "--slice", "d", "--slice", "d/64", *options)
    assert main(["pixels" if word == "colour" else word for word in command]) == 0
    found = scores(tmp_path)
    assert {name for _, name, *_ in found} == {"d", "d/64"}
    assert {value for _, name, _, value in found if name == "d"} == {100.0}
    said = [record.getMessage() for record in caplog.records if "slice" in record.getMessage()]
    assert said == ["slice d/64: the first 9 of 588 features"]


@pytest.mark.slow
@pytest.mark.parametrize(("protocol", "options"), [("knn", SHORT["knn"]), ("linear", AUGMENTED)])
def test_two_processes_find_what_one_finds(protocol, options, colours, tmp_path) -> None:
    assert main(arguments(protocol, colours, tmp_path / "one", *options)) == 0
    command = warm.Command("franca.eval", arguments(protocol, colours, tmp_path / "two", *options))
    log = tmp_path / "log.txt"
    assert command_on_ranks(2, command, tmp_path, log) == [0, 0], log.read_text()
    assert scores(tmp_path / "two") == scores(tmp_path / "one")
