"""Names of a backbone's tensors: ours, and those of the layouts in circulation.

Ours are those of `VisionTransformer.state_dict()`. Every function takes a dictionary of tensors and returns a new one;
a name that it doesn't know stays as it is, so that whoever loads the result can name it.

Legend: D width, R registers, N patches, H hidden width of the feed-forward network.
"""

import math
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

# Both sides of each pair, theirs and ours; `attention` and SwiGLU differ in more than their names.
TRANSFORMERS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
}
TRANSFORMERS_BLOCK = {
    "attention.output.dense.": "attn.proj.",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.weights_in.": "mlp.w12.",
    "mlp.weights_out.": "mlp.w3.",
}
# What transformers 5 calls the same layers in memory; `save_pretrained` still writes the names above.
TRANSFORMERS_5_BLOCK = {"attention.o_proj.": "attn.proj.", "mlp.down_proj.": "mlp.w3."}
# Our layer -> their layers whose rows make it up, in order.
TRANSFORMERS_PARTS = {"attn.qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))}
TRANSFORMERS_5_PARTS = {
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "mlp.w12": ("mlp.gate_proj", "mlp.up_proj"),
}
TIMM_SWIGLU = {"mlp.w12.": "mlp.fc1.", "mlp.w3.": "mlp.fc2."}


def flatten_blocks(state: Mapping[str, Tensor]) -> State:
    """`blocks.<chunk>.<index>.…` -> `blocks.<index>.…`; flat names stay."""
    return _renamed(state, lambda name: re.sub(r"^blocks\.\d+\.(?=\d+\.)", "blocks.", name))


def chunk_blocks(state: Mapping[str, Tensor], chunks: int = 4) -> State:
    """`blocks.<index>.…` -> `blocks.<chunk>.<index>.…` as released: chunks of depth // chunks blocks, at least one."""
    size = max(1, depth(state) // chunks)
    return _renamed(
        state,
        lambda name: re.sub(r"^blocks\.(\d+)\.(?!\d+\.)", lambda m: f"blocks.{int(m[1]) // size}.{m[1]}.", name),
    )


def depth(state: Mapping[str, Tensor]) -> int:
    """Number of blocks of a state with our names."""
    return 1 + max(
        (int(found[1]) for found in (re.match(r"blocks\.(\d+)\.", name) for name in state) if found), default=-1
    )


def is_transformers(state: Mapping[str, Tensor]) -> bool:
    """Whether these are names of Hugging Face's Dinov2 or Dinov2WithRegisters, on disk or in memory."""
    return any(re.fullmatch(r"(\w+\.)?embeddings\.position_embeddings", name) for name in state)


def from_transformers(state: Mapping[str, Tensor]) -> State:
    """Hugging Face Dinov2Model or Dinov2WithRegistersModel (or a model around one) -> our names."""
    renamed = _renamed(state, _from_transformers)
    for index in range(depth(renamed)):
        for parts in (TRANSFORMERS_PARTS, TRANSFORMERS_5_PARTS):
            for whole, names in parts.items():
                _join(renamed, f"blocks.{index}.", whole, names)
    return renamed


def to_transformers(state: Mapping[str, Tensor]) -> State:
    """Our names -> those that files of Dinov2Model and, with registers, Dinov2WithRegistersModel hold."""
    split: State = {}
    for name, tensor in state.items():
        found = re.fullmatch(r"(blocks\.\d+\.)attn\.qkv\.(\w+)", name)
        if found:
            for part, rows in zip(TRANSFORMERS_PARTS["attn.qkv"], tensor.chunk(3), strict=True):
                split[f"{found[1]}{part}.{found[2]}"] = rows.clone()
        else:
            split[name] = tensor
    return _renamed(split, _to_transformers)


def is_timm(state: Mapping[str, Tensor]) -> bool:
    """Whether these are names of a timm VisionTransformer: DINOv2's, but for registers, SwiGLU and the mask token."""
    mlp = any(re.fullmatch(r"blocks\.\d+\.mlp\.fc1\.weight", name) for name in state)
    return mlp and ("reg_token" in state or "mask_token" not in state or _packed(state))


def from_timm(state: Mapping[str, Tensor]) -> State:
    """timm -> our names.

    A model with registers stores no position for its class token (N rows, not 1 + N): the class token already holds
    it, and ours gets a row of zeros.
    """
    theirs = {ours: name for name, ours in TIMM_SWIGLU.items()} if _packed(state) else {}
    renamed = _renamed(state, lambda name: _in_block(_replaced(name, {"reg_token": "register_tokens"}), theirs))
    positions = renamed.get("pos_embed")
    if positions is not None and positions.ndim == 3 and math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:
        renamed["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    return renamed


def to_timm(state: Mapping[str, Tensor]) -> State:
    """Our names -> timm's, without the mask token, which timm has not. With registers, the class token's position is
    added to the token itself."""
    theirs = {name: tensor for name, tensor in state.items() if name != "mask_token"}
    if "register_tokens" in theirs:
        theirs["cls_token"] = theirs["cls_token"] + theirs["pos_embed"][:, :1]
        theirs["pos_embed"] = theirs["pos_embed"][:, 1:].clone()
    return _renamed(theirs, lambda name: _in_block(_replaced(name, {"register_tokens": "reg_token"}), TIMM_SWIGLU))


def _renamed(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> State:
    return {rename(name): tensor for name, tensor in state.items()}


def _in_block(name: str, table: Mapping[str, str]) -> str:
    """`blocks.N.REST` with the beginning of REST replaced by the table's."""
    found = re.fullmatch(r"(blocks\.\d+\.)(.+)", name)
    return found[1] + _replaced(found[2], table) if found else name


def _replaced(name: str, table: Mapping[str, str]) -> str:
    """The name with its beginning replaced; a key that ends in a dot is a layer, another one a whole name."""
    for old, new in table.items():
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name[len(old) :]
    return name


def _from_transformers(name: str) -> str:
    name = re.sub(r"^dinov2(_with_registers)?\.", "", name)
    name = re.sub(r"^encoder\.layer\.(?=\d+\.)", "blocks.", name)
    return _replaced(_in_block(name, TRANSFORMERS_BLOCK | TRANSFORMERS_5_BLOCK), TRANSFORMERS)


def _to_transformers(name: str) -> str:
    name = _in_block(name, {ours: theirs for theirs, ours in TRANSFORMERS_BLOCK.items()})
    name = re.sub(r"^blocks\.(?=\d+\.)", "encoder.layer.", name)
    return _replaced(name, {ours: theirs for theirs, ours in TRANSFORMERS.items()})


def _join(state: State, block: str, whole: str, parts: tuple[str, ...]) -> None:
    """Replace the parts of a layer by the whole, where every part is there."""
    for kind in ("weight", "bias"):
        names = [f"{block}{part}.{kind}" for part in parts]
        if all(name in state for name in names):
            state[f"{block}{whole}.{kind}"] = torch.cat([state.pop(name) for name in names])


def _packed(state: Mapping[str, Tensor]) -> bool:
    """Whether `mlp.fc1` holds both halves of a SwiGLU: (2H, D) where `mlp.fc2` is (D, H)."""
    first = next((name for name in state if re.fullmatch(r"blocks\.\d+\.mlp\.fc1\.weight", name)), "")
    second = state.get(first.replace("fc1", "fc2"))
    return second is not None and second.ndim == 2 and state[first].shape[0] == 2 * second.shape[1]
