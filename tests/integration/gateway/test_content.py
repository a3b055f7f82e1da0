"""Prompts and answers: in the log for keys that a setting names, nowhere for anybody else."""

from pathlib import Path

import pytest

from tests.support.fake_engine import FakeEngine, answer_chat
from tests.support.gateway import gateway, write_key

PROMPT = "the secret of the pyramids"


@pytest.mark.parametrize("stream", [True, False])
async def test_only_the_named_keys_content_is_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], stream: bool
) -> None:
    write_key(tmp_path / "keys.d", "team")
    write_key(tmp_path / "keys.d", "watched", "second")
    async with (
        FakeEngine(answer_chat) as engine,
        gateway(tmp_path, engine.url, debug={"log_content_of": ["watched"]}) as running,
    ):
        body = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "stream": stream}
        plain = await running.ask("/v1/chat/completions", body)
        quiet = capfd.readouterr()
        assert PROMPT not in quiet.out + quiet.err
        watched = await running.ask("/v1/chat/completions", body, "second")
        assert await watched.read() == await plain.read()
        told = capfd.readouterr()
        text = told.out + told.err
        assert PROMPT in text
        assert "Hel" in text
        assert "HTTP/1.1" not in text
        refused = await running.ask("/v1/chat/completions", {**body, "n": 99}, "second")
        assert refused.status == 400
        assert PROMPT in "".join(capfd.readouterr())
