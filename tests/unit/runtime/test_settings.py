"""Configuration files: every fault at once, each with its file, line and key."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, SecretStr

from daemons.runtime.errors import EXIT_CONFIG
from daemons.runtime.settings import ConfigError, Settings, load, parse
from daemons.runtime.sockets import Address


class _Engine(Settings):
    name: str
    slots: int = Field(default=1, ge=1)


class _Example(Settings):
    listen: Address = Address(port=8080)
    engines: tuple[_Engine, ...] = ()
    secret: SecretStr | None = None


FILE = Path("example.yaml")


def _faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, FILE, _Example)
    assert caught.value.exit_code == EXIT_CONFIG
    return [str(fault) for fault in caught.value.faults]


def test_a_good_file_is_read_with_its_defaults() -> None:
    settings = parse("engines: [{name: a}]", FILE, _Example)
    assert settings.engines == (_Engine(name="a", slots=1),)
    assert settings.listen.port == 8080


def test_an_empty_file_is_all_defaults() -> None:
    assert parse("", FILE, _Example) == _Example()


def test_every_fault_is_reported_with_its_line_and_key() -> None:
    faults = _faults(
        "listen:\n  port: eighty\nengines:\n  - slots: 0\n  - name: b\n    colour: red\nextra: 1\n"
    )
    assert faults == [
        "example.yaml:2: listen.port: Input should be a valid integer, unable to parse string as an integer",
        "example.yaml:4: engines[0].name: this key is required",
        "example.yaml:4: engines[0].slots: Input should be greater than or equal to 1",
        "example.yaml:6: engines[1].colour: unknown key; known here are: name, slots",
        "example.yaml:7: extra: unknown key; known here are: listen, engines, secret",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "example.yaml:1: not valid YAML"),
        ("listen: {}\nlisten: {}\n", "example.yaml:2: not valid YAML: the key 'listen' is given twice"),
        ("name: 2027-02-30T00:00:00Z\n", "example.yaml: a value cannot be read"),
        ("{[a]: b}\n", "example.yaml: a value cannot be read"),
        ("- 1\n", "example.yaml:1: expected a mapping of keys to values"),
        ("a: !!python/object:os.system x\n", "example.yaml:1: not valid YAML"),
    ],
)
def test_what_is_no_mapping_is_one_line(text: str, expected: str) -> None:
    [fault] = _faults(text)
    assert fault.startswith(expected)


def test_a_value_is_never_echoed() -> None:
    faults = _faults("secret: {password: hunter2}\n")
    assert "hunter2" not in "\n".join(faults)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gateway\.yaml: cannot read it: it does not exist"):
        load(tmp_path / "gateway.yaml", _Example)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(path, _Example)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse(text, FILE, _Example)


class _Holder(Settings):
    engines: tuple[_Engine, ...] = Field(min_length=1)


def test_a_list_whose_only_item_is_faulty_is_not_called_empty() -> None:
    for text, said in (("[{slots: 1}]", "engines[0].name: this key is required"), ("[]", "at least 1 item")):
        with pytest.raises(ConfigError) as caught:
            parse(f"engines: {text}", FILE, _Holder)
        [fault] = caught.value.faults
        assert said in str(fault)
