"""A mirror of the hub on loopback that misbehaves on command."""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Mirror:
    """Serves one repository, ``org/tiny``.

    Attributes:
        files: names and contents.
        cut: how many downloads of a large file still break off halfway.
        corrupt: how many still arrive with a changed byte.
        delay: seconds between two pieces of a body.
        gated: whether the repository is.
        served: bytes of file contents sent so far.
        ranges: ``Range`` headers seen.
        tokens: bearer tokens seen.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut = self.corrupt = 0
        self.delay = 0.0
        self.gated = False
        self.served = 0
        self.ranges: list[str] = []
        self.tokens: set[str] = set()
        mirror = self

        class Handler(_Handler):
            state = mirror

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


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
        if not path.startswith(("/api/models/org/tiny", "/org/tiny/resolve/")):
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
        data = self.state.files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        status, start = 200, 0
        if body and self.headers.get("Range"):
            self.state.ranges.append(self.headers["Range"])
            start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        piece = data[start:]
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
        for at in range(0, len(data), 1 << 16):
            self.wfile.write(data[at : at + (1 << 16)])
            self.state.served += len(data[at : at + (1 << 16)]) if large else 0
            time.sleep(self.state.delay)

    def _error(self, status: int, code: str) -> None:
        self._reply(status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}", self.command == "GET")
