"""The policy of what a request is made of: items of responses, media, schemas."""

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given

from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.policy.sanitise import EngineFields
from tests.unit.gateway.test_policy import ask, json_values, sent

RESPONSES = EngineFields(streams=True, store=True)


@pytest.mark.parametrize(
    "items",
    [
        "a text",
        [{"role": "user", "content": "x"}],
        [{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "x"}]}],
        [
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": "data:image/png;base64,A", "detail": "auto"}
                ],
            }
        ],
        [
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "x"}],
            },
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "x", "annotations": [], "logprobs": None}],
            },
            {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "seen"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
        ],
    ],
)
def test_items_of_a_response_pass(items: object) -> None:
    assert sent({"model": "m", "input": items}, fields=RESPONSES)["input"] == items


@pytest.mark.parametrize(
    "items",
    [
        [{}],
        [1],
        ["a"],
        [[5, 6]],
        {},
        [{"type": "message"}],
        [{"role": "user"}],
        [{"role": "king", "content": "x"}],
        [{"role": "user", "content": [1]}],
        [{"role": "user", "content": [{}]}],
        [{"role": "user", "content": [{"type": "input_text"}]}],
        [{"role": "user", "content": [{"type": "nonsense"}]}],
        [{"role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": [1] * 33}]}],
        [{"role": "user", "content": "x", "status": "odd"}],
        [{"role": "user", "content": "x", "id": 5}],
        [{"type": "item_reference", "id": "x"}],
        [{"type": "function_call", "name": "x"}],
        [{"role": "user", "content": "x"}] * 1025,
    ],
)
def test_items_without_their_shape_do_not_reach_an_engine(items: object) -> None:
    with pytest.raises(ApiError) as caught:
        ask({"model": "m", "input": items}, fields=RESPONSES)
    assert (caught.value.status, caught.value.param) == (400, "input")
    assert "'input'" in caught.value.message


@given(json_values)
def test_any_input_of_a_response_is_refused_or_has_its_shape(value: Any) -> None:
    for items in (value, [value], [{"role": "user", "content": [value]}]):
        with contextlib.suppress(ApiError):
            assert isinstance(sent({"model": "m", "input": items}, fields=RESPONSES)["input"], str | list)


def test_media_are_not_counted_as_text() -> None:
    image = _image("data:image/png;base64," + "A" * 400_000)
    assert 1024 < ask(image).prompt_tokens < 1200
    audio = {"type": "input_audio", "input_audio": {"data": "A" * 400_000, "format": "wav"}}
    assert 1024 < ask({"model": "m", "messages": [{"content": [audio]}]}).prompt_tokens < 1200
    assert ask({"model": "m", "prompt": "a" * 4000}).prompt_tokens > 1000


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video_embeds", "video_embeds": "AA"},
        {"type": "prompt_embeds", "data": "AA"},
        {"image_pil": "AA"},
        {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": {"name": "x"}}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}, "uuid": "another's"},
    ],
)
def test_tensors_and_cache_entries_do_not_come_in_as_parts(part: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        ask({"model": "m", "messages": [{"role": "user", "content": [part]}]})
    assert caught.value.code is ErrorCode.PARAMETER_NOT_ALLOWED


def test_a_deep_schema_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"properties": deep}
    with pytest.raises(ApiError):
        ask({"model": "m", "response_format": deep})


DEEP: dict[str, Any] = json.loads('{"items":' * 40 + "{}" + "}" * 40)


@pytest.mark.parametrize(
    ("name", "value", "param"),
    [
        ("structured_outputs", {"json": json.dumps(DEEP)}, "structured_outputs.json"),
        ("structured_outputs", {"json": '{"a":NaN}'}, "structured_outputs.json"),
        (
            "structured_outputs",
            {"structural_tag": json.dumps({"format": {"type": "regex", "pattern": "a" * 2049}})},
            "structured_outputs.structural_tag.pattern",
        ),
        (
            "response_format",
            {"json_schema": {"schema": {"patternProperties": {"a" * 2049: {}}}}},
            "response_format.patternProperties",
        ),
        ("structured_outputs", {"regex": "(" * 33 + "a" + ")" * 33}, "structured_outputs.regex"),
        ("structured_outputs", {"regex": "[]" + "(" * 33}, "structured_outputs.regex"),
        ("structured_outputs", {"regex": ")" * 33 + "(" * 33}, "structured_outputs.regex"),
        ("tools", [{"function": {"parameters": {"pattern": "(" * 33 + ")" * 33}}}], "tools.pattern"),
        ("tools", [{"type": "namespace", "tools": [{"type": "function"}] * 128}], "tools"),
        ("tools", [{"type": "namespace", "tools": [{"server_url": "http://x"}]}], "tools"),
    ],
)
def test_bounds_hold_wherever_an_engine_looks(name: str, value: object, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        ask({"model": "m", name: value})
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("structured_outputs", {"json": '{"type":"object"}'}),
        ("structured_outputs", {"regex": "(a)(b)" * 100}),
        ("structured_outputs", {"regex": r"\(" * 100 + "[(]" * 100 + "[^(\\](]" * 100}),
        ("response_format", {"json_schema": {"schema": {"patternProperties": {"^a": {}}}}}),
        ("response_format", {"json_schema": {"schema": {"properties": {"pattern": {"type": "string"}}}}}),
        ("tools", [{"type": "namespace", "tools": [{"type": "function"}] * 127}]),
    ],
)
def test_structures_within_bounds_pass(name: str, value: object) -> None:
    assert sent({"model": "m", name: value})[name] == value


@pytest.mark.parametrize("pattern", ["[" * 2048, "[\\" * 1000, "\\" * 2047, "()" * 1024, "[a" * 1024])
def test_hostile_patterns_are_read_quickly(pattern: str) -> None:
    tools = [{"function": {"parameters": {"pattern": pattern}}}] * 60
    began = time.process_time()
    ask({"model": "m", "tools": tools})
    assert time.process_time() - began < 0.5


def test_a_repeated_prompt_has_no_more_logprobs_than_a_prompt_may_have() -> None:
    for name in ("logprobs", "top_logprobs"):
        body = {"model": "m", "prompt": "a", name: 20}
        assert sent(body)[name] == 20
        assert sent({**body, "echo": True, name: 5})[name] == 5
        assert sent({**body, "echo": True, "prompt_logprobs": 0})[name] == 20
        assert sent({**body, "echo": False})[name] == 20
        # An engine takes all of these for true, or refuses them itself.
        for echo in (True, 1, "true", "on", [1]):
            with pytest.raises(ApiError) as caught:
                ask({**body, "echo": echo, "prompt_logprobs": None})
            assert (caught.value.status, caught.value.param) == (400, name)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"1", b'{"a":}', b"\xff", b"[" * 100000, b'{"a":' * 100000]
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        ask(body)
    assert caught.value.code is ErrorCode.INVALID_JSON


@pytest.mark.parametrize("text", [b"\xff", b"\xed\xa0\x80", b"\xc3", b"\xc0\x80"])
@pytest.mark.parametrize("many", [0, 65535, 70000])
def test_what_is_no_utf_8_is_refused_wherever_it_stands(text: bytes, many: int) -> None:
    for body in (
        b'{"model":"m","messages":[],"user":"%b"}',
        b'{"model":"m","messages":[{"role":"user","content":["%b"]}]}',
        b'{"model":"m","prompt":"%b"}',
        b'{"model":"m","tokens":["%b"]}',
    ):
        with pytest.raises(ApiError) as caught:
            ask(body % (b" " * many + text))
        assert caught.value.code is ErrorCode.INVALID_JSON
    whole = "\u00e9" * many + "\U0001f600"
    assert sent(json.dumps({"model": "m", "prompt": whole}, ensure_ascii=False).encode())["prompt"] == whole


def _image(url: str) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"model": "m", "messages": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "//host/x",
        "https://user@allowed.example.org/x",
        "https://allowed.example.org.evil.example/x",
        "HTTP://127.0.0.1/",
        "",
    ],
)
def test_media_from_elsewhere_is_refused(url: str) -> None:
    for body in (
        _image(url),
        {"model": "m", "messages": [{"content": [{"type": "image", "source": {"type": "url", "url": url}}]}]},
        {"model": "m", "input": [{"content": [{"type": "input_image", "image_url": url}]}]},
        {"model": "m", "messages": [{"content": [{"type": "video_url", "video_url": {"url": url}}]}]},
        {"model": "m", "text_1": {"content": [{"type": "image_url", "image_url": {"url": url}}]}},
        {"model": "m", "documents": [{"content": [{"type": "image_url", "image_url": {"url": url}}]}]},
        {"model": "m", "documents": [{"image_url": {"url": url}, "url": "data:"}]},
        {"model": "m", "documents": [{"type": "url", "url": url}]},
        {"model": "m", "text_2": [{"content": [{"type": "image_url", "image_url": {"url": url}}]}]},
    ):
        with pytest.raises(ApiError):
            ask(body, "allowed.example.org")
        # An escaped key is the same key.
        hidden = json.dumps(body).replace("_url", "\\u005furl").replace('"url"', '"\\u0075rl"')
        with pytest.raises(ApiError):
            ask(hidden.encode(), "allowed.example.org")


def test_media_inside_the_request_and_from_allowed_hosts() -> None:
    assert sent(_image("data:image/png;base64,AAAA"))
    assert sent(_image("https://allowed.example.org/cat.png"), "allowed.example.org")
    with pytest.raises(ApiError):
        ask(_image("https://allowed.example.org/cat.png"))


def test_documents_may_say_where_they_are_from() -> None:
    """A template renders them; nobody fetches them."""
    documents = [{"title": "a", "text": "b", "url": "https://example.org/a", "uuid": "5"}]
    assert sent({"model": "m", "messages": [], "documents": documents})["documents"] == documents
    for more in ({"type": "image_url"}, {"image_url": None}, {"image_embeds": "x"}):
        with pytest.raises(ApiError):
            ask({"model": "m", "messages": [], "documents": [{**documents[0], **more}]})
