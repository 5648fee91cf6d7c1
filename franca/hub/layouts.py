"""Any checkpoint's content to a backbone under our names, whatever project and wrapper it went through."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from franca.hub.architecture import infer_config, name_architecture
from franca.hub.checkpoint import CheckpointError, check_format, hash_tensors, load_weights
from franca.hub.heads import attention_heads, told_heads
from franca.hub.names import State, flatten_blocks, from_timm, from_transformers, is_timm, is_transformers
from franca.hub.parts import split
from franca.models import RASAHead, VisionTransformer

# Layout -> (interpolate_offset, interpolate_antialias), with which its authors resample positions.
RESAMPLING = {
    "upstream": (0.1, False),
    "dinov2": (0.1, False),
    "transformers": (0.0, False),
    "timm": (0.0, True),
}
RESAMPLING_WITH_REGISTERS = RESAMPLING | {"dinov2": (0.0, True), "transformers": (0.0, True)}


@dataclass(frozen=True)
class Recognised:
    """What a checkpoint turned out to be."""

    backbone: State  # names of VisionTransformer.state_dict()
    config: dict[str, Any]  # arguments of VisionTransformer
    arch: str  # name in BACKBONES, or "custom"
    layout: str  # "franca", or one of RESAMPLING
    heads: dict[str, State]  # head -> its tensors
    rasa: State | None  # tensors of a RASAHead
    description: dict[str, Any] | None  # of this project's files
    notes: list[str] = field(default_factory=list)  # what was filled in or guessed
    origin: str = "the checkpoint"  # for errors


def recognise(content: Any, origin: str, num_heads: int | None = None) -> Recognised:
    """The backbone in what `read_file` gave, or in a mapping of tensors.

    Args:
        content: tensors by name, or entries that hold them.
        origin: where it comes from, for errors.
        num_heads: attention heads; None: as the file describes, else by its width (`franca.hub.heads`).

    Raises:
        CheckpointError: no backbone is in it, with what was found; damaged; or of an architecture that can't be built.
    """
    entries = content if isinstance(content, Mapping) else {}
    description = find_description(content, origin)
    state, heads, rasa = split(content, origin)
    _check_backbone(state, heads, rasa, origin)
    layout, state = _our_names(state, trained="teacher" in entries)
    notes: list[str] = []
    if description:
        if "teacher" in entries:
            _check_hash(entries["teacher"], description, origin)
        config = _defaults() | description["backbone"] | ({} if num_heads is None else {"num_heads": num_heads})
        layout = "franca"
    else:
        config = infer_config(state, origin)
        width = config["embed_dim"]
        told = told_heads(entries, width) if num_heads is None else num_heads
        config["num_heads"], doubt = attention_heads(width, told, origin)
        notes += [doubt] if doubt else []
        resampling = (RESAMPLING_WITH_REGISTERS if config["num_register_tokens"] else RESAMPLING)[layout]
        config["interpolate_offset"], config["interpolate_antialias"] = resampling
        notes += [_resampling_doubt()] if _may_be_dino(layout, entries, state) else []
        state = _filled(state, width, config["depth"], notes)
    arch = name_architecture(config)
    return Recognised(state, config, arch, layout, heads, rasa, description, notes, origin)


def recognise_rasa(content: Any, origin: str) -> State:
    """The RASA head in a file of its own, or beside a backbone, with any number of earlier layers.

    Raises:
        CheckpointError: there is none, or its layers are not what they should be.
    """
    rasa = split(content, origin)[2]
    if rasa is None:
        raise CheckpointError(f"{origin} holds no RASA head (pos_pred.weight, pre_pos_layers.0.weight, …)")
    return rasa


def build(recognised: Recognised) -> VisionTransformer:
    """The backbone, in eval mode on the CPU, in float32; its RASA head is not attached.

    Raises:
        CheckpointError: the tensors are not those of the architecture, with a short table.
    """
    origin = recognised.origin
    for name, tensor in recognised.backbone.items():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{origin}: {name} is {tensor.dtype}; quantised weights can't be used")
    model = skeleton(recognised).to_empty(device="cpu")
    load_weights(model, recognised.backbone, origin)
    return model.eval()


def skeleton(recognised: Recognised) -> VisionTransformer:
    """The backbone's shapes alone, on the meta device. Raises CheckpointError where its configuration makes none."""
    try:
        with torch.device("meta"):
            model = VisionTransformer(**recognised.config)
            if "patch_map.weight" in recognised.backbone:
                model.patch_map = nn.Linear(model.embed_dim, model.embed_dim, bias=False)
    except (TypeError, ValueError) as error:
        verb = "describes" if recognised.description else "holds"
        raise CheckpointError(f"{recognised.origin} {verb} a backbone this version can't build: {error}") from error
    return model


def build_rasa(rasa: State, width: int, origin: str) -> RASAHead:
    """The head, for a backbone of that width.

    Raises:
        CheckpointError: it is made for another width, or its layers have strange names.
    """
    found = rasa["pos_pred.weight"].shape[-1] if "pos_pred.weight" in rasa else None
    if found is not None and found != width:
        raise CheckpointError(f"{origin}: the RASA head reads features of width {found}, this backbone's have {width}")
    head = RASAHead(width, rasa_depth(rasa))
    load_weights(head, rasa, origin)
    return head.eval()


def rasa_depth(rasa: Mapping[str, Tensor]) -> int:
    """Number of `pre_pos_layers`, the `n_pos_layers` of RASAHead."""
    return sum(name.startswith("pre_pos_layers.") for name in rasa)


def find_description(content: Any, origin: str) -> dict[str, Any] | None:
    """The description in a file of this project; None for every other. Raises CheckpointError for a later format."""
    description = content.get("description") if isinstance(content, Mapping) else None
    if not isinstance(description, dict) or not isinstance(description.get("backbone"), dict):
        return None
    check_format(description, origin)
    return description


def _defaults() -> dict[str, Any]:
    """Arguments that a description may do without."""
    return {name: argument.default for name, argument in inspect.signature(VisionTransformer).parameters.items()}


def _our_names(state: State, trained: bool) -> tuple[str, State]:
    """The layout and its tensors under our names. `trained`: an entry "teacher" held them, as training writes it."""
    if is_transformers(state):
        return "transformers", from_transformers(state)
    flat = flatten_blocks(state)
    if trained or flat.keys() != state.keys():
        return "upstream", flat
    if is_timm(state):
        return "timm", from_timm(state)
    return "dinov2", flat


def _check_hash(teacher: Mapping[str, Tensor], description: Mapping[str, Any], origin: str) -> None:
    if "hash" in description and hash_tensors(teacher) != description["hash"]:
        raise CheckpointError(f"{origin} is damaged: its tensors don't have the hash written in its description")


def _check_backbone(state: State, heads: Mapping[str, State], rasa: State | None, origin: str) -> None:
    """Raise CheckpointError, with what was found instead, where no backbone is there."""
    if any(name.startswith(("blocks.", "patch_embed.")) for name in state) or is_transformers(state):
        return
    found = [f"{name} ({len(head)} tensors)" for name, head in heads.items()]
    found += [f"a RASA head of {len(rasa)} layers (RASA_local_state_dict=… takes it)"] if rasa else []
    if any("exp_avg" in name for name in state):
        found.append("an optimizer's state")
    elif state:
        found.append(f"{', '.join(list(state)[:4])}, … ({len(state)} tensors)")
    raise CheckpointError(f"{origin} holds no backbone; found: {', '.join(found) or 'no tensors by name'}")


def _may_be_dino(layout: str, entries: Mapping[str, Any], state: State) -> bool:
    """Whether a state with timm's names may be one of DINO's first files: those have no part that timm alone has."""
    scaled = any(name.endswith(".gamma") for name in state)
    return layout == "timm" and "timm_config" not in entries and not scaled and "register_tokens" not in state


def _resampling_doubt() -> str:
    offset, antialias = RESAMPLING["timm"]
    dinos = RESAMPLING["dinov2"]
    return (
        f"names of timm, whose models resample positions with offset {offset:g} and antialias {antialias}. If this is "
        f"a file of DINO's first version, set model.interpolate_offset = {dinos[0]} and model.interpolate_antialias = "
        f"{dinos[1]}"
    )


def _filled(state: State, width: int, depth: int, notes: list[str]) -> State:
    """The state with what other models do without: a mask token, and the scales of branches that are not scaled."""
    filled = dict(state)
    if "mask_token" not in state:
        filled["mask_token"] = torch.zeros(1, width)
        notes.append("no mask token in the file: zeros")
    if not any(name.endswith(("ls1.gamma", "ls2.gamma")) for name in state):
        scales = {f"blocks.{block}.{scale}.gamma" for block in range(depth) for scale in ("ls1", "ls2")}
        filled |= {name: torch.ones(width) for name in sorted(scales)}
        notes.append("no layer scale in the file: ones")
    return filled
