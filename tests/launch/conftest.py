"""A run so small that a step takes some ten milliseconds."""

from pathlib import Path

import pytest

TINY = """\
steps: 6
precision: fp32
device: cpu
model: {arch: vit_tiny, depth: 1, embed_dim: 32, num_heads: 2, init_values: 1.0}
heads:
  nesting: [0.5, 1.0]
  hidden_dim: 16
  dino: {prototypes: 16, bottleneck_dim: 8}
  ibot: {prototypes: 16, bottleneck_dim: 8}
data:
  batch_size: 2
  workers: 0
  crops: {global_size: 28, local_size: 14, local_count: 1}
optimizer: {lr_scaling: none, warmup_steps: 1}
teacher: {temperature_warmup_steps: 1}
checkpoint: {every: 100000}
monitor: {every: 0}
log: {every: 1}
"""


@pytest.fixture
def tiny(tmp_path: Path, images: Path) -> Path:
    """The tiny run as a YAML file; it trains into the folder `run` of the test."""
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY.replace("data:\n", f"data:\n  path: {images}\n") + f"output: {tmp_path / 'run'}\n")
    return file
