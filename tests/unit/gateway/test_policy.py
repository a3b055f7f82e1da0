"""The policy: what passes, what is dropped, what is refused and how it is said; and that nothing slips by."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.gateway.api.endpoints import ENDPOINTS
from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.policy import structure
from daemons.gateway.policy.bounds import PolicySettings
from daemons.gateway.policy.sanitise import EngineFields, Policy, Sanitised, cache_salts
from daemons.gateway.policy.table import RULES, Action, as_markdown

FIELDS = EngineFields(streams=True, usage_in_stream=True)


def policy(*hosts: str) -> Policy:
    """A policy with the default bounds."""
    return Policy(PolicySettings(), cache_salts(b"secret"), lambda _: frozenset(hosts))


def ask(body: object, *hosts: str, fields: EngineFields = FIELDS) -> Sanitised:
    """What becomes of `body`."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return policy(*hosts)(raw, "team", fields)


def sent(body: object, *hosts: str, fields: EngineFields = FIELDS) -> dict[str, Any]:
    """What the engine gets."""
    value: dict[str, Any] = json.loads(ask(body, *hosts, fields=fields).body)
    return value


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    "name", [*sorted(n for n, r in RULES.items() if r.action is Action.DROP), "not_yet_invented"]
)
def test_what_tenants_must_not_set_does_not_arrive(name: str) -> None:
    assert sent({"model": "m", name: {"a": 1}}).keys() == {"model", "cache_salt"}


@pytest.mark.parametrize("name", sorted(n for n, r in RULES.items() if r.action is Action.REFUSE))
def test_what_is_refused_is_named(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        ask({"model": "m", name: True})
    assert caught.value.code is ErrorCode.PARAMETER_NOT_ALLOWED
    assert caught.value.param == name
    assert sent({"model": "m", name: None})["model"] == "m"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("n", 4, 5),
        ("n", 1, 0),
        ("max_tokens", 131072, 131073),
        ("max_completion_tokens", 5, -1),
        ("top_logprobs", 20, 21),
        ("logprobs", True, 21),
        ("prompt_logprobs", 5, -1),
        ("stop", ["a"] * 16, ["a"] * 17),
        ("stop", "a", "a" * 5000),
        ("stop_token_ids", [1] * 16, [1] * 17),
        ("logit_bias", {"1": 1}, {str(i): 1 for i in range(1025)}),
        ("bad_words", ["a"], ["a"] * 1025),
        ("bad_words", ["a" * 60000], ["a" * 70000]),
        ("allowed_token_ids", [1], [1] * 1025),
        ("tools", [{"type": "function"}], [{"type": "function"}] * 129),
        ("response_format", {"type": "json_object"}, {"schema": {"pattern": "a" * 2049}}),
        ("structured_outputs", {"regex": "a+"}, {"regex": "a" * 2049}),
        ("response_format", {"a": 1}, {"a": "x" * 70000}),
        ("messages", [{"role": "user"}], [{"role": "user"}] * 2049),
        ("prompt", ["a"] * 256, ["a"] * 257),
        ("prompt", list(range(1000)), [[1]] * 257),
        ("chat_template_kwargs", {"enable_thinking": False}, {"chat_template": "{{ 1 }}"}),
        ("chat_template_kwargs", {}, {"a": "x" * 5000}),
        ("chat_template_kwargs", {"documents": []}, {"padding": "max_length", "max_length": 10**9}),
        ("chat_template_kwargs", {"enable_thinking": True}, {"tools": [{}] * 200}),
        ("top_k", -1, 10**30),
        ("input", ["a"] * 2048, ["a"] * 2049),
        ("input", [{"role": "user"}] * 300, [{"role": "user", "content": [1] * 9000}]),
        ("tools", [{"type": "function", "a": "x" * 9000}] * 9, [{"type": "mcp", "server_url": "http://x"}]),
        ("metadata", {"a": "b"}, {"a": "x" * 70000}),
        ("include", [], [1] * 9000),
        ("messages", [{"content": "1," * 50000}], [{"content": [{}] * 8200}]),
        ("messages", [{"role": "user"}], [{str(i): {} for i in range(100000)}]),
        ("messages", [], "hi"),
        ("messages", [{"role": "user"}], {"role": "user"}),
        ("prompt", [5] * 30000, [5, *["a"] * 9000]),
        ("prompt", [[5] * 30000], [[[5]] * 9000]),
    ],
)
def test_bounds(name: str, good: object, bad: object) -> None:
    assert sent({"model": "m", name: good})[name] == good
    with pytest.raises(ApiError) as caught:
        ask({"model": "m", name: bad})
    assert (caught.value.param or "").startswith(name)
    assert name in caught.value.message
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("max_tokens", 1_000_000, "'max_tokens' is 1000000; it must be from 0 to 131072."),
        ("max_tokens", 131_073.0, "'max_tokens' is 131073; it must be from 0 to 131072."),
        ("max_tokens", -0.5, "'max_tokens' is -0.5; it must be from 0 to 131072."),
        ("top_k", 10**30, "'top_k' is 1e+30; it must be from -1 to 2147483647."),
        ("n", 0, "'n' is 0; it must be from 1 to 4."),
    ],
)
def test_a_number_is_told_as_it_was_meant(name: str, value: float, told: str) -> None:
    with pytest.raises(ApiError) as caught:
        ask({"model": "m", name: value})
    assert caught.value.message == told


@given(
    st.recursive(
        st.text(max_size=5) | st.integers() | st.none(),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=30,
    )
)
def test_entries_of_lists_are_counted_wherever_they_are(value: Any) -> None:
    def entries(node: Any) -> int:
        if isinstance(node, dict):
            return sum(map(entries, node.values()))
        return len(node) + sum(map(entries, node)) if isinstance(node, list) else 0

    def counted(value: Any, bound: int) -> bool:
        return not structure._has_more(json.dumps(value).encode(), bound)

    # An empty list counts as one: that is why the bound of the other side is not exact.
    least, most = entries(value), entries(json.loads(json.dumps(value).replace("[]", "[0]")))
    # Enough members of objects that these alone do not exceed the bound.
    assert counted([value, *[0] * 50], most + 60)
    assert not counted([value, *[0] * 50], least + 50)


def test_a_body_of_millions_of_values_is_refused_at_once() -> None:
    for junk in (b"1," * 9_000_000, b'{"":1},' * 2_000_000, b'"\\n",' * 3_000_000, b"[[],[]]," * 2_000_000):
        began = time.process_time()
        with pytest.raises(ApiError):
            ask(b'{"model":"m","messages":[{"role":"user","content":[' + junk + b"1]}]}")
        assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("body", "answers"),
    [
        ({"messages": []}, 0),
        ({"messages": [], "n": 1}, 0),
        ({"messages": [], "n": 3}, 3),
        ({"messages": [], "n": 2.0}, 2),
        ({"messages": [], "n": None}, 0),
        ({"prompt": "a"}, 0),
        ({"prompt": ["a", "b"]}, 1),
        ({"prompt": ["a", "b"], "n": 2}, 2),
    ],
)
def test_streams_of_several_answers_are_known(body: dict[str, Any], answers: int) -> None:
    assert ask({"model": "m", "stream": True, **body}).answers == answers


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/v1/chat/completions", ["max_completion_tokens", "max_tokens"]),
        ("/v1/completions", ["max_tokens"]),
        ("/v1/messages", ["max_tokens"]),
        ("/v1/responses", ["max_output_tokens"]),
    ],
)
def test_an_answer_is_as_long_as_the_engine_takes_it_to_be(path: str, names: list[str]) -> None:
    """A length under a name that its API does not know would reserve less than is used."""
    fields = ENDPOINTS[path].fields
    others = {"max_completion_tokens", "max_tokens", "max_output_tokens"} - set(names)
    for body in ({"model": "m"}, {"model": "m", "messages": []}, {"model": "m", "prompt": "a"}):
        assert ask({**body, **dict.fromkeys(others, 1)}, fields=fields).answer_tokens is None
        given = {name: 100 * (place + 1) for place, name in enumerate(names)}
        assert ask({**body, **dict.fromkeys(others, 1), **given}, fields=fields).answer_tokens == 100


def test_a_body_that_needs_no_change_is_not_touched() -> None:
    body = b'{ "model" : "m",\n "tokens": [1, 2.50] }'
    assert ask(body, fields=EngineFields(cache_salt=False)).body == body


def test_the_last_of_two_equal_keys_counts_and_alone_arrives() -> None:
    body = b'{"model":"m","n":1,"n":99}'
    with pytest.raises(ApiError):
        ask(body)
    assert ask(b'{"model":"m","n":99,"n":2}').body.count(b'"n"') == 1


_FIELDS = st.builds(
    EngineFields,
    streams=st.booleans(),
    usage_in_stream=st.booleans(),
    cache_salt=st.booleans(),
    store=st.booleans(),
    metered=st.booleans(),
    lengths=st.sampled_from([(), ("max_tokens",), ("max_completion_tokens", "max_tokens")]),
)
_numbers = st.none() | st.integers(-1, 6) | st.sampled_from([131072, 131073, 1.0, True, "1"])
_texts = st.lists(
    st.fixed_dictionaries(
        {"role": st.text(max_size=5), "content": st.text() | st.none()}, optional={"name": st.text()}
    ),
    max_size=3,
)


@given(
    st.fixed_dictionaries(
        {"messages": _texts},
        optional={
            "n": _numbers,
            "max_tokens": _numbers,
            "max_completion_tokens": _numbers,
            "stream": st.none() | st.booleans() | st.just("yes"),
            "stream_options": st.sampled_from(
                [None, {}, {"include_usage": True}, {"continuous_usage_stats": True}, 1]
            ),
            "temperature": json_values,
            "cache_salt": st.just("mine"),
            "system": st.just("Be kind."),
            "unknown": st.just(1),
        },
    ),
    _FIELDS,
    st.booleans(),
)
def test_what_is_read_in_one_pass_is_read_as_ever(
    body: dict[str, Any], fields: EngineFields, salted: bool
) -> None:
    raw = json.dumps({"model": "m", **body}).encode()
    salt = cache_salts(b"secret") if salted else None

    def outcome(bounds: PolicySettings, raw: bytes) -> object:
        try:
            asked = Policy(bounds, salt, lambda _: frozenset())(raw, "team", fields)
        except ApiError as error:
            return error.code, error.param
        sent = {name: value for name, value in json.loads(asked.body).items() if value is not None}
        flags = (asked.stream, asked.keep_final, asked.keep_all)
        return asked.model, sent, flags, asked.answer_tokens, asked.answers

    # Blanks make it too long to be read in one pass.
    longer = raw + b" " * 1024
    assert outcome(PolicySettings(), raw) == outcome(PolicySettings(value_bytes=1024), longer)


def test_an_engine_gets_each_parameter_once_as_it_was_checked() -> None:
    raw = b'{"model":"secret","model":"m","n":128,"n":1,"max_tokens":999999,"max_tokens":5,"messages":[]}'
    pairs = json.loads(ask(raw).body, object_pairs_hook=list)
    assert sorted(name for name, _ in pairs) == ["cache_salt", "max_tokens", "messages", "model", "n"]
    assert dict(pairs).items() >= {"model": "m", "n": 1, "max_tokens": 5}.items()


def test_salts_differ_by_group_and_secret() -> None:
    one, two = cache_salts(b"a"), cache_salts(b"b")
    assert len({one("x"), one("y"), two("x")}) == 3
    assert one("x") == one("x")


@given(st.dictionaries(st.sampled_from([*RULES, "unknown"]), json_values, max_size=12))
def test_any_object_is_refused_or_arrives_clean(body: dict[str, Any]) -> None:
    try:
        got = sent({**body, "model": "m"})
    except ApiError:
        return
    for name, value in got.items():
        action = RULES[name].action
        assert action is not Action.DROP
        if action in {Action.PASS, Action.BOUND} and name != "model":
            assert value == body[name]
        if action is Action.REFUSE:
            assert value in {None, False}


odd = st.sampled_from(
    [
        10**400,
        -(10**30),
        1e308,
        -1,
        0.5,
        "x" * 70_000,
        [[]] * 9000,
        [0] * 40_000,
        {str(i): i for i in range(9000)},
    ]
)


@given(st.sampled_from(sorted(RULES)), json_values | odd | st.lists(odd, max_size=2))
def test_every_parameter_is_taken_or_refused_by_its_name(name: str, value: Any) -> None:
    """Whatever a parameter holds, the answer is a 400 that names it, or a request that an engine may see."""
    body = {"model": "m", name: value}
    refused: list[ApiError] = []
    try:
        assert len(json.dumps(sent(body))) <= len(json.dumps(body)) + 300
    except ApiError as error:
        refused.append(error)
    for fault in refused:
        assert (fault.status, (fault.param or "").split(".")[0]) == (400, name)
        assert f"'{name}" in fault.message


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_understood(data: bytes) -> None:
    for raw in (data, b'{"model":"m","messages":' + data + b"}"):
        with contextlib.suppress(ApiError):
            ask(raw)


def test_the_table_names_the_bounds_that_are_held() -> None:
    class Seen(PolicySettings):
        def __getattribute__(self, name: str) -> Any:
            if name in PolicySettings.model_fields:
                seen.add(name)
            return super().__getattribute__(name)

    for name, rule in RULES.items():
        seen: set[str] = set()
        for value in (b"1", b'["a"]', b'{"regex":"a"}'):
            with contextlib.suppress(ApiError):
                if rule.check is not None:
                    rule.check(name, msgspec.Raw(value), Seen())
        assert seen == set(rule.bounds), name


def test_the_documentation_is_the_table() -> None:
    page = Path(__file__).parents[3] / "docs" / "policy.md"
    assert page.read_text() == as_markdown(), "run: python -m daemons.gateway.policy > docs/policy.md"
