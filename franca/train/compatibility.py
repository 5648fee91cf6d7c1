"""Whether the weights of a file are those of a run's networks; if not, which keys to set."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from franca.config import ConfigError
from franca.hub.checkpoint import mismatches
from franca.hub.layouts import Recognised, skeleton
from franca.hub.names import State
from franca.models import BACKBONES, VisionTransformer
from franca.objective import Encoder
from franca.train.config import TrainConfig

SIZES = ("embed_dim", "depth", "num_heads")
# What files and networks must share -> the key that says it.
KEYS = {name: f"model.{name}" for name in (*SIZES, "patch_size", "ffn", "num_register_tokens")} | {
    "in_chans": "data.channels"
}
HEADS = ("dino_head", "ibot_head")
ROWS_SHOWN = 8


def require_same_network(found: Recognised, backbone: VisionTransformer, config: TrainConfig) -> None:
    """Raise ConfigError where the file holds another network than ``model`` describes: both, and what to set."""
    built = backbone.config
    differing = [name for name in KEYS if found.config[name] != built[name]]
    if differing:
        settings = " ".join(_settings(found, built, config))
        raise ConfigError(
            f"init_from={config.init_from!r} holds {_words(found.arch, found.config)}; the configuration describes "
            f"{_words(config.model.arch, built)}. To begin with that file set {settings}"
        )
    with_map = ("patch_map.weight",)  # of RASA: left out
    state = {name: tensor for name, tensor in found.backbone.items() if name not in with_map}
    rows = [row for row in mismatches(backbone, state) if "pos_embed" not in row]
    if rows and not mismatches(skeleton(found), found.backbone):  # else damaged: said where it is built
        raise ConfigError(f"init_from={config.init_from!r} holds a network that model can't describe: {_short(rows)}")


def _words(arch: str, sizes: Mapping[str, Any]) -> str:
    return (
        f"{arch} (width {sizes['embed_dim']}, blocks {sizes['depth']}, heads {sizes['num_heads']}, {sizes['ffn']}, "
        f"patch {sizes['patch_size']}, registers {sizes['num_register_tokens']}, channels {sizes['in_chans']})"
    )


def _settings(found: Recognised, built: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """``key=value`` for all that makes the configuration describe the file's network."""
    renamed = found.arch in BACKBONES and found.arch != config.model.arch
    comes_with_arch = [name for name in SIZES if renamed and getattr(config.model, name) is None]
    settings = [
        f"{key}={found.config[name]}"
        for name, key in KEYS.items()
        if found.config[name] != built[name] and name not in comes_with_arch
    ]
    return [f"model.arch={found.arch}", *settings] if renamed else settings


def fitting_heads(found: Recognised, student: Encoder) -> dict[str, State]:
    """Both heads of the file. Raises ConfigError, with a short table, where they are not those of ``heads``."""
    rows: list[str] = []
    for name in HEADS:
        head, state = student.get_submodule(name), found.heads.get(name)
        if state is None:
            rows.append(f"{name}: none in the file")
            continue
        here, there = head_sizes(head.state_dict()), head_sizes(state)
        normalises = {"normalize_bottleneck": getattr(head, "normalize_bottleneck", None)}
        here, there = here | normalises, there | {"normalize_bottleneck": _normalises(found, name)}
        table = [
            f"{name}: {what} {there.get(what)} in the file, {here[what]} here"
            for what in here
            if here[what] != there.get(what)
        ]
        rows += table or [f"{name}: {row}" for row in mismatches(head, state)]
    if rows:
        raise ConfigError(
            f"init_heads=loaded, but the heads of {found.origin} are not those of the configuration:\n  "
            f"{_short(rows, chr(10) + '  ')}\nset heads as in the file, or init_heads=new"
        )
    return {name: found.heads[name] for name in HEADS}


def head_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors of a Matryoshka head tell, lists from the narrowest level to the widest; empty for another."""
    reads = _shapes(state, r"matryoshka_projections\.(\d+)\.weight")
    prototypes = _shapes(state, r"last_layers\.(\d+)\.weight_v")
    if not reads or not prototypes:
        return {}
    mlp = _shapes(state, r"mlps\.0\.(?:(\d+)\.)?weight")
    return {
        "level widths (nesting)": [shape[0] for shape in reads],
        "levels read": "slices" if all(rows == columns for rows, columns in reads) else "the whole feature",
        "prototypes": [shape[0] for shape in prototypes],
        "bottleneck_dim": prototypes[0][1],
        "layers": len(mlp),
        "hidden_dim": mlp[0][0] if len(mlp) > 1 else None,
    }


def _shapes(state: Mapping[str, Tensor], pattern: str) -> list[tuple[int, ...]]:
    found = ((re.fullmatch(pattern, name), tuple(tensor.shape)) for name, tensor in state.items())
    return [shape for _, shape in sorted((int(match[1] or 0), shape) for match, shape in found if match)]


def _normalises(found: Recognised, name: str) -> bool:
    """Whether the head normalises before its prototypes; the authors' own do not, which no tensor shows."""
    described = ((found.description or {}).get("heads") or {}).get(name) or {}
    return bool(described.get("normalize_bottleneck", False))


def _short(rows: list[str], between: str = "; ") -> str:
    more = [f"… and {len(rows) - ROWS_SHOWN} more"] if len(rows) > ROWS_SHOWN else []
    return between.join(" ".join(row.split()) for row in rows[:ROWS_SHOWN] + more)
