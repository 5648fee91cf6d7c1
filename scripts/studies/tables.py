"""A study's numbers as Markdown, also in the place that a page keeps for them."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from franca.config import ConfigError
from franca.files import replace_text
from measuring.facts import markdown
from studies.config import ColumnConfig, CurveConfig, StudyConfig
from studies.results import StudyResults, difference, mean_and_spread, slices_of

NOT_RUN, FAILED, NOT_FOUND, NOT_ASKED = "not run", "failed", "not found", ""


def page(study: StudyConfig, results: StudyResults) -> str:
    """The table of scores, that of differences, those of curves, and where they were taken."""
    parts = [scores_table(study, results)]
    if re.search(r" \(\d+\) \|", parts[0]):
        parts.append("(n): of n seeds alone.")
    rows = differences(study, results)
    if rows:
        head = ["", *(column.title for column in study.columns.values())]
        parts += ["Differences, seed by seed; bold where their 95 % interval leaves out 0:", markdown(head, rows)]
    parts += [curve_table(study, results, curve) for curve in study.curves if results.lines(curve)]
    return "\n\n".join([*parts, provenance(results)])


def scores_table(study: StudyConfig, results: StudyResults) -> str:
    """A row for each rung: mean ± standard deviation over its seeds; (n): of n seeds, where a row's cells differ."""
    head = ["", *(column.title for column in study.columns.values()), "seeds", "minutes each"]
    rows = []
    for name, rung in study.rungs.items():
        counts = {len(results.shown(name, key, column)) for key, column in study.columns.items()} - {0}
        cells = [_score(study, results, name, key, counted=len(counts) > 1) for key in study.columns]
        planned, done = len(study.seeds_of(name)), min(counts, default=0)
        seeds = f"{done} of {planned}" if len(counts) < 2 and done < planned else str(planned)
        failed = len(results.failed_seeds(name))
        seeds += f", {failed} failed" if failed else ""
        minutes = results.minutes(name)
        took = f"{sum(minutes) / len(minutes):.1f}" if minutes else ""
        rows.append([rung.label or name, *cells, seeds, took])
    return markdown(head, rows)


def differences(study: StudyConfig, results: StudyResults) -> list[list[str]]:
    """A row for each rung and each that it is compared with, as far as both have a number."""
    rows = []
    for name, rung in study.rungs.items():
        for other in rung.against:
            cells = [_difference(results, name, other, key, column) for key, column in study.columns.items()]
            label = f"{rung.label or name} against {study.rungs[other].label or other}"
            rows += [[label, *cells]] if any(cells) else []
    return rows


def curve_table(study: StudyConfig, results: StudyResults, curve: CurveConfig) -> str:
    """A row for each rung of a curve, a cell for each slice: mean ± standard deviation over the seeds."""
    lines, digits = results.lines(curve), study.columns[curve.column].digits
    slices = slices_of(lines)
    rows = []
    for name, by_slice in lines.items():
        cells = [_spread_text(by_slice[slice_], digits) if slice_ in by_slice else "" for slice_ in slices]
        rows.append([study.rungs[name].label or name, *cells, str(min(map(len, by_slice.values())))])
    return markdown([curve.title, *slices, "seeds"], rows)


def _score(study: StudyConfig, results: StudyResults, rung: str, key: str, counted: bool) -> str:
    column = study.columns[key]
    if not study.asks(rung, column.score):
        return NOT_ASKED
    values = results.shown(rung, key, column)
    if not values:
        if results.failed_seeds(rung, column.score):
            return FAILED
        return NOT_FOUND if results.ran(rung, column.score) else NOT_RUN
    text = _spread_text(values, column.digits)
    return f"{text} ({len(values)})" if counted else text


def _spread_text(values: Mapping[int, float], digits: int) -> str:
    mean, spread = mean_and_spread(values)
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def _difference(results: StudyResults, rung: str, other: str, key: str, column: ColumnConfig) -> str:
    found = difference(results.shown(rung, key, column), results.shown(other, key, column))
    if found is None:
        return ""
    spread = f" ± {found.spread:.{column.digits}f}" if found.spread is not None else ""
    text = f"{found.mean:+.{column.digits}f}{spread}"
    return f"**{text}**" if found.clear else text


def provenance(results: StudyResults) -> str:
    """Where the numbers were taken, in a sentence."""
    if not results.places:
        return "Nothing of this has been run to its end." if results.failed else "Nothing of this has been run."
    devices, torch, commits = (
        "; ".join(dict.fromkeys(", ".join(place[name] for name in names) for place in results.places))
        for names in (("device", "precision"), ("torch",), ("commit",))
    )
    return f"Run on {devices} (torch {torch}; commit {commits})."


def put_into(page_file: Path, study: str, text: str) -> None:
    """Replace what stands in a study's place of a page. Raises ConfigError."""
    place = place_in(page_file, study)
    replace_text(page_file, place.re.sub(lambda ends: f"{ends[1]}{text}\n{ends[2]}", place.string))


def place_in(page_file: Path, study: str) -> re.Match[str]:
    """From ``<!-- study NAME -->`` to ``<!-- end -->``, these as groups 1 and 2. Raises ConfigError."""
    pattern = rf"(<!-- study {re.escape(study)} -->\n)(?:.*?\n)??(<!-- end -->)"
    found = re.search(pattern, page_file.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise ConfigError(f"{page_file} has no place '<!-- study {study} -->' … '<!-- end -->' for the table")
    return found


def places_of(page_file: Path) -> Iterator[tuple[str, str]]:
    """Every study that a page shows, and what it shows of it."""
    text = page_file.read_text(encoding="utf-8")
    for found in re.finditer(r"<!-- study (\S+) -->\n(?:(.*?)\n)??<!-- end -->", text, re.DOTALL):
        yield found[1], found[2] or ""
