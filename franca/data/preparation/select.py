"""Rows of LAION's metadata that are worth downloading: parquet files in, a list for img2dataset and a report out.

One pass over the files applies the rules and deals the rows into buckets by their first key (hash or address); each
further pass drops the repetitions within every bucket and deals by the next key. No step holds more than DuckDB's
limit of memory, a bucket that is larger goes to disk. Files and buckets are the parts that an interrupted run keeps.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from franca import __version__
from franca.data.preparation.columns import find_columns, require
from franca.data.preparation.database import Database, identifier, opened, parquet
from franca.data.preparation.errors import PreparationError
from franca.data.preparation.img2dataset import download_command
from franca.data.preparation.report import selection_text
from franca.data.preparation.rules import SelectionConfig, quoted, reason_of
from franca.data.preparation.work_folder import WorkFolder
from franca.hub.progress import Progress

ROWS_PER_BUCKET = 2_000_000
MAX_BUCKETS = 512  # each is a file that stays open while one input is read
FILE_BITS = 40  # a row's number is (number of its file << FILE_BITS) + its place there
KEPT = ("caption", "id", "hash")  # roles that go into the list beside url


@dataclass(frozen=True)
class Table:
    """One metadata file."""

    file: Path
    rows: int
    names: tuple[str, ...]
    columns: dict[str, str]  # role -> name


def select(
    inputs: Sequence[str | Path],
    output: str | Path,
    config: SelectionConfig | None = None,
    columns: Mapping[str, str] | None = None,
    memory: str = "4GB",
    threads: int = 0,
    image_size: int = 384,
    distributor: str = "multiprocessing",
    rows_per_bucket: int = ROWS_PER_BUCKET,
    restart: bool = False,
) -> dict[str, Any]:
    """Write `list/*.parquet`, `report.json` and `report.txt` into `output`; returns the report.

    Args:
        inputs: parquet files, or folders whose *.parquet files are taken, at any depth.
        output: folder of this step; the same call goes on in it.
        config: the rules.
        columns: role -> name of its column, where find_columns doesn't know it.
        memory, threads: limits of DuckDB; they change no result.
        image_size, distributor: of the command in the report.
        rows_per_bucket: about how many rows a file of the list holds at most.
        restart: throw away what another call left in `output`.

    Raises:
        PreparationError: no input, a file that can't be read, columns that are missing, other options than before.
    """
    config = config or SelectionConfig()
    output = Path(output).expanduser()
    files = [file for file in find_parquet(inputs) if output.absolute() not in file.absolute().parents]
    options = asdict(config) | {"columns": dict(columns or {}), "rows_per_bucket": rows_per_bucket}
    with WorkFolder(output, "select", options, files, restart) as work:
        report = work.report
        if report is None:
            with opened(memory, threads, work.folder("temporary")) as database:
                tables = [_read_table(database, file, config, columns) for file in files]
                report = _Selection(work, database, tables, config, rows_per_bucket).run()
        hash_column = next((file["columns"]["hash"] for file in report["files"] if "hash" in file["columns"]), "")
        kept = tuple(name for name in report["columns"] if name not in ("url", "caption"))
        report["command"] = download_command(
            output / "list", kept, hash_column, image_size, config.min_side, config.max_aspect, distributor
        )
        work.finish(report, selection_text(report))
    return report


def find_parquet(inputs: Sequence[str | Path]) -> list[Path]:
    """The files, folders replaced by what they hold in alphabetical order. Raises PreparationError."""
    files: dict[Path, None] = {}
    for given in inputs:
        path = Path(given).expanduser()
        found = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not path.exists() or not found:
            raise PreparationError(f"{path} " + ("holds no *.parquet file" if path.exists() else "does not exist"))
        files |= dict.fromkeys(found)
    return list(files)


def _read_table(database: Database, file: Path, config: SelectionConfig, chosen: Mapping[str, str] | None) -> Table:
    source = parquet(file)
    names = tuple(row[0] for row in database.rows(f"DESCRIBE SELECT * FROM {source}", str(file)))
    columns = find_columns(names, chosen)
    require(columns, config.needed, names, str(file))
    ((rows,),) = database.rows(f"SELECT count(*) FROM {source}", str(file))
    return Table(file, rows, names, columns)


class _Selection:
    """The passes over files and buckets."""

    def __init__(
        self, work: WorkFolder, database: Database, tables: list[Table], config: SelectionConfig, rows_per_bucket: int
    ) -> None:
        self.work, self.database, self.tables, self.config = work, database, tables, config
        everywhere = set.intersection(*(set(table.columns) for table in tables))
        known = {role for table in tables for role in table.columns}
        kinds = config.duplicates
        self.kinds = tuple(kind for kind in ("hash", "url") if kind in everywhere) if kinds is None else kinds
        self.columns = ("url", "caption", *(role for role in KEPT[1:] if role in known))
        rows = sum(table.rows for table in tables)
        self.buckets = min(max(1, -(-rows // rows_per_bucket)), MAX_BUCKETS)

    def run(self) -> dict[str, Any]:
        files = self._filter()
        dropped: Counter[str] = Counter()
        for told in files:
            dropped.update(told["dropped"])
        source = "filter"
        for number, kind in enumerate(self.kinds):
            last = number + 1 == len(self.kinds)
            dropped[f"duplicate_{kind}"] = self._unique(kind, source, "" if last else self.kinds[number + 1])
            source = kind
        if not self.kinds:
            self._unique("", source, "")
            source = "all"
        return self._report(files, dropped, self._publish(source))

    def _filter(self) -> list[dict[str, Any]]:
        """Apply the rules to every file; the rows that stay are dealt into buckets."""
        told = []
        with Progress("rules", sum(table.file.stat().st_size for table in self.tables)) as progress:
            for number, table in enumerate(self.tables):
                told.append(self.work.part(f"filter/{number:06}", partial(self._filter_file, number, table)))
                progress.add(table.file.stat().st_size)
        return told

    def _filter_file(self, number: int, table: Table, folder: Path) -> dict[str, Any]:
        values = {role: f"rows.{identifier(name)}" for role, name in table.columns.items()}
        rows = f"{parquet(table.file, numbered=True)} AS rows"
        source = f'(SELECT *, {reason_of(self.config, values)} AS "broken rule" FROM {rows})'
        counted = self.database.rows(
            f'SELECT "broken rule", count(*) FROM {source} AS rows GROUP BY ALL', str(table.file)
        )
        counts = {reason: count for reason, count in counted if reason is not None}
        chosen = [f"trim({values['url']}, chr(9) || chr(10) || chr(13) || ' ') AS url"]
        for role in self.columns[1:]:
            value = f"{values[role]}::VARCHAR" if role in values else "NULL::VARCHAR"
            chosen.append(f"{value} AS {role}")
        chosen.append(f"({number << FILE_BITS} + rows.file_row_number)::BIGINT AS number")
        kept = f'SELECT {", ".join(chosen)} FROM {source} AS rows WHERE "broken rule" IS NULL'
        self._deal(kept, self.kinds[0] if self.kinds else "url", folder, str(table.file))
        return {
            "name": str(table.file),
            "rows": table.rows,
            "kept": table.rows - sum(counts.values()),
            "dropped": counts,
            "columns": table.columns,
        }

    def _unique(self, kind: str, source: str, next_kind: str) -> int:
        """Keep the first row of every key, in each bucket; returns how many rows were dropped."""
        buckets = {bucket: self._files(source, bucket) for bucket in range(self.buckets)}
        sizes = {bucket: sum(file.stat().st_size for file in files) for bucket, files in buckets.items()}
        dropped = 0
        with Progress(f"duplicates by {kind}" if kind else "list", sum(sizes.values())) as progress:
            for bucket, files in buckets.items():
                if files:
                    make = partial(self._unique_bucket, kind, files, next_kind)
                    dropped += self.work.part(f"{kind or 'all'}/{bucket:06}", make)["dropped"]
                    progress.add(sizes[bucket])
        return dropped

    def _unique_bucket(self, kind: str, files: list[Path], next_kind: str, folder: Path) -> dict[str, Any]:
        origin = f"{len(files)} files such as {files[0]}"
        source = parquet(*files)
        ((rows,),) = self.database.rows(f"SELECT count(*) FROM {source}", origin)
        kept = f"SELECT {', '.join(self.columns)}, number FROM {source}"
        if kind:
            # The least number of every key, not a window over its rows: one key may have any number of them.
            first = f"SELECT min(number) FROM {source} WHERE {kind} IS NOT NULL GROUP BY {kind}"
            kept += f" WHERE {kind} IS NULL OR number IN ({first})"
        if next_kind:
            self._deal(kept, next_kind, folder, origin)
        else:
            self._write(
                f"SELECT {', '.join(self.columns)} FROM ({kept}) ORDER BY number", folder / "rows.parquet", origin
            )
        written = sorted(folder.rglob("*.parquet"))
        count = f"SELECT count(*) FROM {parquet(*written)}" if written else "SELECT 0"
        ((left,),) = self.database.rows(count, origin)
        return {"dropped": rows - left, "kept": left}

    def _deal(self, rows: str, kind: str, folder: Path, origin: str) -> None:
        key = "url" if kind == "url" else f"coalesce({kind}, url)"
        # md5, because DuckDB's own hash may change with its version.
        bucket = f"(md5_number_lower({key}) % {self.buckets})::INTEGER AS bucket"
        target = quoted(str(folder / "rows"))
        self.database.rows(
            f"COPY (SELECT *, {bucket} FROM ({rows})) TO {target} "
            "(FORMAT parquet, COMPRESSION zstd, PARTITION_BY (bucket))",
            origin,
        )

    def _write(self, rows: str, file: Path, origin: str) -> None:
        self.database.rows(f"COPY ({rows}) TO {quoted(str(file))} (FORMAT parquet, COMPRESSION zstd)", origin)

    def _files(self, source: str, bucket: int) -> list[Path]:
        return sorted(self.work.folder(source).glob(f"[0-9]*/rows/bucket={bucket}/*.parquet"))

    def _publish(self, source: str) -> int:
        """The buckets of the last pass become `list/`; returns how many rows it holds."""
        results: dict[str, Path] = {}
        kept = 0
        for part in sorted(self.work.folder(source).glob("[0-9]*")):
            told = self.work.told(f"{source}/{part.name}")
            if told["kept"]:
                results[f"{part.name}.parquet"] = part / "rows.parquet"
                kept += told["kept"]
        self.work.publish("list", results)
        return kept

    def _report(self, files: list[dict[str, Any]], dropped: Counter[str], kept: int) -> dict[str, Any]:
        return {
            "step": "select",
            "rows": sum(table.rows for table in self.tables),
            "kept": kept,
            "dropped": {reason: count for reason, count in dropped.items() if count},
            "options": asdict(self.config) | {"duplicates": list(self.kinds), "nsfw_tags": list(self.config.nsfw_tags)},
            "columns": list(self.columns),
            "files": files,
            "versions": {"franca": __version__, "duckdb": duckdb.__version__},
        }
