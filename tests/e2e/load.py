"""A steady load of streamed chats through nginx, and what became of every one of them."""

import http.client
import json
import ssl
import threading
from collections import Counter
from types import TracebackType


class Load:
    """Within the context, `clients` threads ask one chat after another; `outcomes` counts how they ended."""

    def __init__(self, address: str, key: str, clients: int = 2) -> None:
        self.outcomes: Counter[str] = Counter()
        self._address, self._key = address, key
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(330)

    def _ask_on(self) -> None:
        while not self._stop.is_set():
            try:
                outcome = self._ask()
            except OSError as error:
                outcome = type(error).__name__
            except http.client.HTTPException as error:
                outcome = f"broken answer: {type(error).__name__}"
            self.outcomes[outcome] += 1
            self._stop.wait(0.2)

    def _ask(self) -> str:
        # The certificate is the host's own.
        context = ssl._create_unverified_context()  # noqa: S323
        connection = http.client.HTTPSConnection(self._address, timeout=320, context=context)
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 40,
            "stream": True,
            "ignore_eos": True,
        }
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            if answer.status != http.HTTPStatus.OK:
                return f"status {answer.status}: {answer.read(300)!r}"
            return self._read(answer)
        finally:
            connection.close()

    @staticmethod
    def _read(answer: http.client.HTTPResponse) -> str:
        text = b""
        try:
            while part := answer.read1():
                text += part
        except (OSError, http.client.HTTPException) as error:
            return f"broken after its first byte: {type(error).__name__}"
        if text.rstrip().endswith(b"[DONE]"):
            return "whole"
        place = "after its first byte" if b'"delta"' in text else "before its first byte"
        return f"broken {place}: {text[-160:]!r}"
