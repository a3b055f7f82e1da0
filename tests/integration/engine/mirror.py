"""A mirror of the hub on loopback that misbehaves on command."""

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Mirror:
    """Serves ``org/tiny`` and ``org/twin``, which have the same files.

    Attributes:
        files: names and contents.
        cut: how many downloads of a large file still break off halfway.
        corrupt: how many still arrive with a changed byte.
        delay: seconds between two pieces of a body.
        gated: whether the repository is.
        served: bytes of file contents sent so far.
        ranges: ``Range`` headers seen.
        tokens: bearer tokens seen.
        at_once: the most bodies of large files that were under way at the same time.
        go_on: while clear, bodies of large files stand still after their first piece.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut = self.corrupt = 0
        self.delay = 0.0
        self.gated = False
        self.served = 0
        self.ranges: list[str] = []
        self.tokens: set[str] = set()
        self.at_once = self.under_way = 0
        self.lock = threading.Lock()
        self.go_on = threading.Event()
        self.go_on.set()
        mirror = self

        class Handler(_Handler):
            state = mirror

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop serving."""
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


_KNOWN = re.compile(r"/api/models/org/(tiny|twin)(/|$)|/org/(tiny|twin)/resolve/")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Mirror

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silent."""

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token:
            self.state.tokens.add(token)
        if not _KNOWN.match(path):
            return self._error(401, "RepoNotFound")
        if self.state.gated and not token:
            return self._error(401, "GatedRepo")
        if path.startswith("/api/"):
            revision = path.partition("/revision/")[2] or "main"
            if revision not in ("main", COMMIT):
                return self._error(404, "RevisionNotFound")
            return self._reply(200, {"Content-Type": "application/json"}, self._listing(), body)
        return self._file(path.split("/resolve/", 1)[1].partition("/")[2], body)

    def _listing(self) -> bytes:
        siblings: list[dict[str, Any]] = []
        for name, data in self.state.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
            if name.endswith(".safetensors"):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return json.dumps({"_id": "1", "id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode()

    def _file(self, name: str, body: bool) -> None:
        if name not in self.state.files:
            return self._error(404, "EntryNotFound")
        data = self.state.files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        status, start = 200, 0
        end = len(data)
        if body and self.headers.get("Range"):
            self.state.ranges.append(self.headers["Range"])
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            start, end = int(first), min(len(data), int(last or len(data)) + 1)
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        piece = data[start:end]
        if body and self.state.corrupt and name.endswith(".safetensors"):
            self.state.corrupt -= 1
            piece = piece[:-1] + bytes([piece[-1] ^ 1])
        return self._reply(status, headers, piece, body, name.endswith(".safetensors"))

    def _reply(
        self, status: int, headers: dict[str, str], data: bytes, body: bool, large: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not body:
            return
        if large and self.state.cut:
            self.state.cut -= 1
            data = data[: len(data) // 2]
            self.close_connection = True
        with self._counted(large):
            for at in range(0, len(data), 1 << 16):
                piece = data[at : at + (1 << 16)]
                # Before whoever reads it may ask.
                self.state.served += len(piece) if large else 0
                self.wfile.write(piece)
                time.sleep(self.state.delay)
                if large:
                    self.state.go_on.wait(60)

    @contextlib.contextmanager
    def _counted(self, large: bool) -> Iterator[None]:
        state = self.state
        with state.lock:
            state.under_way += large
            state.at_once = max(state.at_once, state.under_way)
        try:
            yield
        finally:
            with state.lock:
                state.under_way -= large

    def _error(self, status: int, code: str) -> None:
        self._reply(status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}", self.command == "GET")
