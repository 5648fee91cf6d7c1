"""What an evaluation found: scores that carry everything needed to repeat them, as JSON and as a table."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from franca.eval.errors import EvalError
from franca.files import replace_text

FORMAT = 1
Setting = str | int | float | bool


@dataclass(frozen=True)
class Score:
    """One number, or the mean of one number per seed."""

    metric: str  # "top1", "miou", …
    value: float  # in ``unit``; the mean of ``values`` where there are several
    resolution: str  # of the images as the model saw them, in pixels: "224", "518 windows, stride 259"
    settings: Mapping[str, Setting] = field(default_factory=dict)  # what tells it from the protocol's other scores
    slice: str = "d"  # d, d/2 … of the feature
    unit: str = "%"
    values: tuple[float, ...] = ()  # one per seed
    seeds: tuple[int, ...] = ()
    tta: str = "none"  # test-time augmentation
    better: Literal["higher", "lower", ""] = "higher"  # "": neither is better
    data: str = ""  # where it is not the evaluation's own test set
    split: str = ""
    data_hash: str = ""

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; None for fewer than two."""
        if len(self.values) < 2:
            return None
        mean = sum(self.values) / len(self.values)
        return float((sum((value - mean) ** 2 for value in self.values) / (len(self.values) - 1)) ** 0.5)


@dataclass(frozen=True)
class Origin:
    """What all scores of one evaluation share."""

    protocol: str
    preset: str  # whose settings: "paper", "dinov2", with "+" where options were changed
    options: Mapping[str, Any]  # the protocol's whole configuration
    model: str
    model_hash: str
    rasa: str  # "" | "inside" | file
    img_size: int | None  # side of the images for whose grid the model's positions were resampled; None: its own
    num_heads: int | None  # where the checkpoint didn't tell
    train_data: str  # layout
    train_split: str
    train_hash: str
    data: str
    split: str
    data_hash: str
    path: str  # of the test data, as it was named
    images: int  # of the test set, those that can't be read included
    precision: str  # of the backbone
    stored_as: str  # type of the features that were stored
    device: str
    versions: Mapping[str, str]  # franca, torch


def records_of(
    origin: Origin, scores: Sequence[Score], left_out: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """One flat record per score, each complete by itself; ``left_out``: images that can't be read, by split."""
    shared = asdict(origin) | {"left_out": dict(left_out or {})}
    return [
        shared
        | {key: value for key, value in asdict(score).items() if key not in ("data", "split", "data_hash") or value}
        | {"spread": score.spread, "elsewhere": bool(score.data or score.split)}
        for score in scores
    ]


def write_results(path: Path, origin: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Records as JSON, and their table beside it (.txt), whole or not at all. Raises OSError."""
    content = {"format": FORMAT, "origin": origin, "scores": list(records)}
    replace_text(path, json.dumps(content, indent=1) + "\n")
    replace_text(
        path.with_suffix(".txt"),
        f"{heading(records[0])}\n{table(records)}\n" if records else _drawn(path.parent, origin),
    )


def read_results(path: Path) -> dict[str, Any]:
    """``origin`` and ``scores`` of a file that `write_results` wrote. Raises EvalError for any other."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"]
        complete = content["origin"]["protocol"] and isinstance(content["scores"], list)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvalError(f"{path} holds no results of franca.eval ({error!r}); name a file that it wrote") from None
    if found != FORMAT or not complete:
        raise EvalError(f"{path} has format {found}, this version reads {FORMAT}: evaluate again")
    return content


def _drawn(folder: Path, origin: Mapping[str, Any]) -> str:
    """Of a protocol without scores: the pictures that it left."""
    names = [file.name for file in sorted(folder.glob("*.png"))]
    return "\n".join([heading(origin), "drawn: " + (", ".join(names) or "nothing"), ""])


def heading(origin: Mapping[str, Any]) -> str:
    """What was computed how, in a line: auto may mean another precision elsewhere. Records tell the images too."""
    rasa = {"": "", "inside": " with RASA"}.get(origin["rasa"], f" with RASA of {origin['rasa']}")
    return (
        f"{origin['model']}{rasa}, preset {origin['preset']}; network in {origin['precision']} on {origin['device']}, "
        f"features in {origin['stored_as']}" + _count(origin)
    )


def _count(told: Mapping[str, Any]) -> str:
    """``; 15 images scored``: those of the test set that can be read. Nothing where a setting takes some of them."""
    if "left_out" not in told or told["elsewhere"] or "images" in told["options"]:
        return ""
    left_out = told["left_out"].get(f"{told['data']} {told['split']}", 0)
    return f"; {told['images'] - left_out} images scored" + (f", {left_out} can't be read" if left_out else "")


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as columns of text, widest slice first as they come; for the terminal."""
    lines = [("metric", "value", "slice", "settings", "data", "px", "augmentation")]
    lines += [
        (
            record["metric"],
            value_text(record),
            record["slice"],
            settings_text(record["settings"]),
            f"{record['data']} {record['split']}",
            record["resolution"],
            record["tta"],
        )
        for record in records
    ]
    return columns(lines)


def columns(rows: Iterable[Sequence[str]]) -> str:
    """Cells of equally many columns, as aligned lines of text."""
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def value_text(record: Mapping[str, Any]) -> str:
    """``41.2 %`` or ``41.2 ± 0.4 %``: mean and standard deviation over the seeds."""
    spread, unit = record["spread"], record["unit"]
    digits = 1 if unit == "%" else 4
    shown = f"{record['value']:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")
    return f"{shown} {unit}".rstrip()


def settings_text(settings: Mapping[str, Setting]) -> str:
    """``k=20 voting=soft``."""
    return " ".join(f"{name}={value}" for name, value in settings.items())
