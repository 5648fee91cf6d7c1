"""Variants of a training, each with several seeds, scored alike: runs what is missing and lays all side by side.

STUDY is a YAML file such as configs/studies/ladder_cpu.yaml. Every training, RASA run and score is a process of its own
with its own folder below FOLDER. What is finished there is not run again, and what was stopped, by --minutes, Ctrl-C,
SIGTERM or a terminal that closes, goes on: the same command in stretches of any length comes to the same end, with
status 3 while there is more to do; what failed is tried again. Numbers that are not there yet read "not run", "failed",
or "not found" where a score has none of that name, which ends with status 2. FOLDER has all numbers, seed by seed
(STUDY.json), the tables (.md) and a picture (.png). --results FILE takes the numbers from one machine to the next: what
FILE has of the same tasks is not run again, and it and the picture beside it are renewed; what it has of other seeds,
or of other versions of the study, stays in it.
"""

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from franca.config import ConfigError
from franca.devices import choose_device, choose_precision
from franca.eval.errors import EvalError
from franca.eval.figures import can_draw
from franca.files import held, replace_text
from franca.openmp import sleep_while_waiting
from franca.reproduce.machine import commit
from measuring.facts import ROOT, facts
from studies.checks import require_runnable
from studies.config import StudyConfig, read_study
from studies.plan import Task, plan, require_parts, with_needs
from studies.results import StudyResults, gather, missing, not_found, read, require_same_data
from studies.running import Runner
from studies.tables import page, place_in, put_into


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Command line of this script."""
    about, _, text = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="YAML file that says which variants, seeds and scores")
    parser.add_argument("folder", type=Path, help="of all runs; made where it is not there")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER", help="what {NAME} stands for")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=60, help="after which all stop and save (default: %(default)s)"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="RUNG", help="these rungs, and those they begin with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="these seeds (default: those of the study)")
    parser.add_argument("--dry-run", action="store_true", help="list the tasks and their commands, then stop")
    parser.add_argument("--results", type=Path, metavar="FILE", help="numbers recorded before, kept and renewed")
    parser.add_argument("--page", type=Path, metavar="FILE", help="Markdown page that keeps a place for the tables")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="over the study's file, such as seeds=[0]"
    )
    options = parser.parse_intermixed_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: give one process or more")
    if not options.minutes >= 0:
        parser.error(f"--minutes {options.minutes:g}: give 0, to report without running, or more")
    return options


def folders(given: Sequence[str]) -> dict[str, Path]:
    """NAME=FOLDER as a table. Raises ConfigError for a folder that is not there."""
    table = {}
    for text in given:
        name, _, path = text.partition("=")
        if not path or not Path(path).expanduser().exists():
            raise ConfigError(f"--data {text}: give NAME=FOLDER of a folder that exists")
        table[name] = Path(path).expanduser().resolve()
    return table


def chosen(tasks: Sequence[Task], rungs: Sequence[str], seeds: Sequence[int], study: StudyConfig) -> list[Task]:
    """The tasks asked for. Raises ConfigError for a rung that there isn't, and for a seed that it, or no rung, has."""
    unknown = sorted(set(rungs) - set(study.rungs))
    if unknown:
        raise ConfigError(f"--only {' '.join(unknown)}: no such rung; there are {', '.join(study.rungs)}")
    seeds_there = {rung: study.seeds_of(rung) for rung in rungs} or {"the study": sorted({task.seed for task in tasks})}
    for name, there in seeds_there.items():
        lacking = sorted(set(seeds) - set(there))
        if lacking:
            raise ConfigError(f"--seeds {_spaced(lacking)}: {name} has {_spaced(there)}")
    return [t for t in tasks if (not rungs or t.rung in rungs) and (not seeds or t.seed in seeds)]


def _spaced(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def listing(tasks: Sequence[Task]) -> str:
    """Each task, whether it is finished, and its command."""
    return "\n".join(f"{task.name}{' (finished)' if task.finished else ''}\n  {task.line()}" for task in tasks)


def fingerprints(data: Mapping[str, Path]) -> dict[str, str]:
    """Of each folder, how many files it has, and a hash of their names and sizes; hidden files don't count."""
    told = {}
    for name, folder in data.items():
        visible = (path for path in folder.rglob("*.*") if not path.name.startswith("."))
        files = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in visible)
        told[name] = f"{len(files)} files, {hashlib.sha256(json.dumps(files).encode()).hexdigest()[:8]}"
    return told


def recorded_in(file: Path | None) -> StudyResults:
    """What --results FILE holds. Raises ConfigError, also where the folder that it would be written to is not there."""
    if file is None:
        return StudyResults()
    if not file.parent.is_dir():
        raise ConfigError(f"--results {file}: there is no folder {file.parent}; make it, or name a file elsewhere")
    return read(file) if file.exists() else StudyResults()


def make_folder(folder: Path) -> None:
    """Of all runs. Raises ConfigError where it can't be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"FOLDER {folder} can't be made ({error.strerror}); name another") from None


def report(options: argparse.Namespace, study: StudyConfig, tasks: Sequence[Task], results: StudyResults) -> None:
    """Write and print all that is there; what the tables don't show is kept in the files all the same."""
    name, current = options.study.stem, results.of(tasks)
    text = page(study, current)
    commits = list(dict.fromkeys(place["commit"] for place in current.places))
    if len(commits) > 1:
        said = "WARNING: these numbers are of several commits (%s); a difference between rows may come of that"
        logging.getLogger(__name__).warning(said, ", ".join(commits))
    files = [options.folder / f"{name}.json", *([options.results] if options.results else [])]
    for file in files:
        results.write(file)
        if can_draw():
            from studies.pictures import draw

            draw(file.with_suffix(".png"), study, current)
    replace_text(options.folder / f"{name}.md", f"# {study.title}\n\n{text}\n")
    if options.page:
        put_into(options.page, name, text)
    print(text)


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing and report; exit status as `Runner.run`, 2 where the question or a column is wrong."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    sleep_while_waiting()
    options.folder = options.folder.resolve()
    try:
        data = folders(options.data)
        study = read_study(options.study, options.overrides)
        tasks = plan(study, options.folder, data)
        recorded = recorded_in(options.results)
        asked = chosen(tasks, options.only, options.seeds, study)
        data_now = fingerprints(data)
        require_same_data(tasks, recorded, data_now)
        wanted = missing(tasks, asked, recorded)
        if wanted:
            require_parts(study.texts(), data)
            require_runnable(wanted)
        if options.page:
            place_in(options.page, options.study.stem)
        if options.dry_run:
            print(listing(wanted))
            return 0
        make_folder(options.folder)
        device = choose_device("auto")
        place = facts(device, choose_precision("auto", device)) | {"commit": commit(ROOT)} | data_now
        with held(options.folder):
            before = len(with_needs(asked)) - len(wanted)
            status = Runner(wanted, options.jobs, 60 * options.minutes, place, before).run()
            results = gather(study, tasks, recorded_in(options.results))  # others may have written to it meanwhile
            report(options, study, tasks, results)
        wrong = not_found(study, tasks, results.of(tasks))
        for words in wrong:
            print(f"error: {words}", file=sys.stderr)
        return status or (2 if wrong else 0)
    except (ConfigError, EvalError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
