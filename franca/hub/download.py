"""Files from the web to the disk: resumed where they broke off, checked, and whole or absent under their name.

While a download runs, `<name>.partial` holds what has come, `<name>.partial.tag` the server's mark of that version, and
`<name>.lock` keeps other processes out.
"""

import errno
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from franca import __version__
from franca.hub.progress import Progress

if sys.platform != "win32":
    import fcntl

CHUNK = 1 << 20
PAGE_START = 300  # bytes in which a web page shows what it is
TIMEOUT = 30.0  # seconds without a byte
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before another try; when more has come, all of them are allowed again


class DownloadError(OSError):
    """A file that could not be fetched; the message says from where, why, and how to do without."""


class _Interrupted(Exception):
    """The connection broke, or the server was busy: worth another try."""


def download(url: str, target: Path, sha256: str | None = None, advice: str = "", begins: Sequence[bytes] = ()) -> Path:
    """Fetch `url` to `target`, unless it is there. One process does so, others wait for it.

    Args:
        url: an http or https address.
        target: file to write; its folder is made.
        sha256: the hash that the content must have, in hexadecimal; None: only the length is checked.
        advice: what to do by hand where it fails, for the message.
        begins: the bytes with which such a file may begin; none: any, but for a web page.

    Raises:
        DownloadError: nothing could be fetched, or something else than expected. Nothing stands under `target` then;
            what came of the right content is kept for another try.
    """
    if not url.startswith(("https://", "http://")):
        raise DownloadError(f"{url} is no http or https address")
    if not target.exists():
        partial = target.with_name(f"{target.name}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with locked(target) as alone:
                if not target.exists():
                    partial = partial if alone else target.with_name(f"{target.name}.{os.getpid()}.partial")
                    _fetch(url, partial)
                    _check_beginning(partial, begins, url, advice)
                    _check_hash(partial, sha256, url)
                    os.replace(partial, target)
                    _tag_file(partial).unlink(missing_ok=True)
        except DownloadError:
            raise
        except (OSError, _Interrupted) as error:
            raise DownloadError(f"{_reason(error, url, partial)} {advice}") from None
    return target


@contextmanager
def locked(target: Path) -> Iterator[bool]:
    """Wait until no other process or thread makes `target`, then keep them out.

    Gives False, and keeps nobody out, where the system or its file system has no locks.
    """
    if sys.platform == "win32":
        yield False
        return
    path = target.with_name(f"{target.name}.lock")
    while True:
        with path.open("w") as file:
            alone = _hold(file.fileno(), target)
            # Who held the lock before took its file away: what is held here keeps out nobody who comes now.
            if alone and not _stands(file.fileno(), path):
                continue
            try:
                yield alone
            finally:
                path.unlink(missing_ok=True)
            return


def _stands(handle: int, path: Path) -> bool:
    """Whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _hold(handle: int, target: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another process that fetches {target.name}", file=sys.stderr)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _fetch(url: str, partial: Path) -> None:
    """Bring `partial` to its full length, over as many connections as it takes."""
    first = most = _size(partial)
    tries = 0
    while True:
        try:
            return _fetch_once(url, partial)
        except urllib.error.HTTPError:
            raise
        except (_Interrupted, urllib.error.URLError) as error:
            came = _size(partial)
            tries = 1 if came > most else tries + 1
            most = max(most, came)
            offline = isinstance(error, urllib.error.URLError) and most == first
            if offline or tries > len(PAUSES):
                raise
            print(f"{url} broke off after {came / 1e6:.1f} MB; trying again", file=sys.stderr)
            time.sleep(PAUSES[tries - 1])


def _fetch_once(url: str, partial: Path) -> None:
    """One request: the rest of the file where the server can, else all of it.

    Raises:
        _Interrupted: the connection broke, or the server asks to wait.
        OSError: everything else; URLError where there is no connection.
    """
    have, tag = _size(partial), _read_tag(partial)
    headers = {"User-Agent": f"franca/{__version__}", "Accept-Encoding": "identity"}
    if have and tag:  # without a mark of the version the pieces of two files might be joined
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
            _receive(response, partial, have)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            partial.unlink()
            raise _Interrupted("the server doesn't know the rest of what came") from error
        if error.code in (408, 429) or error.code >= 500:
            raise _Interrupted(f"the server answers {error.code} {error.reason}") from error
        raise
    except (ConnectionError, http.client.HTTPException) as error:
        raise _Interrupted(f"the connection broke ({str(error) or type(error).__name__})") from error


def _receive(response: http.client.HTTPResponse, partial: Path, have: int) -> None:
    """Write the answer's content behind what is there, or in its place where the server sends the file whole."""
    resumed = response.status == http.client.PARTIAL_CONTENT
    start = have if resumed else 0
    if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        partial.unlink()
        raise _Interrupted(f"the server sent another range ({response.headers.get('Content-Range')})")
    length = response.headers.get("Content-Length")
    total = start + int(length) if length is not None else None
    with partial.open("ab" if resumed else "wb") as file:
        if not resumed:
            _write_tag(partial, response)
        with Progress(f"fetching {partial.name.removesuffix('.partial')}", total, start) as progress:
            while block := _read(response):
                file.write(block)
                progress.add(len(block))
        file.flush()
        os.fsync(file.fileno())
    if total is not None and _size(partial) < total:
        raise _Interrupted(f"the connection broke after {_size(partial)} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    """What has come, b"" at the end: a broken connection leaves nothing unread, and is told from a full disk."""
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"the connection broke ({str(error) or type(error).__name__})") from error


def _check_beginning(partial: Path, begins: Sequence[bytes], url: str, advice: str) -> None:
    """A server, or what stands before it, may answer with a page of its own as if it were the file."""
    with partial.open("rb") as file:
        found = file.read(PAGE_START)
    if re.match(rb"\s*<(!doctype|html)", found, re.IGNORECASE):
        what = "a web page, which says: " + " ".join(re.sub(rb"<[^>]*>?", b" ", found).decode(errors="replace").split())
    elif begins and not found.startswith(tuple(begins)):
        what = f"no such file: it begins with {found[:8]!r}"
    else:
        return
    _remove(partial)
    raise DownloadError(f"{url} gave {what}. What came is removed; try again. {advice}")


def _remove(partial: Path) -> None:
    partial.unlink()
    _tag_file(partial).unlink(missing_ok=True)


def _check_hash(partial: Path, sha256: str | None, url: str) -> None:
    if sha256 is None:
        return
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        _remove(partial)
        raise DownloadError(
            f"{url} is not the file it should be: its SHA-256 is {found}, expected {sha256}. What came is removed; "
            "try again, or ask who stands between you and the server"
        )


def _reason(error: OSError | _Interrupted, url: str, partial: Path) -> str:
    """A system's, network's or server's error in words."""
    if isinstance(error, _Interrupted):
        return f"{url} can't be fetched: {error}."
    if isinstance(error, urllib.error.HTTPError):
        return f"{url} can't be fetched: the server answers {error.code} {error.reason}."
    if isinstance(error, urllib.error.URLError):
        return f"{url} can't be reached ({error.reason}): is this machine connected?"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{partial.parent} is full after {_size(partial) / 1e6:.1f} MB of {url}: make room, then go on."
    return f"{url} can't be written to {partial.parent} ({error})."


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tag_file(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.tag")


def _write_tag(partial: Path, response: http.client.HTTPResponse) -> None:
    """Note which version of the file this is: a strong ETag, else the date of its last change."""
    tag = response.headers.get("ETag", "")
    if not tag or tag.startswith("W/"):
        tag = response.headers.get("Last-Modified", "")
    _tag_file(partial).write_text(tag)


def _read_tag(partial: Path) -> str:
    return _tag_file(partial).read_text() if _tag_file(partial).exists() else ""
