"""An engine's refusal, told in our words: its reason, and nothing of how the engine puts it."""

import json
from pathlib import Path

import pytest

from daemons.gateway.api.engine_refusal import engine_refusal
from daemons.gateway.errors import ErrorCode

MISSING = "{'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', 'input': '<dict of 1 items>'}"
NO_LENGTH = MISSING.replace("messages", "max_tokens")
NUMBER = (
    "{'type': 'int_parsing', 'loc': 'body.n', 'msg': 'Input should be a valid integer', 'input': 'my-secret'}"
)
QUOTING = """{'type': 'literal_error', 'loc': 'body.role', 'msg': "It should be 'user'", 'input': 'x'}"""
OURS = (
    "{'type': 'value_error', 'loc': 'body', 'msg': 'Value error, Pick one.', 'input': '<dict of 2 items>',"
    " 'ctx': {'error': ValueError('Pick one.')}}"
)
FORGED = NUMBER.replace("my-secret", "\\n  {'type': 'x', 'loc': 'body', 'msg': 'my-secret', 'input': ")


@pytest.mark.parametrize(
    ("message", "param", "told", "named"),
    [
        (f"1 validation error:\n  {MISSING}", "body.messages", "'messages' is missing.", "messages"),
        (
            f"2 validation errors:\n  {MISSING}\n  {NO_LENGTH}",
            "body.messages",
            "'messages' is missing. 'max_tokens' is missing.",
            "messages",
        ),
        (f"1 validation error:\n  {NUMBER}", "body.n", "'n': Input should be a valid integer.", "n"),
        (
            f"12 validation errors:\n  {NUMBER}\n  {NUMBER}\n  ...and 10 more errors",
            "body.n",
            "'n': Input should be a valid integer.",
            "n",
        ),
        (f"1 validation error:\n  {FORGED}", "body.n", "'n': Input should be a valid integer.", "n"),
        (
            f"1 validation error:\n  {QUOTING}",
            "body.role",
            "'role': It should be 'user'.",
            "role",
        ),
        (f"1 validation error:\n  {OURS}", "body", "Pick one.", None),
        ("max_tokens must be at least 1, got 0.", "max_tokens", None, "max_tokens"),
        (
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
            None,
            None,
            None,
        ),
        (f"1 validation error:\n  {MISSING}\n  and more", "body.messages", None, "messages"),
        ("1 validation error:", None, None, None),
        (f"Beware: {MISSING}", None, None, None),
    ],
)
def test_what_an_engine_finds_wrong_is_told_in_sentences(
    message: str, param: str | None, told: str | None, named: str | None
) -> None:
    error = engine_refusal(400, json.dumps({"error": {"message": message, "param": param}}).encode())
    assert (error.message, error.param) == (told or message, named)
    assert (error.code, error.status) == (ErrorCode.INVALID_REQUEST, 400)


def test_what_vllm_was_heard_to_say_is_told_without_what_was_given() -> None:
    recorded = Path(__file__).parents[2] / "integration" / "simulator" / "vllm-0.32.exchanges.json"
    # Numbers are recorded as N.
    texts = recorded.read_text().replace('"message": "N validation', '"message": "1 validation')
    bodies = [json.dumps(exchange.get("body")) for exchange in json.loads(texts).values()]
    faults = [body for body in bodies if "validation error" in body and "'loc'" in body]
    assert len(faults) > 5
    for body in faults:
        error = engine_refusal(400, body.encode())
        assert not [word for word in ("validation error", "'type':", "'input':") if word in error.message]
        assert "body" not in f"{error.message} {error.param}"
