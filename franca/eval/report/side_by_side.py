"""A page that puts several models side by side: their scores in one table per protocol and data set, their pictures."""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from franca.eval.errors import EvalError
from franca.eval.report import page
from franca.eval.result import read_results, settings_text, value_text

NAMES = {"knn": "k-NN", "in_context": "In-context segmentation", "linear": "Linear probe"}


@dataclass(frozen=True)
class Column:
    """One model on one protocol and data set."""

    folder: Path
    origin: dict[str, Any]
    scores: list[dict[str, Any]]

    @property
    def question(self) -> tuple[str, ...]:
        """What must agree for two models to be compared."""
        keys = ("protocol", "data", "split", "data_hash", "train_data", "train_split", "train_hash", "preset")
        options = json.dumps(self.origin["options"], sort_keys=True)
        return (*(self.origin[key] for key in keys), options)


def build_page(places: Sequence[Path], output: Path) -> Path:
    """Write ``index.html`` and the pictures it shows; returns its path.

    Args:
        places: results.json files, or folders below which they lie.

    Raises:
        EvalError: no results there, or a file that holds none.
        OSError: the page can't be written.
    """
    columns = sorted(map(_read, _find(places)), key=lambda column: (column.question, column.origin["model"]))
    output.mkdir(parents=True, exist_ok=True)
    sections = []
    for number, (_, group) in enumerate(groupby(columns, key=lambda column: column.question)):
        sections += _compare(list(group), output, f"pictures/{number}")
    subtitle = f"{len({_model(column) for column in columns})} models, {len(columns)} evaluations"
    index = output / "index.html"
    index.write_text(page.page("Models side by side", subtitle, sections, broad=True), encoding="utf-8")
    return index


def _find(places: Sequence[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for place in places:
        files = sorted(place.rglob("results.json")) if place.is_dir() else [place]
        if not files:
            raise EvalError(f"{place} holds no results.json: name a folder that franca.eval wrote to (--output)")
        found |= dict.fromkeys(files)
    return list(found)


def _read(file: Path) -> Column:
    content = read_results(file)
    return Column(file.parent, content["origin"], content["scores"])


def _compare(columns: list[Column], output: Path, pictures: str) -> list[str]:
    origin = columns[0].origin
    name = NAMES.get(origin["protocol"], origin["protocol"].replace("_", " ").capitalize())
    computed = " or ".join(sorted({column.origin["precision"] for column in columns}))
    told = _told_in_rows(columns)
    parts = [page.paragraph(f"{_data(origin, told)}. Networks in {computed}.")]
    if any(column.scores for column in columns):
        parts.append(_scores(columns))
    parts += _pictures(columns, output, pictures)
    parts.append(page.folded("Where these numbers come from", _provenance(columns)))
    data = Path(origin["path"].rpartition(":")[2]).name or origin["data"]
    return [page.section(f"{name} · {data}, {origin['split']}", *parts)]


def _told_in_rows(columns: list[Column]) -> set[str]:
    """Settings that the name of every row tells, in its own words (memory=all for memory=0)."""
    rows = [set(record["settings"]) for column in columns for record in column.scores]
    return set.intersection(*rows) if rows else set()


def _data(origin: dict[str, Any], told: set[str]) -> str:
    """What was learned from and scored on, and all settings but those that are told elsewhere."""
    trained = f"Learned on {origin['train_data']} {origin['train_split']}, scored" if origin["train_data"] else "Scored"
    options = " ".join(f"{name}={value}" for name, value in origin["options"].items() if name not in told)
    return f"{trained} on {origin['data']} {origin['split']}. Settings, {origin['preset']}: {options}".rstrip()


def _scores(columns: list[Column]) -> str:
    """One row per score, one column per model; the best of a row is pointed out."""
    by_row: dict[str, dict[int, dict[str, Any]]] = {}
    for number, column in enumerate(columns, start=1):
        for record in column.scores:
            by_row.setdefault(_row_name(record), {})[number] = record
    rows, best = [], []
    for row, (name, records) in enumerate(by_row.items()):
        rows.append([name, *(value_text(records[n]) if n in records else "–" for n in range(1, len(columns) + 1))])
        best += [(row, number) for number in _best(records)]
    return page.table(["", *map(_model, columns)], rows, best=best)


def _best(records: dict[int, dict[str, Any]]) -> Iterable[int]:
    direction = next(iter(records.values()))["better"]
    if len(records) < 2 or not direction:
        return []
    choose = max if direction == "higher" else min
    wanted = choose(record["value"] for record in records.values())
    return [number for number, record in records.items() if record["value"] == wanted]


def _row_name(record: dict[str, Any]) -> str:
    parts = [record["metric"], settings_text(record["settings"])]
    parts += [f"slice {record['slice']}"] if record["slice"] != "d" else []
    parts += [f"{record['resolution']} px"]
    parts += [record["tta"]] if record["tta"] != "none" else []
    parts += [f"on {record['data']} {record['split']}"] if record["elsewhere"] else []
    return ", ".join(part for part in parts if part)


def _model(column: Column) -> str:
    """Its name; of a file the last two parts of its path."""
    kind, colon, name = column.origin["model"].rpartition(":")
    return kind + colon + "/".join(Path(name).parts[-2:]) + (" + RASA" if column.origin["rasa"] else "")


def _pictures(columns: list[Column], output: Path, below: str) -> list[str]:
    """PNG files of the same name, beside one another."""
    names = sorted({path.name for column in columns for path in column.folder.glob("*.png")})
    shown = []
    for name in names:
        row = []
        for number, column in enumerate(columns):
            if (column.folder / name).is_file():
                target = output / below / f"{number}-{name}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(column.folder / name, target)
                alt = f"{Path(name).stem} of {_model(column)}"
                row.append(page.picture(f"{below}/{target.name}", alt, f"{Path(name).stem}: {_model(column)}"))
        shown.append(page.side_by_side(row))
    return shown


def _provenance(columns: list[Column]) -> str:
    return "\n\n".join(
        "\n".join([_model(column), *(f"  {key}: {_plain(value)}" for key, value in column.origin.items())])
        for column in columns
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
