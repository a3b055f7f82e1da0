"""API keys and the limits that would shape a result."""

import hashlib
from pathlib import Path

import pytest

from daemons.loadtest.keys import binding_limits
from daemons.loadtest.load.plan import Closed, Load, Plan, Poisson
from daemons.loadtest.target import parse_target
from daemons.runtime.errors import Fatal


def limited(folder: Path, limits: str, load: Load) -> list[str]:
    digest = hashlib.sha256(b"sk-a").hexdigest()
    (folder / "a.yaml").write_text(f"name: a\nsecrets: ['sha256:{digest}']\nlimits: {{{limits}}}\n")
    return binding_limits(Plan(load=load), ["sk-a"], folder)


@pytest.mark.parametrize(
    ("limits", "load", "said"),
    [
        ("concurrency: 4", Closed(concurrency=5), "limit of 4 concurrency binds"),
        ("concurrency: 5", Closed(concurrency=5), None),
        ("requests_per_minute: 60", Closed(concurrency=5), "binds if answers take less than 5 s"),
        ("requests_per_minute: 60", Poisson(rate=2), "limit of 60 requests per minute binds"),
        ("requests_per_minute: 600", Poisson(rate=2), None),
        ("tokens_per_minute: 1000", Poisson(rate=2), "limit of 1000 tokens per minute binds"),
        ("", Poisson(rate=2), None),
    ],
)
def test_a_limit_that_would_bind_is_said(tmp_path: Path, limits: str, load: Load, said: str | None) -> None:
    found = limited(tmp_path, limits, load)
    assert (said in found[0]) if said else found == []


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1",
        "http://localhost:0",
        "http://me:sk-secret@host:99999",
        "me:sk-secret@host",
        "http://a b",
    ],
)
def test_an_address_that_is_none_is_refused_without_repeating_a_secret(url: str) -> None:
    with pytest.raises(Fatal) as failure:
        parse_target(url)
    assert failure.value.exit_code == 78
    assert "sk-secret" not in str(failure.value)


def test_paths_are_sent_as_they_must_be() -> None:
    assert parse_target("http://host/a b/v1").base_path == "/a%20b"
    assert parse_target("http://host/v1/").base_path == ""
