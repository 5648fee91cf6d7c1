"""A checkpoint's tensors, taken out of their wrappers and sorted: the backbone, heads, and a RASA head."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from franca.hub.checkpoint import CheckpointError
from franca.hub.names import State

# Entries in which training scripts keep the weights, in the order in which they are preferred.
ENTRIES = ("teacher", "model_ema", "ema", "state_dict", "model", "student")
# What wrappers put into names, wherever it stands; and what stands before the backbone's names.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
OWNERS = {"teacher", "student", "model", "backbone"}
HEADS = {"dino_head", "ibot_head", "head", "linear_head", "classifier"}
RASA = ("rasa_head", "pos_pred", "pre_pos_layers")  # where the names of a RASA head begin


def split(content: Any, origin: str) -> tuple[State, dict[str, State], State | None]:
    """A checkpoint's tensors: those of the backbone under its authors' names, of each head, and of a RASA head.

    The RASA head may lie among the backbone's tensors or in an entry of its own beside theirs.

    Raises CheckpointError where two tensors claim one name.
    """
    entry = _weights_entry(content)
    state = dict(_flat(content)) if isinstance(content, Mapping) else {}
    backbone: State = {}
    heads: dict[str, State] = {}
    rasa: State = {}
    for name, tensor in _selected(_below(entry, state), origin).items():
        owner, _, rest = name.partition(".")
        if owner in HEADS:
            heads.setdefault(owner, {})[rest] = tensor
        elif owner in RASA:
            rasa[name.removeprefix("rasa_head.")] = tensor
        else:
            backbone[name] = tensor
    return backbone, heads, rasa or _rasa_apart(state, entry, origin) or None


def _weights_entry(content: Any) -> str:
    """The dotted name, with a dot behind it, of the entry that holds the weights; "" where no entry does."""
    if isinstance(content, Mapping):
        for entry in ENTRIES:
            if isinstance(content.get(entry), Mapping) and any(True for _ in _flat(content[entry])):
                return f"{entry}.{_weights_entry(content[entry])}"
    return ""


def _below(entry: str, state: State) -> State:
    return {name.removeprefix(entry): tensor for name, tensor in state.items() if name.startswith(entry)}


def _rasa_apart(state: State, entry: str, origin: str) -> State:
    """A RASA head beside the weights. One among another network's weights, or an optimizer's, belongs to those."""
    rasa: State = {}
    outer = {entry.split(".")[0]} if entry.count(".") > 1 else set()  # an entry around the weights' own
    for name, tensor in state.items():
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        places = [place for place, part in enumerate(parts) if part in RASA]
        owners = set(parts[: places[0]]) - outer if places else set()
        if not places or owners & set(ENTRIES) or any("optim" in owner for owner in owners):
            continue
        found = ".".join(parts[places[-1] :]).removeprefix("rasa_head.")
        if found in rasa:
            raise CheckpointError(f"{origin} holds several RASA heads: give it one alone, as RASA_local_state_dict=…")
        rasa[found] = tensor
    return rasa


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _flat(value, f"{prefix}.{name}" if prefix else str(name))


def _selected(state: Mapping[str, Tensor], origin: str) -> State:
    """Names without wrappers and owners; the teacher's tensors alone where there is a teacher, else the student's."""
    named = [([part for part in name.split(".") if part not in WRAPPERS], tensor) for name, tensor in state.items()]
    for owner in ("teacher", "student"):
        owned = [(parts, tensor) for parts, tensor in named if owner in parts[:2]]
        if owned:
            named = owned
            break
    selected: State = {}
    for parts, tensor in named:
        while len(parts) > 1 and parts[0] in OWNERS:
            parts = parts[1:]
        name = ".".join(parts)
        if name in selected:
            raise CheckpointError(f"{origin} holds several tensors {name}: give it the state_dict of one model alone")
        selected[name] = tensor
    return selected
