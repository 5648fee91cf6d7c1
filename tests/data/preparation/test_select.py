"""Selection from metadata: every rule, every spelling, sums that add up, and the same list after any interruption."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pytest

from franca.data.preparation.database import opened
from franca.data.preparation.errors import PreparationError
from franca.data.preparation.rules import REASONS, SelectionConfig
from franca.data.preparation.select import select
from franca.data.preparation.work_folder import WorkFolder
from tests import warm
from tests.data.preparation.conftest import GOOD, listed, urls, write_rows

ROOT = Path(__file__).resolve().parents[3]
NAN, INFINITY = float("nan"), float("inf")


def numbered(count: int, **changes) -> list[dict]:
    """Good rows with their own hash and address."""
    return [GOOD | {"hash": i, "URL": f"https://example.org/{i}.jpg"} | changes for i in range(count)]


@pytest.mark.parametrize(
    ("change", "config", "reason"),
    [
        ({"URL": None}, {}, "no_url"),
        ({"URL": ""}, {}, "no_url"),
        ({"URL": "file:///etc/passwd"}, {}, "no_url"),
        ({"URL": "data:image/png;base64,AAAA"}, {}, "no_url"),
        ({"WIDTH": None}, {}, "size_unknown"),
        ({"HEIGHT": 0}, {}, "size_unknown"),
        ({"HEIGHT": -480}, {}, "size_unknown"),
        ({"WIDTH": NAN}, {}, "size_unknown"),
        ({"HEIGHT": 199}, {}, "too_small"),
        ({"WIDTH": 200, "HEIGHT": 601}, {}, "too_long"),
        ({"WIDTH": 601, "HEIGHT": 200}, {}, "too_long"),
        ({"punsafe": None}, {}, "unsafe_unknown"),
        ({"punsafe": NAN}, {}, "unsafe_unknown"),
        ({"punsafe": INFINITY}, {}, "unsafe_unknown"),
        ({"punsafe": 0.51}, {}, "unsafe"),
        ({"pwatermark": None}, {}, "watermark_unknown"),
        ({"pwatermark": NAN}, {}, "watermark_unknown"),
        ({"pwatermark": 0.81}, {}, "watermarked"),
        ({"similarity": NAN}, {"min_similarity": 0.3}, "similarity_unknown"),
        ({"similarity": 0.29}, {"min_similarity": 0.3}, "dissimilar"),
        ({"NSFW": "NSFW"}, {"nsfw_tags": ("UNLIKELY",)}, "nsfw_tag"),
        ({"NSFW": None}, {"nsfw_tags": ("UNLIKELY",)}, "nsfw_tag"),
        ({"hash": 0}, {}, "duplicate_hash"),
        ({"URL": "https://example.org/0.jpg"}, {}, "duplicate_url"),
        ({"URL": " https://example.org/0.jpg\n"}, {}, "duplicate_url"),
    ],
)
def test_a_row_is_dropped_for_its_reason(change: dict, config: dict, reason: str, tmp_path: Path) -> None:
    rows = numbered(2, NSFW="UNLIKELY")
    file = write_rows(tmp_path / "meta.parquet", [*rows, GOOD | {"NSFW": "UNLIKELY", "hash": 9} | change])
    report = select([file], tmp_path / "out", SelectionConfig(**config))
    assert report["dropped"] == {reason: 1}
    assert urls(tmp_path / "out") == {row["URL"] for row in rows}
    assert f"  {REASONS[reason]}" in (tmp_path / "out/report.txt").read_text()


@pytest.mark.parametrize(
    ("change", "config"),
    [
        ({"HEIGHT": 200, "WIDTH": 600}, {}),  # limits themselves are kept
        ({"punsafe": 0.5, "pwatermark": 0.8}, {}),
        ({"similarity": NAN}, {}),  # no rule about it
        ({"punsafe": NAN, "pwatermark": 1.0}, {"max_unsafe": None, "max_watermark": None}),
        ({"WIDTH": None, "HEIGHT": 1}, {"min_side": 0, "max_aspect": 0}),
        ({"WIDTH": 9000}, {"max_aspect": 0}),
        ({"hash": 0}, {"duplicates": ("url",)}),
        ({"URL": "https://example.org/0.jpg"}, {"duplicates": ("hash",)}),
        ({"URL": "https://example.org/0.jpg", "hash": 0}, {"duplicates": ()}),
        ({"TEXT": None, "SAMPLE_ID": None}, {}),
    ],
)
def test_a_row_is_kept_at_the_limit_and_where_a_rule_is_off(change: dict, config: dict, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "meta.parquet", [*numbered(1), GOOD | {"hash": 9} | change])
    report = select([file], tmp_path / "out", SelectionConfig(**config))
    assert (report["kept"], report["dropped"]) == (2, {})
    assert len(listed(tmp_path / "out")) == 2


def test_rows_without_a_hash_are_no_duplicates_of_each_other(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "meta.parquet", numbered(5, hash=None))
    assert select([file], tmp_path / "out")["kept"] == 5


def test_the_first_of_equal_rows_stays_in_the_order_of_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "meta/b.parquet", [GOOD | {"SAMPLE_ID": 1}, GOOD | {"SAMPLE_ID": 2}])
    write_rows(tmp_path / "meta/a.parquet", [GOOD | {"SAMPLE_ID": 3}])
    report = select([tmp_path / "meta"], tmp_path / "out")
    assert report["dropped"] == {"duplicate_hash": 2}
    assert [row["id"] for row in listed(tmp_path / "out")] == ["3"]


@pytest.mark.parametrize(
    "names",
    [
        {},  # LAION-2B joined, LAION-COCO
        {"URL": "url", "TEXT": "caption", "WIDTH": "width", "HEIGHT": "height"},
        {"URL": "Url", "punsafe": "PUNSAFE", "hash": "HASH"},
        {  # DataComp
            **{"SAMPLE_ID": "uid", "URL": "url", "TEXT": "text", "WIDTH": "original_width", "hash": "sha256"},
            **{"HEIGHT": "original_height", "similarity": "clip_b32_similarity_score"},
        },
        {  # COYO
            **{"SAMPLE_ID": "id", "hash": "image_phash", "similarity": "clip_similarity_vitb32"},
            **{"punsafe": "nsfw_score_opennsfw2", "pwatermark": "watermark_score"},
        },
        {"TEXT": "top_caption"},
    ],
)
def test_spellings_in_circulation_are_understood(names: dict[str, str], tmp_path: Path) -> None:
    rows = [*numbered(3), GOOD | {"similarity": 0.1}, GOOD | {"punsafe": 0.9}, GOOD | {"pwatermark": 0.9}]
    file = write_rows(tmp_path / "m.parquet", [{names.get(name, name): row[name] for name in row} for row in rows])
    report = select([file], tmp_path / "out", SelectionConfig(min_similarity=0.2))
    assert report["dropped"] == {"dissimilar": 1, "unsafe": 1, "watermarked": 1}
    assert list(listed(tmp_path / "out")[0]) == ["url", "caption", "id", "hash"]
    assert {row["caption"] for row in listed(tmp_path / "out")} == {"a cat"}


def test_files_of_several_spellings_go_together(tmp_path: Path) -> None:
    write_rows(tmp_path / "meta/a.parquet", numbered(2))
    other = [{"url": "https://example.org/1.jpg"}, {"url": "https://example.org/2.jpg"}]
    sizes = {"width": 300, "height": 300, "punsafe": 0.1, "pwatermark": 0.1}
    write_rows(tmp_path / "meta/b.parquet", [row | sizes for row in other])
    report = select([tmp_path / "meta"], tmp_path / "out")
    assert report["dropped"] == {"duplicate_url": 1}  # by address alone: the second file has no hash
    assert sorted((row["url"][-5:], row["caption"]) for row in listed(tmp_path / "out")) == [
        *(("0.jpg", "a cat"), ("1.jpg", "a cat"), ("2.jpg", None))
    ]


def test_numbers_that_came_as_text_are_read(tmp_path: Path) -> None:
    rows = [*numbered(1), GOOD | {"punsafe": 0.9}, GOOD | {"punsafe": None}]
    text = {"punsafe": "VARCHAR", "WIDTH": "VARCHAR"}
    report = select([write_rows(tmp_path / "m.parquet", rows, text)], tmp_path / "out")
    assert report["dropped"] == {"unsafe": 1, "unsafe_unknown": 1}


def test_missing_columns_are_all_named_with_what_is_there(tmp_path: Path) -> None:
    bare = {"link": "https://example.org/a.jpg", "TEXT": "a", "WIDTH": 300}
    file = write_rows(tmp_path / "bare.parquet", [bare])
    with pytest.raises(PreparationError) as error:
        select([file], tmp_path / "out")
    said = str(error.value)
    assert "bare.parquet lacks 4 column(s)" in said
    for words in (
        "url (known as url",
        "height (",
        "unsafe (known as punsafe",
        "watermark (",
        "It has: link, TEXT, WIDTH",
    ):
        assert words in said
    assert "--max-unsafe none" in said
    config = SelectionConfig(min_side=0, max_aspect=0, max_unsafe=None, max_watermark=None)
    report = select([file], tmp_path / "out", config, {"url": "link"}, restart=True)
    assert report["kept"] == 1


@pytest.mark.parametrize("name", ["part=3/x[1].parquet", 'a\'b "c" *?.parquet', "ä b.parquet"])
def test_files_with_unusual_names_are_read_as_they_are(name: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "meta" / name, numbered(2))
    assert select([tmp_path / "meta"], tmp_path / "o'ut")["kept"] == 2
    assert "part" not in listed(tmp_path / "o'ut")[0]


def test_columns_with_hostile_names_and_values_are_data(tmp_path: Path) -> None:
    name = "'; DROP TABLE x; --"
    rows = numbered(2, TEXT="'); DROP TABLE x; --")
    file = write_rows(tmp_path / "m.parquet", [row | {name: 0.9 if row["hash"] else 0.1} for row in rows])
    assert select([file], tmp_path / "out", columns={"unsafe": name})["dropped"] == {"unsafe": 1}


def test_a_file_without_rows_and_a_set_that_is_dropped_whole(tmp_path: Path) -> None:
    with duckdb.connect() as connection:
        write_rows(tmp_path / "meta/b.parquet", numbered(1, HEIGHT=10))
        connection.execute(
            f"COPY (SELECT * FROM '{tmp_path}/meta/b.parquet' LIMIT 0) TO '{tmp_path}/meta/a.parquet' (FORMAT parquet)"
        )
    report = select([tmp_path / "meta"], tmp_path / "out")
    assert (report["rows"], report["kept"], report["dropped"]) == (1, 0, {"too_small": 1})
    assert listed(tmp_path / "out") == []


@pytest.mark.parametrize("content", [b"", b"PAR1", b"<html>not found</html>"])
def test_a_damaged_file_is_named_before_anything_is_done(content: bytes, tmp_path: Path) -> None:
    write_rows(tmp_path / "meta/a.parquet", numbered(1))
    (tmp_path / "meta/b.parquet").write_bytes(content)
    with pytest.raises(PreparationError, match=r"b\.parquet can't be read"):
        select([tmp_path / "meta"], tmp_path / "out")


def test_a_file_damaged_in_its_middle_is_named(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.parquet", numbered(500))
    content = bytearray(file.read_bytes())
    content[8 : len(content) // 2] = bytes(len(content) // 2 - 8)
    file.write_bytes(content)
    with pytest.raises(PreparationError, match=r"a\.parquet can't be read"):
        select([file], tmp_path / "out")


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PreparationError, match=r"empty holds no \*\.parquet file"):
        select([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(PreparationError, match="nowhere does not exist"):
        select([tmp_path / "nowhere"], tmp_path / "out")


@pytest.mark.parametrize(
    "config", [{"min_side": -1}, {"max_aspect": 0.5}, {"max_unsafe": NAN}, {"duplicates": ("phash",)}]
)
def test_rules_that_make_no_sense_are_refused(config: dict) -> None:
    with pytest.raises(PreparationError):
        SelectionConfig(**config)


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Four files with repetitions within and between them."""
    for number in range(4):
        rows = [
            GOOD | {"hash": i % 150, "URL": f"https://example.org/{i % 130}.jpg", "HEIGHT": 100 + 3 * i % 500}
            for i in range(60 * number, 60 * number + 120)
        ]
        write_rows(tmp_path / f"meta/{number}.parquet", rows)
    return tmp_path / "meta"


def test_what_is_dropped_and_kept_adds_up(several: Path, tmp_path: Path) -> None:
    report = select([several], tmp_path / "out", rows_per_bucket=120)
    assert len(list((tmp_path / "out/list").iterdir())) == 4
    assert report["rows"] == 480 == report["kept"] + sum(report["dropped"].values())
    assert len(report["dropped"]) == 3
    for file in report["files"]:
        assert file["rows"] == 120 == file["kept"] + sum(file["dropped"].values())
    rows = listed(tmp_path / "out")
    assert len(rows) == report["kept"]
    for column in ("url", "hash"):
        assert len({row[column] for row in rows}) == len(rows)
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    assert not (tmp_path / "out/parts").exists()


def contents(folder: Path) -> dict[str, bytes]:
    files = [*sorted((folder / "list").iterdir()), folder / "report.json"]
    return {file.name: file.read_bytes().replace(bytes(folder), b"") for file in files}


@pytest.mark.parametrize("parts", [0, 3, 4, 6, 11])
def test_an_interrupted_selection_goes_on_to_the_same_list(parts: int, several: Path, tmp_path, stop_after) -> None:
    select([several], tmp_path / "whole", rows_per_bucket=120, threads=2)
    with stop_after(parts):
        select([several], tmp_path / "cut", rows_per_bucket=120, threads=1)
    done = {part: part.stat().st_mtime_ns for part in (tmp_path / "cut/parts").glob("*/[0-9]*/part.json")}
    assert len(done) == parts
    seen = []
    part = WorkFolder.part

    def watched(self, name, make):
        kept = self.folder(name).is_dir()
        seen.append(kept)
        return part(self, name, make)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkFolder, "part", watched)
        select([several], tmp_path / "cut", rows_per_bucket=120, threads=2)
    assert sum(seen) == parts
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_finished_selection_is_told_again_and_not_made_again(several: Path, tmp_path: Path) -> None:
    first = select([several], tmp_path / "out")
    before = contents(tmp_path / "out")
    assert select([several], tmp_path / "out") == first
    assert contents(tmp_path / "out") == before
    again = select([several], tmp_path / "out", distributor="pyspark", image_size=256)
    assert "--distributor pyspark" in again["command"]
    assert (again["kept"], again["dropped"]) == (first["kept"], first["dropped"])


def test_other_options_or_inputs_are_refused_or_start_anew(several: Path, tmp_path: Path, stop_after) -> None:
    with stop_after(2):
        select([several], tmp_path / "out")
    with pytest.raises(PreparationError, match=r"max_unsafe: there 0\.5, here 0\.1.*--restart"):
        select([several], tmp_path / "out", SelectionConfig(max_unsafe=0.1))
    write_rows(several / "1.parquet", numbered(3))
    with pytest.raises(PreparationError, match=r"1\.parquet was changed"):
        select([several], tmp_path / "out")
    write_rows(several / "9.parquet", numbered(3))
    with pytest.raises(PreparationError, match=r"(1\.parquet was changed|9\.parquet is new)"):
        select([several], tmp_path / "out")
    assert select([several], tmp_path / "out", restart=True)["rows"] == 366


def test_too_little_memory_is_said(several: Path, tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match=r"--memory (1MB|much)"):
        select([several], tmp_path / "out", memory="1MB")
    with pytest.raises(PreparationError, match=r"--memory (1MB|much)"):
        select([several], tmp_path / "out", memory="much")


def test_the_printed_command_is_one_of_img2dataset(several: Path, tmp_path: Path) -> None:
    """Its options are those of img2dataset 1.47 (img2dataset/main.py: download)."""
    known = {
        *("url_list", "input_format", "url_col", "caption_col", "output_format", "output_folder", "image_size"),
        *("resize_mode", "resize_only_if_bigger", "skip_reencode", "number_sample_per_shard", "processes_count"),
        *("thread_count", "distributor", "save_additional_columns", "min_image_size", "max_aspect_ratio"),
        *("verify_hash",),
    }
    command = shlex.split(select([several], tmp_path / "an out", SelectionConfig(min_side=100))["command"])
    assert command[0] == "img2dataset"
    options = dict(zip([name.removeprefix("--") for name in command[1::2]], command[2::2], strict=True))
    assert set(options) <= known
    assert options["url_list"] == str(tmp_path / "an out/list")
    assert json.loads(options["save_additional_columns"]) == ["id", "hash"]
    assert (options["min_image_size"], options["max_aspect_ratio"]) == ("100", "3.0")


def test_bytes_are_verified_where_the_metadata_has_their_hash(tmp_path: Path) -> None:
    rows = [{("sha256" if name == "hash" else name): value for name, value in row.items()} for row in numbered(2)]
    command = select([write_rows(tmp_path / "m.parquet", rows)], tmp_path / "out")["command"]
    assert '--verify_hash \'["hash","sha256"]\'' in command
    assert "--save_additional_columns '[\"id\"]'" in command


def test_a_query_that_runs_for_hours_can_be_stopped(tmp_path: Path) -> None:
    endless = "SELECT count(*) FROM range(1000000000) t(i), range(1000) u(j) WHERE i * j % 7 = 3"
    with opened("200MB", 1, tmp_path / "temporary") as database:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            database.rows(endless, "nothing")


@pytest.mark.slow
def test_a_killed_selection_goes_on_to_the_same_list(several: Path, tmp_path: Path) -> None:
    """SIGKILL of a process of its own, at whatever moment it is after its first part."""
    select([several], tmp_path / "whole")
    log = tmp_path / "log.txt"
    process = warm.start(select, [str(several)], str(tmp_path / "cut"), folder=tmp_path, stdout=log, stderr=log)
    while process.is_alive() and not list((tmp_path / "cut").glob("parts/filter/[0-9]*")):
        time.sleep(0.001)
    process.kill()
    assert warm.wait(process) == -signal.SIGKILL, log.read_text()
    select([several], tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


MEASURED = """
import resource, sys
from franca.data.preparation.select import select
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = select([sys.argv[1]], sys.argv[2], memory="250MB", threads=2, rows_per_bucket=250_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, report["rows"], report["kept"], *report["dropped"])
"""


@pytest.mark.slow
def test_a_million_rows_take_bounded_memory(tmp_path: Path) -> None:
    """They take 500 MB where DuckDB is free to; here it may have 250 MB, and the rest of the process is small."""
    file = tmp_path / "meta.parquet"
    with duckdb.connect() as connection:
        connection.execute(f"""
            COPY (SELECT i AS SAMPLE_ID, repeat(md5((i + 1)::VARCHAR), 3) AS TEXT,
                'https://example.org/' || repeat(md5((i % 900000)::VARCHAR), 3) AS URL,
                180 + i % 500 AS WIDTH, 400 AS HEIGHT, i % 101 / 150.0 AS punsafe, 0.1 AS pwatermark
                FROM range(1000000) AS t(i))
            TO '{file}' (FORMAT parquet, ROW_GROUP_SIZE 30000)""")
    command = [sys.executable, "-c", MEASURED, str(file), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    kilobytes, rows, kept, *reasons = done.stdout.split()
    assert (int(rows), set(reasons)) == (1_000_000, {"too_small", "unsafe", "duplicate_url"})
    assert 0.5 * int(rows) < int(kept) < int(rows)
    assert int(kilobytes) / 1024 < 350
