"""A web server on this machine that does what servers and networks do: resume, break off, change, refuse."""

import hashlib
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from franca.hub import download, load, registry
from franca.hub.names import chunk_blocks
from franca.models import RASAHead
from tests.hub.releases import WIDTH, network, saved


@dataclass
class Server:
    """What it serves and how; `requests` lists (path, Range header) of each request."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True  # whether it can resume
    tags: bool = True  # whether it names versions
    break_after: list[int] = field(default_factory=list)  # bytes of content after which the next answers break off
    busy: int = 0  # answers 503 before it serves
    requests: list[tuple[str, str | None]] = field(default_factory=list)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.requests.append((handler.path, asked))
        if self.busy:
            self.busy -= 1
            return handler.send_error(503)
        if handler.path not in self.files:
            return handler.send_error(404)
        content = self.files[handler.path]
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        start = 0
        if asked and self.ranges and handler.headers.get("If-Range") == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return handler.send_error(416)
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.tags:
            handler.send_header("ETag", tag)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        kept = self.break_after.pop(0) if self.break_after else None
        handler.wfile.write(content[start:] if kept is None else content[start : start + kept])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server that stands in for the releases, torch.hub's folder in `tmp_path`, and no waiting between tries."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *arguments: object) -> None: ...

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.address = f"http://127.0.0.1:{web.server_port}"
    monkeypatch.setenv("FRANCA_HUB_URL", state.address)
    monkeypatch.setattr(download, "PAUSES", (0.0,) * 3)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    yield state
    web.shutdown()
    thread.join()
    web.server_close()


@pytest.fixture
def small_sizes(monkeypatch, tmp_path) -> None:
    """Every size is width 64 and two blocks; torch.hub's folder is a temporary one; the licence was not yet said."""
    sizes = dict.fromkeys(registry.SHORT_NAMES, (WIDTH, 2, 1))
    monkeypatch.setattr(load, "backbone_sizes", lambda: sizes)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    load._say.cache_clear()


@pytest.fixture
def released(server, tmp_path):
    """All that is published, as it is published: chunked names in "teacher", RASA apart, ViT-g in three pieces."""
    models = {}
    for published in registry.PUBLISHED:
        model = models[published.arch, published.weights] = network(28 if published.img_size == 224 else 42)
        state = {f"backbone.{name}": tensor for name, tensor in chunk_blocks(model.state_dict(), 2).items()}
        path = saved(tmp_path / published.name, {"teacher": state})
        contents = [path.read_bytes()]
        if published.parts:
            with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
                tar.add(path, arcname="release/checkpoint.pth")
            whole = (tmp_path / "a.tar.gz").read_bytes()
            size = -(-len(whole) // 3)
            contents = [whole[start : start + size] for start in (0, size, 2 * size)]
        for file, content in zip(published.files, contents, strict=True):
            server.files[f"/{file.tag}/{file.name}"] = content
        if published.rasa:
            model.rasa_head = RASAHead(WIDTH, 8 if published.tag == "v1.0.0" else 9)
            path = saved(tmp_path / published.rasa.name, model.rasa_head.state_dict())
            server.files[f"/{published.rasa.tag}/{published.rasa.name}"] = path.read_bytes()
        path.unlink()
    return models
