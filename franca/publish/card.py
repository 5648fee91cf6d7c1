"""The model card of a release, README.md: what the run knows of the model, and nothing else."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from franca.publish.parts import RASA_FACTS, RASA_HEAD, TEACHER
from franca.publish.privacy import NOT_STATED, last_name
from franca.publish.run import Run
from franca.train.quantities import TERMS


@dataclass(frozen=True)
class Card:
    """What a model card is filled from."""

    name: str
    run: Run
    described: Mapping[int, dict[str, Any]]  # step -> description of its teacher, oldest first
    data: str
    parameters: int  # of the backbone
    entry_point: str | None  # of torch.hub
    with_state: bool
    rasa: dict[str, Any] | None  # rasa.json
    licence: str

    @property
    def step(self) -> int:
        return max(self.described)

    @property
    def teacher(self) -> dict[str, Any]:
        return self.described[self.step]


Rows = list[tuple[str, str]]


def model_card(card: Card) -> str:
    """The page, as Markdown."""
    size = card.teacher["backbone"]["img_size"]
    sections = [
        f"# {card.name}",
        f"A vision transformer trained without labels by Franca: the teacher after {card.step} steps. This page was "
        f'filled from the records of the run; what they don\'t tell is "{NOT_STATED}".',
        f"**Licence:** {card.licence}",
        "## Use",
        *_use(card),
        f"Images hold values from 0 to 1, less the mean and divided by the standard deviation below; their sides are "
        f"multiples of the patch. Positions are stored for {size} × {size} pixels.",
        "## Model",
        _table(_model(card)),
        "## Training",
        _table(_training(card)),
        "Hardware and duration: " + NOT_STATED + ".",
        "## Results",
        _table(_results(card)),
        *(["## RASA", _table(_rasa(card.rasa))] if card.rasa else []),
        "## Files",
        _table(_files(card)),
        "`sha256sum -c SHA256SUMS` checks all of them.",
        *_checkpoints(card),
    ]
    return "\n\n".join(sections) + "\n"


def _use(card: Card) -> Iterator[str]:
    options = ", use_rasa_head=True" if card.rasa else ""
    code = f'import franca\n\nmodel = franca.load_model(checkpoint="{TEACHER}"{options})'
    yield f"In this folder:\n\n```python\n{code}\n```"
    if card.entry_point:
        arguments = f'"{card.entry_point}", source="local", local_state_dict="{TEACHER}"{options}'
        yield (
            "or with PyTorch alone, from a clone of Franca:\n\n```python\nimport torch\n\n"
            f'model = torch.hub.load("/path/to/franca", {arguments})\n```'
        )
    if card.rasa:
        yield "`model.forward_features(images, use_rasa_head=True)` then holds `patch_token_rasa`: no position in them."


def _model(card: Card) -> Rows:
    teacher, backbone = card.teacher, card.teacher["backbone"]
    heads, shown = teacher.get("heads") or {}, {"width": "embed_dim", "blocks": "depth", "heads": "num_heads"}
    shown |= {"feed-forward": "ffn", "patch": "patch_size", "registers": "num_register_tokens", "channels": "in_chans"}
    return [
        ("architecture", f"{teacher['arch']}: " + ", ".join(f"{name} {backbone[key]}" for name, key in shown.items())),
        ("parameters", f"{card.parameters:,} (backbone)"),
        ("pretraining heads", "; ".join(f"{name}: {_levels(head)}" for name, head in heads.items()) or NOT_STATED),
        ("mean, std", f"{_numbers(teacher.get('mean'))}; {_numbers(teacher.get('std'))}"),
        ("hash of the tensors", f"`{teacher['hash']}`"),
    ]


def _levels(head: Mapping[str, Any]) -> str:
    shares, counts = (", ".join(map(str, head[key])) for key in ("nesting", "prototypes"))
    return f"Matryoshka levels {shares} of the width, with {counts} prototypes"


def _training(card: Card) -> Rows:
    config, batch = card.run.config, card.run.config.effective_batch
    processes = f" × {config.world_size} processes" if config.world_size > 1 else ""
    crops, optimizer, versions = config.data.crops, config.optimizer, card.teacher["trained_with"]
    began = card.teacher.get("initialised_from")
    rows = [
        ("data", card.data),
        ("began with", f"{began['name']}, hash `{began['hash']}`" if began else "random weights"),
        ("images in the data", NOT_STATED),
        ("steps", f"{card.step} of {config.steps} planned"),
        ("images seen", f"{card.teacher['images_seen']:,}"),
        ("batch", f"{batch} images ({config.data.batch_size} × {config.accumulate} accumulated{processes})"),
        (
            "learning rate",
            f"peak {optimizer.peak_lr(batch):.3g}, {optimizer.warmup_steps:,} warm-up steps, cosine to "
            f"{optimizer.min_lr:.3g}",
        ),
        ("weight decay", f"{optimizer.weight_decay:g} to {optimizer.weight_decay_end:g}"),
        (
            "crops",
            f"2 of {crops.global_size} pixels, {crops.local_count} of {crops.local_size} pixels; masks: "
            f"{config.data.mask.kind}",
        ),
        ("precision", {"auto": "auto (bf16 where the device computes in it)"}.get(config.precision, config.precision)),
        ("seed", str(config.seed)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or NOT_STATED),
    ]
    return [*rows, ("all options", "[config.yaml](config.yaml)")]


def _results(card: Card) -> Rows:
    run, every = card.run, card.run.config.log.every
    losses = run.last_line("loss", card.step)
    verdict = run.last_line("verdict", card.step)
    scores = run.last_line("knn_", card.step)
    rows = [("loss", NOT_STATED)]
    if losses:
        terms = ", ".join(f"{name} {losses[name]:.4g}" for name in TERMS if losses.get(name) is not None)
        total = NOT_STATED if losses["loss"] is None else f"{losses['loss']:.4g}"
        mean = f", mean of {every} steps" if every > 1 else ""
        rows = [("loss", f"{total} ({terms}) at step {losses['step']}{mean}")]
    said = f"{verdict['verdict']}, at step {verdict['step']}: {verdict['verdict_reason']}" if verdict else NOT_STATED
    rows.append(("the monitor's last verdict", said))
    if not scores:
        return [*rows, ("k-NN accuracy", NOT_STATED)]
    named = ", ".join(f"{_score_name(name)}: {value:.1f} %" for name, value in scores.items() if name != "step")
    return [*rows, ("k-NN accuracy", f"{named}; at step {scores['step']}"), ("k-NN protocol", _protocol(card))]


def _score_name(name: str) -> str:
    """ "knn_cls@20" -> "class token, k = 20"."""
    feature, _, k = name.removeprefix("knn_").partition("@")
    return f"{ {'cls': 'class token', 'patch': 'mean patch'}.get(feature, feature) }, k = {k}"


def _protocol(card: Card) -> str:
    options = card.run.config.evaluation
    sets = "the labelled training folder split in two, one half as memory, the other as queries"
    if options.train:
        sets = f"memory {last_name(options.train)!r}, queries {last_name(options.test)!r}"
    limit = f", at most {options.max_images} images of each" if options.max_images else ""
    return f"{sets}{limit}; frozen teacher, images of {options.image_size} pixels"


def _rasa(facts: Mapping[str, Any]) -> Rows:
    rounds = facts.get("rounds") or []
    rows = [
        ("dimensions removed", f"{facts.get('dimensions_removed', NOT_STATED)} of {facts.get('width', NOT_STATED)}"),
        ("solver", str(facts.get("solver", NOT_STATED))),
    ]
    for words, made in zip(("first round", "last round"), [*rounds[:1], *rounds[-1:]], strict=False):
        error, chance = made["position_error_held_out"], made["position_error_by_chance"]
        rows.append((f"position error, {words}", f"{error:.4g} on images set apart ({chance:.4g} by chance)"))
    return [*rows, ("all numbers", f"[{RASA_FACTS}]({RASA_FACTS})")]


def _files(card: Card) -> Rows:
    rows = [(f"`{TEACHER}`", "weights of the teacher, with its pretraining heads and a description")]
    if card.rasa:
        rows += [(f"`{RASA_HEAD}`", "the RASA head of this teacher"), (f"`{RASA_FACTS}`", "how it was made")]
    if len(card.described) > 1 or card.with_state:
        what = "teacher and whole training state" if card.with_state else "teachers"
        rows.append(("`checkpoints/`", f"{what} of the steps below"))
    return [
        *rows,
        ("`config.yaml`", "every option of the run"),
        ("`metrics.jsonl`", "the lines that the run wrote, up to this step"),
        ("`manifest.json`, `SHA256SUMS`", "every file with size, SHA-256, step and hash of its tensors"),
    ]


def _checkpoints(card: Card) -> Iterator[str]:
    shown = card.described if card.with_state else {s: d for s, d in card.described.items() if s != card.step}
    if shown:
        yield "## Checkpoints"
        yield _rows(
            ["step", "images seen", "hash of the teacher"],
            [[str(step), f"{told['images_seen']:,}", f"`{told['hash']}`"] for step, told in shown.items()],
        )
    if card.with_state:
        yield "## Continue the run"
        yield _continuation(card)


def _continuation(card: Card) -> str:
    config = card.run.config
    keys = ["data.path" if not config.data.parts else "the paths in data.parts"]
    keys += ["evaluation.train and evaluation.test"] if config.evaluation.train else []
    ended = " This run has made all its steps: nothing is left to continue." if card.step >= config.steps else ""
    return (
        "A state is read by unpickling a part of it, which can run code: continue only what you trust. Copy this "
        f"folder, write where your images are ({', '.join(keys)}) into the `config.yaml` of the copy, and start it:\n\n"
        "```bash\npython -m franca.train --config COPY/config.yaml output=COPY\n```\n\n"
        f"On another number of processes than {max(config.world_size, 1)}, add `world_size=0` and choose "
        f"`data.batch_size` and `accumulate` so that a step still has {config.effective_batch} images.{ended}"
    )


def _numbers(values: list[float] | None) -> str:
    return ", ".join(f"{value:g}" for value in values) if values else NOT_STATED


def _table(rows: Rows) -> str:
    return _rows(["", ""], [list(row) for row in rows])


def _rows(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
