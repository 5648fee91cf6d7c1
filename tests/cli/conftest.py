"""What stands for the files that the documents speak of: small networks in the published layouts, images, lists.

Nothing is fetched. A stand-in has the names and the layout of the real file, and features that hold position.
"""

import shutil
import tarfile
from pathlib import Path

import duckdb
import pytest
import torch
from PIL import Image

from franca.hub import load, save_teacher
from franca.hub.convert import convert
from franca.hub.names import chunk_blocks
from franca.hub.registry import SHORT_NAMES
from franca.models import RASAHead, VisionTransformer

WIDTH, DEPTH, HEADS, SIDE = 64, 4, 1, 56  # of the networks; a head for every 64 features, as loading assumes
RELEASED = {"franca_vitb14_In21K": True, "franca_vitb14_In21K_224": False, "franca_vitl14_Laion600M": True}
HUBCONF = """
dependencies = ["torch"]

def dinov2_vitb14(pretrained=True):
    import franca
    return franca.load_model(checkpoint={checkpoint!r})
"""


def network() -> VisionTransformer:
    """A vision transformer whose patch tokens say where they lie."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=SIDE, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS)
    with torch.no_grad():
        model.pos_embed[0, 1:, 0] = torch.linspace(-1, 1, 4).repeat_interleave(4)
        model.pos_embed[0, 1:, 1] = torch.linspace(-1, 1, 4).repeat(4)
    return model.eval()


def save_released(folder: Path) -> None:
    """Files under the names and in the layout of the authors' releases, and one of DINOv2's."""
    folder.mkdir()
    state = network().state_dict()
    chunked = {f"backbone.{name}": tensor for name, tensor in chunk_blocks(state).items()}
    for name, has_rasa in RELEASED.items():
        torch.save({"teacher": chunked}, folder / f"{name}.pth")
        if has_rasa:
            torch.save(RASAHead(WIDTH, 8).state_dict(), folder / f"{name}_rasa.pth")
    torch.save(state, folder / "dinov2_vitb14_pretrain.pth")


def save_runs(folder: Path) -> None:
    """What pretraining and RASA leave."""
    model = network()
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    description = {"arch": "vit_tiny", "backbone": model.config, "mean": [0.5] * 3, "std": [0.25] * 3}
    for run in ("quickstart", "vitb14", "imagenette_cpu"):
        (folder / run).mkdir(parents=True)
        save_teacher(folder / run / "teacher.pth", state, description)
    (folder / "rasa").mkdir()
    torch.save(RASAHead(WIDTH, 7).state_dict(), folder / "rasa/rasa.pth")


def save_voc(folder: Path, images: Path) -> None:
    """The part of Pascal VOC that RASA reads."""
    (folder / "VOC2012/JPEGImages").mkdir(parents=True)
    (folder / "VOC2012/ImageSets/Segmentation").mkdir(parents=True)
    names = []
    for number, image in enumerate(sorted(images.rglob("*.png"))):
        shutil.copy(image, folder / f"VOC2012/JPEGImages/2007_{number:06}.png")
        names.append(f"2007_{number:06}")
    for name in ("trainaug", "trainval"):
        (folder / f"VOC2012/ImageSets/Segmentation/{name}.txt").write_text("\n".join(names))


def save_laion(folder: Path, images: Path) -> None:
    """Two files of metadata, and the shards that a download leaves."""
    (folder / "metadata").mkdir(parents=True)
    (folder / "shards").mkdir()
    files = sorted(images.rglob("*.png"))
    with duckdb.connect() as connection, tarfile.open(folder / "shards/00000.tar", "w") as shard:
        for number in range(2):
            connection.execute(
                f"""COPY (SELECT 'https://example.org/' || i || '.jpg' AS URL, 'a picture' AS TEXT, 300 + i AS WIDTH,
                400 AS HEIGHT, 0.3 AS similarity, i AS hash, 0.1 AS pwatermark, i / 20 AS punsafe
                FROM range({10 * number}, {10 * number + 10}) AS t(i)) TO '{folder}/metadata/part-{number}.parquet'"""
            )
        for number, file in enumerate(files):
            shard.add(file, f"{number:09}.png")


def save_imagenet(folder: Path, images: Path) -> None:
    """Class tars as they come: within a tar (ImageNet-1K), and below a folder in a compressed one (ImageNet-21K)."""
    with (
        tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as small,
        tarfile.open(folder / "winter21_whole.tar.gz", "w:gz") as large,
    ):
        for number, label in enumerate(sorted(path for path in images.iterdir() if path.is_dir())):
            path = folder / f"n{number:08}.tar"
            with tarfile.open(path, "w") as tar:
                for file in sorted(label.iterdir()):
                    tar.add(file, file.name)
            small.add(path, path.name)
            large.add(path, f"winter21_whole/{path.name}")
            path.unlink()


def save_evaluation(folder: Path, images: Path) -> None:
    """imagenette/ with class folders, camvid/ with masks: brighter pixels are the second class."""
    for number, split in enumerate(("train", "val")):
        for file in sorted(images.rglob("*.png"))[number::2]:
            target = folder / "imagenette" / split / file.relative_to(images)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
            name = f"{file.parent.name}_{file.name}"
            for kind in ("images", "masks"):
                (folder / "camvid" / kind / split).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / "camvid/images" / split / name)
            with Image.open(file) as image:
                image.convert("L").point(lambda value: int(value > 127)).save(folder / "camvid/masks" / split / name)
    (folder / "camvid/classes.txt").write_text("0 dark\n1 bright\n")


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """weights/, runs/, data sets, ImageNet's tars, timm/, transformers/, hub/ (for torch.hub), features.pt."""
    folder = tmp_path_factory.mktemp("stand_ins")
    save_released(folder / "weights")
    save_runs(folder / "runs")
    save_voc(folder / "VOCdevkit", images)
    save_laion(folder / "laion", images)
    save_imagenet(folder, images)
    save_evaluation(folder, images)
    checkpoint = folder / "weights/dinov2_vitb14_pretrain.pth"
    for library in ("timm", "transformers"):
        convert(checkpoint, folder / library, library)
    (folder / "hub").mkdir()
    (folder / "hub/hubconf.py").write_text(HUBCONF.format(checkpoint=str(checkpoint)))
    places = network().pos_embed[:, 1:].detach().unflatten(1, (4, 4))
    torch.save(places + 0.3 * torch.randn(40, 4, 4, WIDTH), folder / "features.pt")
    return folder


@pytest.fixture
def small_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """franca_vitb14 and the others take networks of the stand-ins' size."""
    monkeypatch.setattr(load, "backbone_sizes", lambda: dict.fromkeys(SHORT_NAMES, (WIDTH, DEPTH, HEADS)))
