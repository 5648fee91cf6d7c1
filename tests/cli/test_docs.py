"""Every command and every piece of Python in the documentation runs.

Each ```bash block of the documents is run line by line in a working folder of its own that looks like a clone (the
project's files are links, so what a command writes stays in the temporary folder); the project's own commands run in
processes that have imported torch already (tests/warm.py). COMMANDS says how each line runs there; a line that it
doesn't hold fails `test_every_command_is_registered`. To document a command, add it:

- `Run()`: exactly as written. `Run("steps=2 data.batch_size=4")`: with these arguments appended, to make it short.
- `Run(instead="make -n test")`: another command in its place. For what installs, takes minutes or would run these very
  tests again: a dry run, or one that at least proves that the names in it are there.
- What PLACEHOLDERS holds is replaced first, in commands and in Python: write it wherever a reader puts his own path, or
  the name of something that would be fetched.

A ```python block that begins with `# name.py` is also a file of that name in the working folder. The files that
documents name (weights/…, runs/…) are the stand-ins of conftest.py.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.distributed.run import get_args_parser

from franca import __version__
from franca.data import decode
from franca.data.loader import DataConfig
from franca.data.mixture import SLOTS
from franca.data.sources.listing import KEPT_FROM
from franca.launch.__main__ import main as launch
from franca.reproduce.__main__ import main as reproduce
from franca.reproduce.recipe import Recipe
from franca.train.__main__ import main as train
from franca.train.build import OPERATIONAL
from study import main as study
from tests import warm

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    *("README.md", "training.md", "dataset_prep.md", "model_card.md", "rasa/README.md", "CONTRIBUTING.md"),
    *("docs/evaluation.md", "docs/performance.md", "docs/ladder.md", "docs/first_run.md"),
)
BIN = Path(sys.executable).parent
TIMEOUT = 300  # seconds for one block

# written in the documents -> what stands for it in the tests ({images}: a small folder of images with two classes;
# {stand_ins}: see conftest.py)
PLACEHOLDERS = {
    "ADDRESS_OF_THIS_REPOSITORY": str(ROOT),
    "/path/to/images": "{images}",
    "/path/to/imagenette/train": "{images}",
    "/path/to/imagenette/val": "{images}",
    "/path/to/imagenette": "{stand_ins}/imagenette",
    "/path/to/camvid": "{stand_ins}/camvid",
    "/path/to/VOCdevkit": "{stand_ins}/VOCdevkit",
    "/path/to/laion": "{stand_ins}/laion",
    "/path/to/ILSVRC2012_img_train.tar": "{stand_ins}/ILSVRC2012_img_train.tar",
    "/path/to/winter21_whole.tar.gz": "{stand_ins}/winter21_whole.tar.gz",
    "/path/to/franca": str(ROOT),
    "vit_base_patch14_dinov2.lvd142m": "local-dir:{stand_ins}/timm",
    "facebook/dinov2-base": "{stand_ins}/transformers",
    "facebookresearch/dinov2": "{stand_ins}/hub",
    ".venv/bin/": f"{BIN}/",
}

# files that open with a command, and what runs it in this process: without --dry-run for hours
HEADED = sorted(file for folder in ("recipes", "studies") for file in (ROOT / "configs" / folder).glob("*.yaml"))
MAKES = {"configs/recipes/quickstart.yaml": ("make quickstart", "make quickstart DATA=/path/to/images")}
DRY_RUNS = {"franca.train": train, "franca.launch": launch, "scripts/study.py": study}


@dataclass(frozen=True)
class Run:
    """How a documented command runs here: with arguments appended, or another command in its place."""

    extra: str = ""
    instead: str = ""


# a network and heads that train in a moment on one core
SMALL = (
    "model.embed_dim=32 model.depth=1 model.num_heads=2 heads.hidden_dim=16 heads.dino.prototypes=32 "
    "heads.ibot.prototypes=32 data.batch_size=2 data.workers=0 data.crops.local_count=1 "
    "optimizer.warmup_steps=1"
)

# crops of 4 x 4 patches from a network of width 64
SMALL_RASA = (
    "data.size=56 data.views=2 data.workers=0 rounds=2 saturation=0 evidence.crops=20 evidence.clusters=4 "
    "evidence.pictures=2"
)
NO_REPORT = f"{SMALL_RASA} evidence.crops=0"
SMALL_VOC = f"{NO_REPORT} backbone.name=runs/vitb14/teacher.pth gradient.batch_size=4 gradient.lr=0.05"
IMAGES_RASA = ".venv/bin/python -m rasa.train --config configs/rasa/images.yaml data.path=/path/to/images"
VOC_RASA = ".venv/bin/python -m rasa.train --config configs/rasa/{} data.path=/path/to/VOCdevkit/VOC2012/JPEGImages"
VITB14 = (
    ".venv/bin/python -m franca.train --config configs/pretrain/vitb14_in21k.yaml data.path=/path/to/images "
    "output=runs/vitb14"
)
LONGER = (
    ".venv/bin/python -m franca.train --config configs/pretrain/vitb14_in21k.yaml data.path=/path/to/images "
    "init_from=runs/vitb14 init_heads=loaded steps=100000 optimizer.warmup_steps=16000 optimizer.lr=1e-4 "
    "optimizer.freeze_last_layer_steps=0 teacher.temperature_warmup_steps=0 output=runs/longer"
)
CONTINUE = (
    ".venv/bin/python -m franca.train --config configs/recipes/continue_vitb14.yaml data.path=/path/to/images "
    "output=runs/continued"
)
PUBLISH = (
    ".venv/bin/python -m franca.publish runs/vitb14 releases/vitb14 --data ImageNet-21K "
    '--licence "CC BY-NC 4.0" --with-state'
)
PREPARE = ".venv/bin/franca prepare"
KNN = "knn --model runs/quickstart/teacher.pth --data folder:/path/to/imagenette"
MEASURED = ".venv/bin/franca eval {} --model runs/imagenette_cpu/teacher.pth"
SMALL_KNN = "size=28 resize=28 ks=[3]"
STEP = ".venv/bin/python scripts/benchmark_step.py"
STUDY = ".venv/bin/python scripts/study.py configs/studies"
FEW_STEPS = "--steps 1 --blocks 1 --warmup 0"
RECORD = ".venv/bin/franca reproduce quickstart --record 0,1,2 --force"
PRETRAIN = ".venv/bin/python -m franca.train --config configs/pretrain/vitb14_in21k.yaml"

COMMANDS = {
    # README.md
    "git clone ADDRESS_OF_THIS_REPOSITORY franca && cd franca": Run(),
    "make install": Run(instead="make -n install"),
    "make quickstart": Run(instead="make -n quickstart"),
    "make quickstart DATA=/path/to/images": Run(instead="make -n quickstart DATA=/path/to/images"),
    ".venv/bin/franca reproduce quickstart --until 60": Run("--dry-run"),
    "make test": Run(instead="make -n test"),
    ".venv/bin/franca info weights/franca_vitb14_In21K.pth": Run(),
    (
        ".venv/bin/franca convert weights/franca_vitb14_In21K.pth vitb14_transformers --to transformers --img-size 224"
    ): Run(),
    f"{IMAGES_RASA} backbone.kind=timm backbone.name=vit_base_patch14_dinov2.lvd142m": Run(SMALL_RASA),
    # rasa/README.md
    f"{IMAGES_RASA} backbone.name=runs/vitb14/teacher.pth data.size=224": Run(NO_REPORT),
    f"{IMAGES_RASA} output=runs/rasa_dinov2 backbone.name=weights/dinov2_vitb14_pretrain.pth": Run(NO_REPORT),
    f"{IMAGES_RASA} output=runs/rasa_timm backbone.kind=timm backbone.name=vit_base_patch14_dinov2.lvd142m": Run(
        NO_REPORT
    ),
    f"{IMAGES_RASA} output=runs/rasa_hf backbone.kind=transformers backbone.name=facebook/dinov2-base": Run(NO_REPORT),
    (
        f"{IMAGES_RASA} output=runs/rasa_hub backbone.kind=torch_hub backbone.repo=facebookresearch/dinov2 "
        "backbone.name=dinov2_vitb14"
    ): Run(NO_REPORT),
    f"{IMAGES_RASA} output=runs/rasa_own backbone.kind=callable backbone.name=my_model:build": Run(NO_REPORT),
    VOC_RASA.format("voc.yaml"): Run(SMALL_VOC),
    # training.md
    ".venv/bin/python -m franca.train --config configs/recipes/quickstart.yaml": Run(f"steps=3 {SMALL}"),
    CONTINUE: Run(
        "init_from=weights/franca_vitb14_In21K_224.pth steps=4 optimizer.freeze_backbone_steps=2 accumulate=2 "
        f"{SMALL} model.embed_dim=64 model.depth=4 model.num_heads=1 data.crops.global_size=84"
    ),
    LONGER: Run(instead=f"{VITB14} steps=2 {SMALL} && {LONGER} {SMALL} steps=2"),
    PUBLISH: Run(instead=f"{VITB14} steps=2 {SMALL} && {PUBLISH}"),
    "cd releases/vitb14 && sha256sum -c SHA256SUMS": Run(),
    VITB14: Run(f"steps=2 {SMALL}"),
    (
        ".venv/bin/python -m franca.train --config configs/pretrain/vitb14_in21k.yaml --estimate --devices 32 "
        "--device-name H100"
    ): Run(),
    (
        ".venv/bin/python -m franca.train --config configs/pretrain/vitl14_in21k.yaml "
        "data.path=/path/to/images --dry-run"
    ): Run(),
    (
        ".venv/bin/python -m franca.launch --local --tasks-per-node 2 --config configs/recipes/imagenette_cpu.yaml "
        "data.batch_size=32 parallel.compile=true data.path=/path/to/imagenette/train "
        "evaluation.train=/path/to/imagenette/train evaluation.test=/path/to/imagenette/val"
    ): Run(f"steps=2 evaluation.every=2 evaluation.ks=[1] parallel.compile=false {SMALL}"),
    (
        ".venv/bin/python -m franca.launch --nodes 4 --gpus-per-node 8 --partition gpu --time 20:00:00 "
        "--config configs/pretrain/vitb14_in21k.yaml data.path=/path/to/images output=runs/vitb14 --dry-run"
    ): Run(),
    (
        ".venv/bin/python -m franca.launch --local --tasks-per-node 2 --config configs/recipes/quickstart.yaml "
        "output=runs/two"
    ): Run(f"steps=2 {SMALL}"),
    (
        ".venv/bin/torchrun --standalone --nproc-per-node 8 -m franca.train "
        "--config configs/pretrain/vitl14_in21k.yaml data.path=/path/to/images output=runs/vitl14 "
        "parallel.strategy=shard"
    ): Run(
        instead=".venv/bin/torchrun --standalone --nproc-per-node 2 -m franca.train --config "
        "configs/pretrain/vitl14_in21k.yaml data.path=/path/to/images output=runs/vitl14 parallel.strategy=shard "
        f"steps=2 {SMALL}"
    ),
    ".venv/bin/franca reproduce": Run(),
    ".venv/bin/franca reproduce quickstart": Run("--dry-run"),
    ".venv/bin/franca reproduce quickstart --until 60 output=runs/beginning": Run("--dry-run"),
    (
        ".venv/bin/franca reproduce imagenette_minutes data.path=/path/to/imagenette/train "
        "evaluation.train=/path/to/imagenette/train evaluation.test=/path/to/imagenette/val"
    ): Run("--dry-run"),
    RECORD: Run(instead=".venv/bin/franca reproduce quickstart --dry-run"),  # test_a_recording_asks…
    ".venv/bin/python scripts/kill_ranks.py --kills 30": Run(instead=".venv/bin/python scripts/kill_ranks.py --help"),
    # dataset_prep.md
    "mkdir -p data": Run(),
    "mkdir -p data/imagenet": Run(),
    "tar -xf /path/to/ILSVRC2012_img_train.tar -C data/imagenet": Run(),
    (
        '(cd data/imagenet && for tar in *.tar; do mkdir "${tar%.tar}" && tar -xf "$tar" -C "${tar%.tar}" '
        '&& rm "$tar"; done)'
    ): Run(),
    f"{PRETRAIN} data.source=tars data.path=data/imagenet output=runs/imagenet_tars": Run(f"steps=2 {SMALL}"),
    f"{PRETRAIN} data.path=data/imagenet output=runs/imagenet": Run(f"steps=2 {SMALL}"),
    "tar -xzf /path/to/winter21_whole.tar.gz -C data": Run(),
    f"{PRETRAIN} data.source=tars data.path=data/winter21_whole output=runs/imagenet21k": Run(f"steps=2 {SMALL}"),
    f"{PRETRAIN} data.source=shards 'data.path=/path/to/laion/shards/{{00000..59999}}.tar' output=runs/laion": Run(
        f"data.path=/path/to/laion/shards/00000.tar steps=2 {SMALL}"
    ),
    (
        f"{PRETRAIN} data.source=shards 'data.path=pipe:cat /path/to/laion/shards/{{00000..59999}}.tar' "
        "output=runs/laion_pipe"
    ): Run(f"'data.path=pipe:cat /path/to/laion/shards/00000.tar' steps=2 {SMALL}"),
    (
        f"{PRETRAIN} data.source=mixture output=runs/mixture 'data.parts=[{{path: /path/to/images, weight: 2}}, "
        "{source: shards, path: /path/to/laion/shards, weight: 1}]'"
    ): Run(f"steps=2 {SMALL}"),
    (
        ".venv/bin/python -m franca.train --config configs/recipes/quickstart.yaml data.source=folder "
        "data.path=/path/to/images output=runs/grey data.channels=1 'data.crops.mean=[0.45]' 'data.crops.std=[0.25]'"
    ): Run(f"steps=2 {SMALL}"),
    f"{IMAGES_RASA} data.size=224 data.views=4 backbone.name=runs/vitb14/teacher.pth": Run(NO_REPORT),
    (
        f"{VOC_RASA.format('voc_released.yaml')} "
        "data.list=/path/to/VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt"
    ): Run(SMALL_VOC),
    f"{PREPARE} select /path/to/laion/metadata --output laion": Run("--memory 500MB --threads 2"),
    (
        f"{PREPARE} embed /path/to/laion/shards --model weights/franca_vitb14_In21K.pth --workers 8 "
        "--output vectors/laion"
    ): Run("--size 56 --workers 1"),
    f"{PREPARE} embed /path/to/imagenette/val --model weights/franca_vitb14_In21K.pth --output vectors/val": Run(
        "--size 56"
    ),
    f"{PREPARE} deduplicate vectors/laion/vectors --output duplicates": Run("--threshold 1"),
    (f"{PREPARE} decontaminate vectors/laion/vectors --evaluation vectors/val/vectors --output contaminated"): Run(
        "--threshold 1"
    ),
    (
        f"{PREPARE} apply /path/to/laion/shards --lists duplicates/dropped.tsv contaminated/dropped.tsv "
        "--output laion_clean"
    ): Run(),
    # docs/evaluation.md
    f".venv/bin/python -m franca.eval {KNN}": Run(SMALL_KNN),
    ".venv/bin/franca eval --help": Run(),
    ".venv/bin/franca eval in_context --help": Run(),
    ".venv/bin/franca eval knn --model weights/franca_vitb14_In21K.pth --data folder:/path/to/imagenette --slice all": (
        Run(SMALL_KNN)
    ),
    (
        ".venv/bin/franca eval in_context --model weights/franca_vitb14_In21K.pth --rasa inside "
        "--data segmentation_folder:/path/to/camvid"
    ): Run("size=28 neighbours=3"),
    ".venv/bin/franca eval linear --model weights/franca_vitb14_In21K.pth --data folder:/path/to/imagenette": Run(
        "size=28 resize=28 steps=3 batch_size=4"
    ),
    (
        ".venv/bin/franca eval linear_segmentation --model weights/franca_vitb14_In21K.pth "
        "--data segmentation_folder:/path/to/camvid --slice d,d/2"
    ): Run("crop=28 iterations=2 batch=2"),
    (
        ".venv/bin/franca eval linear_segmentation --model runs/quickstart/teacher.pth "
        "--data segmentation_folder:/path/to/camvid --preset whole crop=224 iterations=1000 batch=8"
    ): Run("crop=28 iterations=2"),
    ".venv/bin/franca eval pictures --model runs/quickstart/teacher.pth --data /path/to/images size=224": Run(
        "images=2 size=56"
    ),
    (
        ".venv/bin/franca eval pictures --model runs/quickstart/teacher.pth --data /path/to/images "
        "kinds=[pca,attention] images=4 layout=overlay columns=2 beside=[untrained:runs/quickstart/teacher.pth]"
    ): Run("images=2 size=56"),
    ".venv/bin/franca eval compare results --output comparison": Run(
        instead=f".venv/bin/franca eval {KNN} {SMALL_KNN} && .venv/bin/franca eval compare results --output comparison"
    ),
    ".venv/bin/python scripts/benchmark_neighbours.py": Run("--scale 0.0005 --quantised-width 64"),
    # docs/performance.md
    ".venv/bin/python scripts/benchmark_data.py /path/to/images --waiting": Run("--sizes 32x24 --rounds 1 --batch 2"),
    ".venv/bin/python scripts/benchmark_data.py /path/to/images --device auto": Run(
        "--sizes 32x24 --rounds 1 --batch 2"
    ),
    f"{STEP} --config configs/recipes/quickstart.yaml --steps 1 --blocks 2": Run(f"{SMALL} --warmup 0"),
    f"{STEP} --config configs/recipes/quickstart.yaml --profile": Run(f"{SMALL} {FEW_STEPS}"),
    f"{STEP} --config configs/recipes/quickstart.yaml --against eager": Run(f"{SMALL} {FEW_STEPS}"),
    f"{STEP} --config configs/pretrain/vitb14_in21k.yaml --objective-only 768": Run(instead=f"{STEP} --help"),
    ".venv/bin/python scripts/measure_device.py measured --dry-run": Run(),
    ".venv/bin/python scripts/measure_device.py measured --minutes 60": Run("--tiny --device cpu --only attention_b"),
    ".venv/bin/python scripts/benchmark_attention.py --config configs/pretrain/vitb14_in21k.yaml": Run(
        f"--device cpu --blocks 1 --calls 1 model.arch=vit_tiny {SMALL}"
    ),
    f".venv/bin/torchrun --nproc-per-node 2 -m franca.eval {KNN}": Run(SMALL_KNN),
    f"{MEASURED.format('knn')} --data folder:/path/to/imagenette --slice all resize=98 size=98": Run("ks=[3]"),
    (f"{MEASURED.format('linear')} --data folder:/path/to/imagenette resize=98 size=98 steps=2500 batch_size=256"): Run(
        "steps=3 batch_size=4"
    ),
    f"{MEASURED.format('in_context')} --data segmentation_folder:/path/to/camvid size=224": Run("size=28 neighbours=3"),
    f"{MEASURED.format('overclustering')} --data segmentation_folder:/path/to/camvid": Run(
        "size=56 mask_size=20 clusters=[3] restarts=1 components=4"
    ),
    f"{MEASURED.format('position_bias')} --data folder:/path/to/imagenette size=126": Run("images=40 --slice d/8"),
    (
        f"{MEASURED.format('linear_segmentation')} --data segmentation_folder:/path/to/camvid --preset whole crop=224 "
        "iterations=1000 batch=8 seeds=[0,1]"
    ): Run("crop=28 iterations=2"),
    (
        ".venv/bin/python -m rasa.train --config configs/rasa/images.yaml data.path=/path/to/imagenette/train "
        "data.max_images=3000 backbone.name=runs/imagenette_cpu/teacher.pth data.size=224 "
        "output=runs/imagenette_cpu_rasa"
    ): Run(NO_REPORT),
    (
        f"{MEASURED.format('in_context')} --rasa runs/imagenette_cpu_rasa/rasa.pth "
        "--data segmentation_folder:/path/to/camvid size=224"
    ): Run("size=28 neighbours=3"),
    # docs/ladder.md
    (
        f"{STUDY}/ladder_cpu.yaml runs/ladder_cpu --data imagenette=/path/to/imagenette --data camvid=/path/to/camvid "
        "--jobs 2 --minutes 600"
    ): Run("--dry-run"),
    (
        f"{STUDY}/ladder_device.yaml runs/ladder_device --data imagenette=/path/to/imagenette "
        "--data camvid=/path/to/camvid --minutes 9 --results ladder_device.json"
    ): Run("--dry-run"),
    (
        f"{STUDY}/recipe.yaml runs/vits14 --data imagenette=/path/to/imagenette --data camvid=/path/to/camvid "
        "--minutes 9 --results vits14.json config=configs/recipes/imagenette_vits14.yaml"
    ): Run("--dry-run"),
    ".venv/bin/python scripts/bring_back.py pack runs/imagenette_vits14 brought_back": Run(
        instead="test -f runs/quickstart/teacher.pth && "
        ".venv/bin/python scripts/bring_back.py pack runs/quickstart brought_back"
    ),
    ".venv/bin/python scripts/bring_back.py join brought_back runs/imagenette_vits14_here": Run(),
    # docs/first_run.md
    (
        ".venv/bin/python -m franca.train --config configs/recipes/imagenette_cpu.yaml data.path=/path/to/images "
        "output=runs/mine"
    ): Run(f"steps=2 evaluation.every=2 evaluation.ks=[1] evaluation.image_size=28 {SMALL}"),
    ".venv/bin/franca eval pictures --model runs/mine/teacher.pth --data /path/to/images size=224": Run(
        instead="test -f runs/quickstart/teacher.pth && .venv/bin/franca eval pictures "
        "--model runs/quickstart/teacher.pth --data /path/to/images images=2 size=56"
    ),
    # CONTRIBUTING.md
    "make format": Run(instead="make -n format"),
    "make lint types": Run(instead="make -n lint types"),
    ".venv/bin/pre-commit install": Run(instead=".venv/bin/pre-commit validate-config"),
    ".venv/bin/python -m pytest tests/models -m 'not slow'": Run("--collect-only -q"),
    "FRANCA_PARITY=/path/to/parity FRANCA_DATA=/path/to/data make tests": Run(instead="make -n tests"),
}


def blocks(document: Path) -> list[list[str]]:
    """The commands of each ```bash block, continued lines joined and comments removed."""
    found = code_blocks(document, "bash")
    return [[line for line in map(command_of, joined(text).splitlines()) if line] for text in found]


def code_blocks(document: Path, language: str) -> list[str]:
    text = document.read_text(encoding="utf-8") if document.exists() else ""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def joined(text: str) -> str:
    return re.sub(r"\s*\\\n\s*", " ", text)


def command_of(line: str) -> str:
    return re.sub(r"(^|\s+)#\s.*$", "", line).strip()


def documented() -> list[tuple[str, list[str]]]:
    """(where it stands, its commands) for every block of every document."""
    return [(f"{name}-{number}", block) for name in DOCUMENTS for number, block in enumerate(blocks(ROOT / name), 1)]


def as_run(command: str, images: Path, stand_ins: Path) -> str:
    """The line that runs for a documented command."""
    run = COMMANDS[command]
    return replaced(run.instead or f"{command} {run.extra}".strip(), images, stand_ins)


def replaced(text: str, images: Path, stand_ins: Path) -> str:
    for written, real in PLACEHOLDERS.items():
        text = text.replace(written, real.format(images=images, stand_ins=stand_ins))
    return text


def place_files(folder: Path, stand_ins: Path, text: str) -> None:
    """What a text names by a relative path: weights, the modules that Python blocks are, files of runs."""
    shutil.copytree(stand_ins / "weights", folder / "weights", dirs_exist_ok=True)
    for block in (block for document in DOCUMENTS for block in code_blocks(ROOT / document, "python")):
        module = re.match(r"# (\w+)\.py\n", block)
        if module and module[1] in text:
            (folder / f"{module[1]}.py").write_text(block)
            text += block
    for path in stand_ins.glob("runs/*/*"):  # others would be in the way of commands that write there
        name = path.relative_to(stand_ins)
        if str(name) in text:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / name)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A working folder that looks like a clone: links to all that is not ignored, hidden or made by a run."""
    made_here = {"runs", "releases", "report", "results", "comparison", "build", "weights"}
    for path in ROOT.iterdir():
        if path.name not in made_here and not path.name.startswith(".") and path.suffix != ".egg-info":
            (tmp_path / path.name).symlink_to(path)
    shutil.copy(ROOT / ".pre-commit-config.yaml", tmp_path)
    return tmp_path


def test_every_command_is_registered() -> None:
    lines = {line: where for where, block in documented() for line in block}
    assert {line: where for line, where in lines.items() if line not in COMMANDS} == {}
    assert set(COMMANDS) <= set(lines), "COMMANDS holds commands that no document shows any more"


def test_blocks_are_read_as_the_shell_reads_them(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    script = "# first\npython -m franca.train \\\n    --config a.yaml  # long\n\nls\n"
    document.write_text(f"```bash\n{script}```\n```\nnot bash\n```\n```bash\npwd\n```\n")
    assert blocks(document) == [["python -m franca.train --config a.yaml", "ls"], ["pwd"]]


@pytest.fixture
def at_work(tmp_path: Path, stand_ins: Path, small_entry_points: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the Python blocks, with a photograph and all files that they name.

    Published files lie where a download would have put them.
    """
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (300, 200), "orange").save("photo.jpg")
    for document in DOCUMENTS:
        place_files(tmp_path, stand_ins, "\n".join(code_blocks(ROOT / document, "python")))
    shutil.copytree(stand_ins / "transformers", "vitb14_transformers")
    shutil.copy(stand_ins / "weights/dinov2_vitb14_pretrain.pth", "small.pth")
    shutil.copy(stand_ins / "features.pt", "features.pt")
    shutil.copytree(stand_ins / "weights", "hub/checkpoints")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path


def python_blocks(name: str, images: Path, stand_ins: Path) -> list[str]:
    return [replaced(text, images, stand_ins) for text in code_blocks(ROOT / name, "python")]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documented_python_runs(name: str, at_work: Path, images: Path, stand_ins: Path) -> None:
    for text in python_blocks(name, images, stand_ins):
        exec(compile(text, name, "exec"), {"__name__": "documented"})


def test_features_of_an_image_have_the_documented_shapes(at_work: Path, images: Path, stand_ins: Path) -> None:
    """The comments of the README's blocks state the shape of the expression before them."""
    counts = []
    for block in python_blocks("README.md", images, stand_ins):
        names: dict[str, Any] = {}
        exec(compile(block, "README.md", "exec"), names)
        names["D"] = names["model"].embed_dim
        stated = re.findall(r"^(?:(\w+) = )?([^\s#].*?)  # .*?(\([^\s()][^()]*, [^()]*\))", block, re.MULTILINE)
        for variable, expression, shape in stated:
            assert tuple(eval(variable or expression, names).shape) == eval(shape, names), expression
        counts.append(len(stated))
    assert counts == [0, 4, 4]


def anchors(document: Path) -> set[str]:
    """What `#…` may name in a document: its headings, as GitHub and most viewers turn them into links."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", [*DOCUMENTS, "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for file, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", text)):
        if "://" not in file:
            target = (ROOT / name).parent / file if file else ROOT / name
            assert target.exists(), f"{name} links to {file}"
            assert not anchor or anchor in anchors(target), f"{name} links to {file}#{anchor}"


def test_dataset_prep_states_the_limits_of_the_code() -> None:
    text = (ROOT / "dataset_prep.md").read_text(encoding="utf-8")
    endings = next(re.finditer(r"`(\.jpg[^`]*)`", text))[1].split()
    assert tuple(endings) == decode.EXTENSIONS
    assert f"no less than {decode.SHORT_SIDE_KEPT} pixels" in text
    assert f"about {decode.MAX_PIXELS / 1e6:.0f} megapixels" in text
    assert f"`data.max_broken_share` of all reads ({DataConfig().max_broken_share} by" in text
    assert f"`data.crops.global_size`, {DataConfig().crops.global_size} pixels" in text
    shards = DataConfig().shards
    assert f"`data.shards.streams` ({shards.streams}) streams" in text
    assert f"blocks of `data.shards.buffer` ({shards.buffer})" in text
    assert f"that is {shards.streams * shards.buffer:,}\n  images" in text
    assert f"A folder of {KEPT_FROM:,} images or more" in text
    assert f"exactly over every {SLOTS:,} samples" in text


def test_training_names_every_key_that_a_continued_run_may_change() -> None:
    text = (ROOT / "training.md").read_text(encoding="utf-8")
    stated = re.search(r"keys that\s+don't change what is learned \((.*?)\)", text, re.DOTALL)
    assert stated is not None
    assert re.findall(r"`([\w.]+)`", stated[1]) == list(OPERATIONAL)


@pytest.mark.slow
@pytest.mark.parametrize("block", [pytest.param(block, id=where) for where, block in documented()])
def test_documented_commands_run(
    block: list[str], clone: Path, images: Path, stand_ins: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if any(line.startswith("git ") for line in block) and not (shutil.which("git") and (ROOT / ".git").exists()):
        pytest.skip("this copy is no git repository")
    lines = [as_run(line, images, stand_ins) for line in block]
    place_files(clone, stand_ins, "\n".join(lines))
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment["FRANCA_CACHE"] = str(clone / ".cache")
    log = tmp_path_factory.mktemp("printed") / "log.txt"
    for part in ["\n".join(lines)] if changes_folder(lines) else lines:
        status = run_part(part, clone, environment, log)
        assert status == 0, f"{part}\n--- printed ---\n{log.read_text()[-6000:]}"


def changes_folder(lines: list[str]) -> bool:
    """Whether a line changes the folder of those behind it: one shell runs them all."""
    return any(re.search(r"(^|&& )cd ", line) for line in lines[:-1])


def run_part(script: str, folder: Path, environment: dict[str, str], log: Path) -> int:
    """Run lines of shell, those of the project's commands alone without one; returns the exit status."""
    commands = warm.commands_of(script, BIN) if "\n" not in script else None
    if commands is None:
        with log.open("ab") as stream:
            shell = ["bash", "-c", f"set -euxo pipefail\n{script}"]
            return subprocess.run(
                shell, cwd=folder, env=environment, stdout=stream, stderr=stream, timeout=TIMEOUT
            ).returncode
    statuses = (warm.run(command, folder, environment, log, TIMEOUT) for command in commands)
    return next((status for status in statuses if status), 0)


@pytest.mark.parametrize("line", [line for line in COMMANDS if "reproduce" in line and "--record" in line])
def test_a_recording_asks_for_what_it_says(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but its runs, which take no --dry-run: options, recipe, overrides, seeds."""

    class Asked(Exception):
        pass

    def record(recipe: Recipe, overrides: list[str], seeds: list[int], *_: object) -> None:
        for seed in seeds:
            recipe.configure([*overrides, f"seed={seed}"])
        raise Asked(recipe.name, seeds)

    monkeypatch.setattr("franca.reproduce.command.record_seeds", record)
    words = shlex.split(line)
    assert words[:2] == [".venv/bin/franca", "reproduce"]
    with pytest.raises(Asked) as asked:
        reproduce(words[2:])
    name, seeds = asked.value.args
    assert (name, ",".join(map(str, seeds))) == (words[2], words[words.index("--record") + 1])


def header_commands(file: Path) -> list[str]:
    """The commands in the comment that a configuration opens with; what stands in brackets behind them is left out."""
    header = "".join(takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines(True)))
    return re.findall(r"^#   (\S.*?)(?:  +\(.*\))?$", re.sub(r"\s*\\\n#\s*", " ", header), re.MULTILINE)


def header_program(command: str) -> tuple[str, list[str]]:
    """What Python is told to run, and its arguments; torchrun's own are read as it would."""
    words = shlex.split(command)
    if words[0] == "torchrun":
        launched = get_args_parser().parse_args(words[1:])
        assert launched.module, command
        return launched.training_script, launched.training_script_args
    assert words[0] == "python", command
    return (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])


def test_every_recipe_and_study_opens_with_its_command() -> None:
    for file in HEADED:
        name, found = str(file.relative_to(ROOT)), header_commands(file)
        assert found, name
        assert all(name in line or line in MAKES.get(name, ()) for line in found), found


@pytest.mark.parametrize(
    "command",
    [pytest.param(line, id=f"{file.stem}-{i}") for file in HEADED for i, line in enumerate(header_commands(file), 1)],
)
def test_the_command_that_a_file_opens_with_is_understood(
    command: str,
    clone: Path,
    images: Path,
    stand_ins: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A dry run of it, with folders as those of documented commands; of make, that a document has it too.

    A study's begins without the numbers that were recorded with other images, and so looks at every task.
    """
    if command.startswith("make "):
        assert command in COMMANDS
        return
    monkeypatch.chdir(clone)
    program, arguments = header_program(replaced(command.replace("--results docs/", "--results "), images, stand_ins))
    status = DRY_RUNS[program]([*arguments, "--dry-run"])
    printed = capfd.readouterr()
    assert status == 0, printed.err
    assert "WARNING" not in printed.out + printed.err


def test_the_console_script_is_installed() -> None:
    printed = subprocess.run([BIN / "franca", "--version"], capture_output=True, text=True, check=True).stdout
    assert printed == f"franca {__version__}\n"


@pytest.mark.parametrize(
    ("line", "run_as"),
    [
        ("{bin}/franca eval knn size=28 'ks=[1, 3]'", [("franca", ["eval", "knn", "size=28", "ks=[1, 3]"])]),
        ("{bin}/python -m rasa.train a=b && {bin}/franca info c", [("rasa.train", ["a=b"]), ("franca", ["info", "c"])]),
        ("{bin}/python scripts/quickstart.py", [("scripts/quickstart.py", [])]),
        ("{bin}/torchrun -m franca.eval knn", [("torch.distributed.run", ["-m", "franca.eval", "knn"])]),
        ("{bin}/python other/quickstart.py", None),
        ("{bin}/python -m pytest tests", None),
        ("{bin}/franca info *.pth", None),
        ("{bin}/franca info a > b", None),
        ("cd here && {bin}/franca info a", None),
        ("X=1 {bin}/franca info a", None),
    ],
)  # fmt: skip
def test_only_commands_of_the_project_go_without_the_shell(line: str, run_as: list[tuple[str, list[str]]]) -> None:
    wanted = None if run_as is None else [warm.Command(*one) for one in run_as]
    assert warm.commands_of(line.format(bin=BIN), BIN) == wanted


def test_a_command_that_fails_without_the_shell_is_noticed(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    command = warm.Command("franca", ["eval", "knn"])
    assert warm.run(command, tmp_path, os.environ | {"OMP_NUM_THREADS": "1"}, log, TIMEOUT) == 2
    assert "the following arguments are required: --model, --data" in log.read_text()
