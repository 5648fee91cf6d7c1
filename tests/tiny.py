"""The pretraining run of the tests: so small that a step takes some ten milliseconds."""

from pathlib import Path

from omegaconf import OmegaConf

TINY = """\
steps: 6
precision: fp32
model: {arch: vit_tiny, depth: 1, embed_dim: 32, num_heads: 2, init_values: 1.0}
heads:
  nesting: [0.25, 0.5, 1.0]
  hidden_dim: 16
  dino: {prototypes: 16, bottleneck_dim: 8}
  ibot: {prototypes: 16, bottleneck_dim: 8}
data:
  batch_size: 4
  workers: 0
  crops: {global_size: 56, local_size: 28, local_count: 2}
optimizer: {lr: 1.0e-3, lr_scaling: none, warmup_steps: 1, freeze_last_layer_steps: 1}
teacher: {momentum: 0.9, temperature_warmup_steps: 3}
checkpoint: {every: 2}
monitor: {every: 2}
log: {every: 1}
"""


def write_tiny(file: Path, images: Path, *settings: str) -> Path:
    """That run on a folder of images, changed by ``key=value``, as a YAML file; returns the file."""
    config = OmegaConf.create(TINY)
    config.data.path = str(images)
    OmegaConf.save(OmegaConf.merge(config, OmegaConf.from_dotlist(list(settings))), file)
    return file
