"""Downloads: whatever the network does, the right content ends under the name, or nothing does."""

import errno
import hashlib
import random
import sys
import threading
from pathlib import Path

import pytest

from franca.hub import download as downloads
from franca.hub.download import DownloadError, download, locked
from tests import warm

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def served(server):
    server.files["/weights.pth"] = CONTENT
    return server


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "cache" / "weights.pth"


def fetch(server, target: Path, sha256: str | None = SHA256) -> Path:
    return download(f"{server.address}/weights.pth", target, sha256, advice="Put it there by hand.")


def alone(target: Path) -> bool:
    return [path.name for path in target.parent.iterdir()] == [target.name]


def test_content_arrives_and_nothing_else_stays(served, target) -> None:
    assert fetch(served, target) == target
    assert target.read_bytes() == CONTENT
    assert alone(target)
    fetch(served, target)
    assert len(served.requests) == 1, "a file that is there is not fetched again"


def test_a_broken_connection_is_resumed_where_it_broke(served, target, capsys) -> None:
    served.break_after = [100_000, 50_000]
    fetch(served, target)
    assert target.read_bytes() == CONTENT
    assert [asked for _, asked in served.requests] == [None, "bytes=100000-", "bytes=150000-"]
    assert "broke off after 0.1 MB; trying again" in capsys.readouterr().err


def test_a_later_call_resumes_what_an_earlier_one_left(served, target) -> None:
    served.break_after = [100_000, 0, 0, 0]
    with pytest.raises(DownloadError, match="100000 of 300000 bytes"):
        fetch(served, target)
    assert not target.exists()
    before = len(served.requests)
    fetch(served, target)
    assert target.read_bytes() == CONTENT
    assert [asked for _, asked in served.requests[before:]] == ["bytes=100000-"]


@pytest.mark.parametrize("ability", ["ranges", "tags"])
def test_a_server_that_cant_resume_starts_over(served, target, ability) -> None:
    setattr(served, ability, False)
    served.break_after = [100_000]
    fetch(served, target)
    assert target.read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_not_joined_to_the_old_one(served, target) -> None:
    served.break_after = [100_000, 0, 0, 0]
    with pytest.raises(DownloadError):
        fetch(served, target)
    served.files["/weights.pth"] = changed = CONTENT[::-1]
    fetch(served, target, sha256=None)
    assert target.read_bytes() == changed


def test_a_partial_file_longer_than_the_new_one_starts_over(served, target) -> None:
    target.parent.mkdir()
    tag = f'"{SHA256}"'
    target.with_name("weights.pth.partial").write_bytes(CONTENT + b"more")
    target.with_name("weights.pth.partial.tag").write_text(tag)
    fetch(served, target)
    assert target.read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(served, target) -> None:
    served.busy = 2
    fetch(served, target)
    assert target.read_bytes() == CONTENT


def test_other_content_is_removed_and_both_hashes_are_named(served, target) -> None:
    served.files["/weights.pth"] = wrong = CONTENT[::-1]
    with pytest.raises(DownloadError) as caught:
        fetch(served, target)
    assert SHA256 in str(caught.value)
    assert hashlib.sha256(wrong).hexdigest() in str(caught.value)
    assert not target.exists()
    served.files["/weights.pth"] = CONTENT
    fetch(served, target)
    assert target.read_bytes() == CONTENT


def test_an_absent_file_is_not_asked_for_again(server, target) -> None:
    with pytest.raises(DownloadError, match=r"weights\.pth can't be fetched: the server answers 404.*by hand"):
        fetch(server, target)
    assert len(server.requests) == 1
    assert not target.exists()


def test_no_network_says_what_to_do_at_once(target) -> None:
    with pytest.raises(DownloadError, match=r"nowhere\.invalid/weights\.pth can't be reached .*connected\?.*by hand"):
        download("http://nowhere.invalid/weights.pth", target, advice="Put it there by hand.")


def test_other_addresses_are_refused(target, tmp_path) -> None:
    (tmp_path / "local").write_bytes(CONTENT)
    with pytest.raises(DownloadError, match="no http or https address"):
        download((tmp_path / "local").as_uri(), target)


@pytest.mark.skipif(sys.platform == "win32", reason="no /dev/full")
def test_a_full_disk_is_named_and_nothing_stands_under_the_name(served, target, monkeypatch) -> None:
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads.os, "fsync", full)
    with pytest.raises(DownloadError, match=r"cache is full after 0\.3 MB .*make room"):
        fetch(served, target)
    assert not target.exists()


def _fetch_in_process(address: str, target: Path) -> None:
    download(f"{address}/weights.pth", target, SHA256)


def test_several_processes_fetch_once(served, target, tmp_path) -> None:
    log = tmp_path / "log.txt"
    processes = [
        warm.start(_fetch_in_process, served.address, target, folder=tmp_path, stdout=log, stderr=log) for _ in range(2)
    ]
    assert [warm.wait(process) for process in processes] == [0, 0], log.read_text()
    assert target.read_bytes() == CONTENT
    assert alone(target)
    assert len(served.requests) == 1


def test_threads_keep_each_other_out(tmp_path) -> None:
    inside, most = [], []

    def work() -> None:
        with locked(tmp_path / "file") as held:
            inside.append(held)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_progress_is_a_few_lines_in_a_log(served, target, capsys) -> None:
    served.files["/weights.pth"] = bytes(4_000_000)
    fetch(served, target, sha256=None)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 6
    assert lines[-1].startswith("fetching weights.pth: 4.0 of 4.0 MB (100%)")


def test_progress_redraws_one_line_on_a_terminal(served, target, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    served.files["/weights.pth"] = bytes(4_000_000)
    fetch(served, target, sha256=None)
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert written.count("\r") >= 2


def test_a_failure_leaves_no_lock(server, target) -> None:
    with pytest.raises(DownloadError):
        fetch(server, target)
    assert list(target.parent.iterdir()) == []


def test_a_folder_that_cant_be_made_is_named(served, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match=r"can't be written to .*file.*Put it there by hand"):
        fetch(served, tmp_path / "file" / "weights.pth")


def test_without_locks_each_process_has_its_own_partial_file(served, target, monkeypatch) -> None:
    def none(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(downloads.fcntl, "flock", none)
    served.break_after = [100_000]
    fetch(served, target)
    assert target.read_bytes() == CONTENT
    assert alone(target)


def test_a_web_page_is_never_the_file(served, target) -> None:
    served.files["/weights.pth"] = b"<!doctype html><html><h1>Sign in</h1> to this network</html>"
    with pytest.raises(DownloadError, match=r"gave a web page, which says: Sign in to this network\..*by hand"):
        fetch(served, target)
    assert list(target.parent.iterdir()) == []


def test_a_file_begins_as_it_should(served, target) -> None:
    address = f"{served.address}/weights.pth"
    with pytest.raises(DownloadError, match=r"gave no such file: it begins with "):
        download(address, target, begins=(b"no" + CONTENT,))
    assert list(target.parent.iterdir()) == []
    assert download(address, target, begins=(b"other", CONTENT[:4])).read_bytes() == CONTENT


def test_a_lock_file_that_vanishes_meanwhile_is_made_again(tmp_path, monkeypatch) -> None:
    """Between taking the lock and looking for its file, its last holder may remove it."""
    hold, vanished = downloads._hold, []

    def vanishing(handle, target) -> bool:
        held = hold(handle, target)
        if not vanished:
            vanished.append(target.with_name("file.lock"))
            vanished[0].unlink()
        return held

    monkeypatch.setattr(downloads, "_hold", vanishing)
    with locked(tmp_path / "file") as alone:
        assert alone
        assert (tmp_path / "file.lock").exists()


def test_where_there_are_no_locks_there_is_no_lock_file(tmp_path, monkeypatch) -> None:
    """Windows can't remove a file that is open."""
    monkeypatch.setattr(downloads.sys, "platform", "win32")
    with locked(tmp_path / "file") as alone:
        assert not alone
        assert list(tmp_path.iterdir()) == []
