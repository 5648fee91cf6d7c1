"""The layouts into which a checkpoint can be converted: which files each consists of, and what they hold.

A target only plans; `franca.hub.convert` writes. Legend: D width, H hidden width of the feed-forward network.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from franca.hub import safetensors
from franca.hub.architecture import ratio_for
from franca.hub.checkpoint import CheckpointError, teacher_writer
from franca.hub.heads import heads_of_width
from franca.hub.layouts import RESAMPLING, Recognised
from franca.hub.names import State, chunk_blocks, to_timm, to_transformers
from franca.hub.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from franca.models.feed_forward import swiglu_hidden

Writer = Callable[[BinaryIO], None]

# Those that the layouts with a "teacher" entry hold beside the backbone; the authors' loader refuses others.
PRETRAINING_HEADS = ("dino_head", "ibot_head")


@dataclass(frozen=True)
class Plan:
    """What a conversion will write: files, the line of code that loads them, and what the user should know."""

    files: dict[Path, Writer]
    load: str
    notes: list[str] = field(default_factory=list)


def plan_franca(weights: Recognised, output: Path) -> Plan:
    """This project's teacher file: describes itself, keeps heads and RASA."""
    state = {f"backbone.{name}": tensor for name, tensor in _with_rasa(weights).items()} | _head_tensors(weights)
    writer = teacher_writer(state, describe_weights(weights))
    return Plan({output: writer}, _load_model(output), _left_out(weights, kept=PRETRAINING_HEADS))


def plan_upstream(weights: Recognised, output: Path) -> Plan:
    """The released layout: {"teacher": {"backbone.…": …}} with blocks in four chunks, RASA in a file of its own."""
    _require_no_patch_map(weights, "the released layout")
    state = {f"backbone.{name}": tensor for name, tensor in chunk_blocks(weights.backbone).items()}
    content = {"teacher": _own_storage(state | _head_tensors(weights))}
    notes = _left_out(weights, kept=PRETRAINING_HEADS) + _untold_upstream(weights)
    heads = weights.config["num_heads"]
    told = None if heads == heads_of_width(weights.config["embed_dim"]) else heads
    plan = Plan({output: lambda file: torch.save(content, file)}, _load_model(output, told), notes)
    return _rasa_beside(plan, weights, output.with_name(f"{output.stem}_rasa.pth"))


def plan_safetensors(weights: Recognised, output: Path) -> Plan:
    """One safetensors file with our names; the description stands in its metadata. Its ending tells how to read it."""
    if output.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{output} would not be known as a safetensors file again: name it {output}.safetensors")
    description = {name: value for name, value in describe_weights(weights).items() if name not in ("heads", "hash")}
    written = _safetensors(_with_rasa(weights), {"format": "pt", "description": json.dumps(description)})
    return Plan({output: written}, _load_model(output), _left_out(weights))


def plan_transformers(weights: Recognised, output: Path) -> Plan:
    """A folder for `transformers.AutoModel.from_pretrained`: Dinov2Model, or Dinov2WithRegistersModel."""
    _require_no_patch_map(weights, "transformers")
    files = {
        output / "config.json": _json(transformers_config(weights)),
        output / "preprocessor_config.json": _json(transformers_preprocessor(weights)),
        output / "model.safetensors": _safetensors(to_transformers(weights.backbone), {"format": "pt"}),
    }
    load = f"transformers.AutoModel.from_pretrained({_quoted(output)})"
    return _rasa_beside(Plan(files, load, _foreign_notes(weights)), weights, output / "rasa.pth")


def plan_timm(weights: Recognised, output: Path) -> Plan:
    """A folder for `timm.create_model("local-dir:…")`."""
    _require_no_patch_map(weights, "timm")
    state = to_timm(weights.backbone)
    files = {
        output / "config.json": _json(timm_config(weights, state)),
        output / "model.safetensors": _safetensors(state, {"format": "pt"}),
    }
    load = f"timm.create_model({_quoted(f'local-dir:{output}')}, pretrained=True)"
    notes = ["left out: the mask token, for which timm has no place"] + _foreign_notes(weights)
    return _rasa_beside(Plan(files, load, notes), weights, output / "rasa.pth")


TARGETS: dict[str, Callable[[Recognised, Path], Plan]] = {
    "franca": plan_franca,
    "upstream": plan_upstream,
    "safetensors": plan_safetensors,
    "transformers": plan_transformers,
    "timm": plan_timm,
}


def describe_weights(weights: Recognised) -> dict[str, Any]:
    """The description of a teacher file for these weights: what theirs says, or what can be told without one."""
    described: dict[str, Any] = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    described |= weights.description or {"converted_from": weights.layout}
    return described | {"arch": weights.arch, "backbone": weights.config}


def transformers_config(weights: Recognised) -> dict[str, Any]:
    """config.json of a Dinov2 model.

    Raises:
        CheckpointError: the feed-forward network has a width that its configuration can't express.
    """
    config, registers = weights.config, weights.config["num_register_tokens"]
    variant = ("Dinov2WithRegistersModel", "dinov2_with_registers") if registers else ("Dinov2Model", "dinov2")
    dtype = str(weights.backbone["cls_token"].dtype).removeprefix("torch.")
    return {
        "architectures": [variant[0]],
        "model_type": variant[1],
        "dtype": dtype,
        "image_size": config["img_size"],
        "patch_size": config["patch_size"],
        "num_channels": config["in_chans"],
        "hidden_size": config["embed_dim"],
        "num_hidden_layers": config["depth"],
        "num_attention_heads": config["num_heads"],
        "mlp_ratio": _whole_ratio(weights),
        "use_swiglu_ffn": config["ffn"] == "swiglu",
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": 1e-6,
        "layerscale_value": config["init_values"],
        "drop_path_rate": 0.0,
        **({"num_register_tokens": registers} if registers else {"use_mask_token": True}),
    }


def transformers_preprocessor(weights: Recognised) -> dict[str, Any]:
    """preprocessor_config.json: the shorter side to the model's size, its middle, mean and std."""
    size, described = weights.config["img_size"], describe_weights(weights)
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(described["mean"]),
        "image_std": list(described["std"]),
        "do_convert_rgb": weights.config["in_chans"] == 3,
    }


def timm_config(weights: Recognised, state: State) -> dict[str, Any]:
    """config.json of a timm model: an architecture with the right parts, its sizes replaced by `model_args`.

    Only timm's giant DINOv2 has SwiGLU, only its `reg4` models place registers beside the positions.
    """
    config, described = weights.config, describe_weights(weights)
    size, registers = config["img_size"], config["num_register_tokens"]
    width = "giant" if config["ffn"] == "swiglu" else "base"
    arguments = {
        "img_size": size,
        "patch_size": config["patch_size"],
        "in_chans": config["in_chans"],
        "embed_dim": config["embed_dim"],
        "depth": config["depth"],
        "num_heads": config["num_heads"],
        "mlp_ratio": ratio_for(len(state["blocks.0.mlp.fc1.bias"]), config["embed_dim"]),
        "init_values": config["init_values"],
        "reg_tokens": registers,
    }
    return {
        "architecture": f"vit_{width}_patch14_{'reg4_' if registers else ''}dinov2",
        "num_classes": 0,
        "num_features": config["embed_dim"],
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [config["in_chans"], size, size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(described["mean"]),
            "std": list(described["std"]),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def _whole_ratio(weights: Recognised) -> int:
    """The whole `mlp_ratio` that gives this feed-forward network; transformers takes no other."""
    width, swiglu = weights.config["embed_dim"], weights.config["ffn"] == "swiglu"
    hidden = weights.backbone[f"blocks.0.mlp.{'w3' if swiglu else 'fc2'}.weight"].shape[1]
    for ratio in range(1, 2 + 2 * hidden // width):
        if (swiglu_hidden(width * ratio) if swiglu else width * ratio) == hidden:
            return ratio
    raise CheckpointError(
        f"transformers' Dinov2 takes a whole mlp_ratio only, and none gives this model's feed-forward network of "
        f"{hidden} hidden units at width {width} (mlp_ratio={weights.config['mlp_ratio']}); convert it to timm"
    )


def _with_rasa(weights: Recognised) -> State:
    """The backbone's tensors and those of its RASA head, as `VisionTransformer` names them."""
    return dict(weights.backbone) | {f"rasa_head.{name}": tensor for name, tensor in (weights.rasa or {}).items()}


def _head_tensors(weights: Recognised) -> State:
    heads = {head: weights.heads[head] for head in PRETRAINING_HEADS if head in weights.heads}
    return {f"{head}.{name}": tensor for head, state in heads.items() for name, tensor in state.items()}


def _rasa_beside(plan: Plan, weights: Recognised, path: Path) -> Plan:
    """The plan with the RASA head in a file of its own, a flat dictionary as published."""
    if weights.rasa is None:
        return plan
    note = f"the RASA head stands beside: {path.name} (RASA_local_state_dict=… of the entry points reads it)"
    head = _own_storage(weights.rasa)
    return Plan(plan.files | {path: lambda file: torch.save(head, file)}, plan.load, [*plan.notes, note])


def _require_no_patch_map(weights: Recognised, place: str) -> None:
    if "patch_map.weight" in weights.backbone:
        raise CheckpointError(
            f"RASA is folded into this model (patch_map, a map of its patch tokens), for which {place} has no place; "
            "--without-rasa leaves it out: patch features then hold position again. --to franca and --to safetensors "
            "keep it"
        )


def _untold_upstream(weights: Recognised) -> list[str]:
    """What a bare dictionary of tensors doesn't tell its reader."""
    names = ("interpolate_offset", "interpolate_antialias")
    resampling = {name: weights.config[name] for name in names}
    described = {name: (weights.description or {}).get(name) for name in ("mean", "std")}
    left_out = {name: value for name, value in described.items() if value}
    if tuple(resampling.values()) != RESAMPLING["upstream"]:
        left_out |= resampling
    listed = ", ".join(f"{name}={value}" for name, value in left_out.items())
    return [f"left out, for this layout has no place for it: {listed}"] if listed else []


def _foreign_notes(weights: Recognised) -> list[str]:
    size = weights.config["img_size"]
    return [*_left_out(weights), f"same features at {size} pixels; for another size convert again with --img-size"]


def _left_out(weights: Recognised, kept: Sequence[str] = ()) -> list[str]:
    heads = [head for head in weights.heads if head not in kept]
    return [f"left out: {', '.join(heads)}"] if heads else []


def _own_storage(state: State) -> State:
    """The state for `torch.save`, which writes whole storages: a tensor that is a part of one is copied."""
    return {
        name: tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        for name, tensor in state.items()
    }


def _safetensors(state: State, notes: dict[str, str]) -> Writer:
    return lambda file: safetensors.write(state, notes, file)


def _json(content: Any) -> Writer:
    text = json.dumps(content, indent=2) + "\n"

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    return write


def _load_model(path: Path, num_heads: int | None = None) -> str:
    more = "" if num_heads is None else f", num_heads={num_heads}"
    return f"franca.load_model(checkpoint={_quoted(path)}{more})"


def _quoted(text: object) -> str:
    return json.dumps(str(text), ensure_ascii=False)
