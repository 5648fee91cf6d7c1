"""Scores on the terminal: what all share in two lines, the rest in a table that has a column for each value of k.

results.json keeps every score by itself, results.txt a line for each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from franca.eval.result import columns, heading, settings_text, value_text

Record = Mapping[str, Any]
SHARED = {"settings": "{}", "data": "{}", "px": "{} px", "augmentation": "augmentation {}"}  # head -> how it is said


def overview(records: Sequence[Record]) -> str:
    """The scores of one evaluation: rows are slices and settings, columns the values of the first setting."""
    head, *rows = _spread(records, next(iter(records[0]["settings"]), ""))
    same = {name for place, name in enumerate(head) if name in SHARED and len({row[place] for row in rows}) == 1}
    shown = [place for place, name in enumerate(head) if name not in same]
    said = [SHARED[name].format(rows[0][place]) for place, name in enumerate(head) if name in same and rows[0][place]]
    lines = columns([[row[place] for place in shown] for row in (head, *rows)])
    return "\n".join([heading(records[0]), *([", ".join(said)] if said else []), lines])


def _spread(records: Sequence[Record], setting: str) -> list[tuple[str, ...]]:
    """Cells of the head and of every row."""
    values = list(dict.fromkeys(record["settings"].get(setting) for record in records))
    if len(values) < 2:
        setting, values = "", [None]
    rows: dict[tuple[str, ...], dict[Any, str]] = {}
    for record in records:
        rest = {name: value for name, value in record["settings"].items() if name != setting}
        place = f"{record['data']} {record['split']}"
        row = (record["metric"], record["slice"], settings_text(rest), place, record["resolution"], record["tta"])
        rows.setdefault(row, {})[record["settings"].get(setting)] = value_text(record)
    heads = ["value" if value is None else f"{setting}={value}" for value in values]
    return [
        ("metric", "slice", *heads, "settings", "data", "px", "augmentation"),
        *((*row[:2], *(cells.get(value, "") for value in values), *row[2:]) for row, cells in rows.items()),
    ]
