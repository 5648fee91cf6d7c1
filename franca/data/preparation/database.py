"""DuckDB within a fixed amount of memory; what does not fit goes to disk."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from franca.data.preparation.errors import PreparationError
from franca.data.preparation.rules import quoted

MAX_THREADS = 8


class Database:
    """A connection that names files in its errors. Raises PreparationError for settings that DuckDB refuses.

    Args:
        memory: limit such as "4GB".
        threads: of DuckDB, 0: one per core, MAX_THREADS at most. Each needs memory for a row group of the files.
        temporary: folder for what does not fit.
    """

    def __init__(self, memory: str, threads: int, temporary: Path) -> None:
        self.memory = memory
        settings: dict[str, Any] = {
            "memory_limit": memory,
            "threads": str(threads or min(os.cpu_count() or 1, MAX_THREADS)),
            "temp_directory": str(temporary),
            "preserve_insertion_order": "false",  # rows carry their number; keeping their order would cost memory
            "enable_external_file_cache": "false",  # every file is read once
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
        try:
            self.connection = duckdb.connect(config=settings)
            self.connection.execute("SET enable_progress_bar = false")  # it would go to stdout
        except duckdb.Error as error:
            raise PreparationError(f"--memory {memory} --threads {threads}: {_first_line(error)}") from None
        self._thread = ThreadPoolExecutor(max_workers=1)

    def rows(self, sql: str, origin: str) -> list[tuple[Any, ...]]:
        """All rows of a result that is known to be small. origin: the files that are read or written, for errors."""
        try:
            return self._interruptible(sql)
        except duckdb.OutOfMemoryException as error:
            raise PreparationError(
                f"{origin}: --memory {self.memory} is too little ({_first_line(error)}): give more, or fewer --threads"
            ) from None
        except (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException):
            raise  # a mistake in this package
        except duckdb.Error as error:
            raise PreparationError(f"{origin} can't be read or written ({_first_line(error)})") from None

    def close(self) -> None:
        """Wait for what runs, and let go of the memory and the temporary files."""
        self._thread.shutdown()
        self.connection.close()

    def _interruptible(self, sql: str) -> list[tuple[Any, ...]]:
        """In a thread: DuckDB would keep a signal waiting until the query is done."""
        running = self._thread.submit(lambda: self.connection.execute(sql).fetchall())
        try:
            return running.result()
        except KeyboardInterrupt:
            self.connection.interrupt()
            raise


@contextmanager
def opened(memory: str, threads: int, temporary: Path) -> Iterator[Database]:
    """A database whose temporary files go away with it."""
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    database = Database(memory, threads, temporary)
    try:
        yield database
    finally:
        database.close()
        shutil.rmtree(temporary, ignore_errors=True)


def parquet(*files: Path, numbered: bool = False) -> str:
    """SQL of the rows of parquet files. numbered: with a column `file_row_number`, from 0 in every file."""
    names = ", ".join(quoted(_literally(file)) for file in files)
    return f"read_parquet([{names}], hive_partitioning = false, file_row_number = {str(numbered).lower()})"


def identifier(name: str) -> str:
    """The name of a column in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _literally(file: Path) -> str:
    """A path in which DuckDB finds no pattern."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(file))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
