"""The run that the tests of this folder train: tiny networks, batches of ``IMAGES`` images over all ranks."""

from pathlib import Path

from franca.distributed import world_size
from franca.train import trainer as trainer_module
from franca.train.config import load_config
from franca.train.trainer import Trainer
from tests.distributed.ranks import IMAGES, DealtBatches

SMALL = (
    *("precision=fp32", "model.arch=vit_tiny", "model.depth=2", "model.embed_dim=32", "model.num_heads=2"),
    *("model.init_values=1.0", "heads.nesting=[0.25,0.5,1.0]", "heads.hidden_dim=16", "heads.dino.prototypes=16"),
    *("heads.dino.bottleneck_dim=8", "heads.ibot.prototypes=16", "heads.ibot.bottleneck_dim=8", "data.workers=0"),
    *("data.crops.global_size=56", "data.crops.local_size=28", "data.crops.local_count=2", "optimizer.lr_scaling=none"),
    *("optimizer.warmup_steps=2", "optimizer.freeze_last_layer_steps=3", "teacher.momentum=0.9", "monitor.every=0"),
    *("teacher.temperature_warmup_steps=5", "objective.koleo_over=all", "log.every=1"),
)


def small_trainer(output: str | Path, images: str | Path, *overrides: str) -> Trainer:
    """The trainer of this rank, on ``DealtBatches``; ``images`` is a folder that it finds and never reads."""
    trainer_module.PretrainLoader = DealtBatches  # type: ignore[attr-defined,misc,assignment]
    options = (*SMALL, f"output={output}", f"data.path={images}", f"data.batch_size={IMAGES // world_size()}")
    return Trainer(load_config(overrides=[*options, *overrides]))
