"""Embeddings: those of the model on whole images, the same from a folder and from shards, after any interruption."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from franca.data.preparation import embed as module
from franca.data.preparation.embed import Embedder, embed, load_embedder
from franca.data.preparation.errors import PreparationError
from franca.data.preparation.vectors import Embeddings
from franca.data.sources.folder import ImageFolder
from franca.data.sources.tars import TarFolder
from franca.hub import save_teacher
from franca.models import VisionTransformer

MEAN, STD, SIZE, WIDTH = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), 28, 64


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "IMAGES_PER_PART", 6)
    monkeypatch.setenv("FRANCA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher file whose features differ between images."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=SIZE, patch_size=14, embed_dim=WIDTH, depth=1, num_heads=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    file = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    save_teacher(file, state, {"arch": "tiny", "backbone": model.config, "mean": list(MEAN), "std": list(STD)})
    return file


@pytest.fixture
def embedder(teacher: Path) -> Embedder:
    return load_embedder(str(teacher), SIZE)


def pack(images: Path, folder: Path, shards: int = 2) -> list[Path]:
    """Webdataset shards of all images of a folder, with captions."""
    folder.mkdir()
    made = []
    files = [file for file in sorted(images.rglob("*")) if file.is_file()]
    for number, part in enumerate(np.array_split(np.array(files, object), shards)):
        made.append(folder / f"{number:05}.tar")
        with tarfile.open(made[-1], "w") as tar:
            for place, file in enumerate(part):
                caption = folder / "caption"
                caption.write_text(f"caption of {file.name}")
                tar.add(file, f"{number:04}{place:05}{file.suffix}")
                tar.add(caption, f"{number:04}{place:05}.txt")
    (folder / "caption").unlink()
    return made


def test_rows_are_class_tokens_of_the_whole_image(images: Path, embedder: Embedder, tmp_path: Path) -> None:
    source = ImageFolder(str(images))
    report = embed(source, [], tmp_path / "out", embedder, batch_size=4, device="cpu")
    vectors = Embeddings([tmp_path / "out/vectors"])
    assert (len(vectors), vectors.width, report["kept"], report["dropped"]) == (20, WIDTH, 20, {"unreadable": 0})
    numbers = np.arange(20)
    assert vectors.names(numbers) == [source.name(number) for number in numbers]
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    for number in (0, 7, 19):
        with Image.open(images / source.name(number)) as picture:
            pixels = torch.tensor(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255
        small = functional.interpolate(pixels[None], (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)
        with torch.inference_mode():
            feature = embedder.model((small - shift) / scale)[0]
        expected = functional.normalize(feature, dim=0).numpy()
        assert vectors.rows(np.array([number]))[0] == pytest.approx(expected, abs=0.02)
    alike = vectors.rows(numbers) @ vectors.rows(numbers).T
    assert (alike - np.eye(20)).max() < 0.999  # features do tell images apart


def test_shards_give_what_the_folder_gives(images: Path, embedder: Embedder, tmp_path: Path) -> None:
    shards = pack(images, tmp_path / "shards")
    embed(ImageFolder(str(images)), [], tmp_path / "a", embedder)
    embed(TarFolder(str(tmp_path / "shards")), shards, tmp_path / "b", embedder, workers=2, batch_size=3)
    first, second = (Embeddings([tmp_path / name / "vectors"]) for name in "ab")
    assert first.rows(np.arange(20)) == pytest.approx(second.rows(np.arange(20)), abs=2e-3)
    assert second.names(np.array([0, 19])) == ["00000.tar/000000000.png", "00001.tar/000100009.png"]


def test_what_cannot_be_read_is_counted_and_named(images: Path, embedder: Embedder, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images/cats/3.png").write_bytes(b"\x89PNG cut off")
    (tmp_path / "images/dogs/5.png").rename(tmp_path / "images/dogs/a\tb.png")
    report = embed(ImageFolder(str(tmp_path / "images")), [], tmp_path / "out", embedder)
    assert (report["images"], report["kept"], report["dropped"]) == (20, 18, {"unreadable": 2})
    assert "cats/3.png" in report["first_dropped"][0]
    assert "a tab or line break in its name" in report["first_dropped"][1]
    assert "cats/3.png" in (tmp_path / "out/report.txt").read_text()
    assert len(Embeddings([tmp_path / "out/vectors"])) == 18


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_an_interrupted_step_goes_on_to_the_same_vectors(parts, images, embedder, tmp_path, stop_after) -> None:
    source = ImageFolder(str(images))
    embed(source, [], tmp_path / "whole", embedder)
    with stop_after(parts):
        embed(source, [], tmp_path / "cut", embedder)
    embed(source, [], tmp_path / "cut", embedder)
    files = sorted(file.name for file in (tmp_path / "whole/vectors").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "cut/vectors").iterdir())
    for name in files:
        assert (tmp_path / "whole/vectors" / name).read_bytes() == (tmp_path / "cut/vectors" / name).read_bytes()


def test_another_model_or_other_images_are_refused(images: Path, embedder: Embedder, teacher: Path, tmp_path) -> None:
    source = ImageFolder(str(images))
    embed(source, [], tmp_path / "out", embedder)
    with torch.no_grad():
        embedder.model.cls_token.add_(1)
    with pytest.raises(PreparationError, match="model: there "):
        embed(source, [], tmp_path / "out", embedder)
    with pytest.raises(PreparationError, match="images: there "):
        embed(ImageFolder(str(images / "cats")), [], tmp_path / "out", load_embedder(str(teacher), SIZE))


def test_a_size_that_is_no_multiple_of_the_patch_is_refused(teacher: Path) -> None:
    with pytest.raises(PreparationError, match="--size 30: a multiple of the model's patch size, 14"):
        load_embedder(str(teacher), 30)
