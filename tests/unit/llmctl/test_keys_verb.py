"""``llmctl keys``, as it is typed."""

import datetime as dt
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from daemons.gateway.tenants.key_files import KeyFiles
from daemons.gateway.tenants.keys import KeyFolder, KeySettings
from daemons.gateway.tenants.ring import KeyRing, Tenant
from daemons.llmctl.__main__ import main
from daemons.llmctl.keys import table

Ctl = Callable[..., int]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({"engines": [{"name": "e", "url": "unix:///e", "models": ["m"]}]}))
    (tmp_path / "keys.d").mkdir(mode=0o750)
    return path


@pytest.fixture
def keys(config: Path) -> Ctl:
    return lambda action, *words: main(["keys", action, "--config", str(config), *words])


def tenant(config: Path, secret: str, now: float | None = None) -> Tenant | None:
    """Whom a gateway would take the bearer of `secret` for."""
    ring = KeyRing()
    KeyFolder(config.parent / "keys.d", ring).refresh()
    return ring.find(secret.encode(), time.time() if now is None else now)


def test_a_new_key_works_and_its_secret_is_shown_once(
    keys: Ctl, config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = "team-a --requests-per-minute 600 --tokens-per-minute 200k --class batch --models m,n"
    assert keys("add", *words.split(), "--network", "192.0.2.0/24", "--expires", "30d") == 0
    out, err = capfd.readouterr()
    secret = out.strip()
    assert secret.startswith("sk-")
    assert secret not in err
    found = tenant(config, secret)
    assert found is not None
    assert (found.alias, found.priority, found.models) == ("team-a", "batch", frozenset({"m", "n"}))
    assert found.limits.model_dump(exclude_none=True) == {
        "requests_per_minute": 600,
        "tokens_per_minute": 200_000,
    }
    path = config.parent / "keys.d" / "team-a.yaml"
    assert secret not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in path.parent.iterdir()] == ["team-a.yaml"]
    assert tenant(config, secret, time.time() + 31 * 86400) is None
    keys("list")
    assert secret not in capfd.readouterr().out


def test_a_rotation_keeps_two_secrets_live_until_a_date(
    keys: Ctl, config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secrets = []
    assert keys("add", "team-a") == 0
    secrets.append(capfd.readouterr().out.strip())
    for _ in range(2):
        assert keys("rotate", "team-a", "--keep", "1h") == 0
        secrets.append(capfd.readouterr().out.strip())
    now = time.time()
    live = [tenant(config, secret, now) is not None for secret in secrets]
    assert live == [False, True, True]
    assert [tenant(config, secret, now + 3700) is not None for secret in secrets] == [False, False, True]
    keys("list")
    assert "rotating until" in " ".join(capfd.readouterr().out.split())
    assert keys("rotate", "team-a", "--keep", "0s") == 0
    secrets.append(capfd.readouterr().out.strip())
    assert [tenant(config, secret) is not None for secret in secrets] == [False, False, False, True]


def test_a_key_is_disabled_enabled_and_removed(
    keys: Ctl, config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys("add", "team-a", "--json")
    secret = json.loads(capfd.readouterr().out)["key"]
    assert keys("disable", "team-a") == 0
    assert tenant(config, secret) is None
    assert keys("enable", "team-a") == 0
    assert tenant(config, secret) is not None
    assert keys("remove", "team-a") == 0
    assert tenant(config, secret) is None
    assert keys("remove", "team-a") == 1
    assert "no key is named 'team-a'" in capfd.readouterr().err


def test_limits_that_were_used_are_listed_as_others() -> None:
    key = KeySettings(name="k", secrets=["sha256:" + "0" * 64])
    assert key.limits.figures == (None,) * 5
    out = io.StringIO()
    Console(file=out, width=200).print(table([key], dt.datetime.now(dt.UTC)))
    assert "k" in out.getvalue()


def test_the_list_is_a_table_or_json(keys: Ctl, config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    keys("list")
    assert "no key yet" in capfd.readouterr().out
    keys("add", "team-a", "--tokens-per-month", "5M", "--expires", "2020-01-01")
    keys("add", "team-b", "--network", "2001:db8::/32")
    capfd.readouterr()
    assert keys("list", "--json") == 0
    listed = {key["name"]: key for key in json.loads(capfd.readouterr().out)}
    assert listed["team-a"]["state"] == "expired"
    assert listed["team-a"]["limits"]["tokens_per_month"] == 5_000_000
    assert listed["team-b"]["networks"] == ["2001:db8::/32"]
    assert "sha256" not in json.dumps(listed)
    (config.parent / "keys.d" / "broken.yaml").write_text("name: [\n")
    assert keys("list") == 78
    out, err = capfd.readouterr()
    assert "broken.yaml" in err
    assert "team-a" in out


@pytest.mark.parametrize(
    "words",
    [
        ["add", "bad name"],
        ["add", "x", "--network", "nonsense"],
        ["add", "taken"],
        ["rotate", "nobody"],
        ["disable", "nobody"],
    ],
)
def test_bad_input_is_told_and_changes_nothing(
    keys: Ctl, config: Path, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    keys("add", "taken")
    before = {p.name: p.read_bytes() for p in (config.parent / "keys.d").iterdir()}
    capfd.readouterr()
    assert keys(*words) != 0
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("llmctl: ")
    assert {p.name: p.read_bytes() for p in (config.parent / "keys.d").iterdir()} == before


def test_names_are_never_cut(keys: Ctl, config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = "original-evaluation-of-the-night"
    keys("add", name, "--tokens-per-month", "5M", "--requests-per-minute", "60", "--network", "2001:db8::/32")
    capfd.readouterr()
    keys("list")
    heading, line = capfd.readouterr().out.splitlines()
    assert "networks" in heading
    assert name in line
    assert "60 req/min, 5M tok/month" in line
    _, key = KeyFiles(config.parent / "keys.d").get(name)
    narrow = Console(width=80, file=io.StringIO())
    narrow.print(table([key], dt.datetime.now(dt.UTC)))
    assert isinstance(narrow.file, io.StringIO)
    assert name in narrow.file.getvalue()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bad name!"], "llmctl: 'bad name!' cannot be a name: write at most 64 letters"),
        (["x", "--cache-group", "a b"], "llmctl: 'a b' cannot be --cache-group: write"),
        (
            ["x", "--network", "10.0.0.0/8", "--network", "300.1.1.1/8"],
            "--network '300.1.1.1/8' is no network",
        ),
    ],
)
def test_a_bad_value_is_one_line_that_says_what_to_write(
    keys: Ctl, words: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert keys("add", *words) == 78
    [line] = capfd.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize("given", ["-4", "0", "0k"])
def test_a_limit_below_one_is_told_its_option_and_its_form(
    keys: Ctl, config: Path, given: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        keys("add", "x", "--requests-per-minute", given)
    assert ended.value.code == 2
    said = f"--requests-per-minute: {given!r} is no limit: write a whole number of 1 or more"
    assert said in capfd.readouterr().err
    assert not list((config.parent / "keys.d").iterdir())


def test_a_key_that_lets_nobody_in_is_made_with_a_warning(
    keys: Ctl, capfd: pytest.CaptureFixture[str]
) -> None:
    assert keys("add", "x", "--models", "m,nope", "--expires", "2020-01-01") == 0
    err = capfd.readouterr().err
    assert "warning: no engine serves nope; served are: m\n" in err
    assert "warning: x has expired already (2020-01-01 00:00 UTC)" in err
    assert keys("add", "y", "--models", "m", "--expires", "1d") == 0
    assert keys("add", "z") == 0
    assert "warning" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "words", [["add", "x", "--expires", "soon"], ["add", "x", "--concurrency", "many"], ["add"]]
)
def test_what_cannot_be_read_is_a_usage_error(keys: Ctl, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        keys(*words)
    assert ended.value.code == 2


def test_a_key_of_the_inventory_is_changed_with_a_warning(
    keys: Ctl, config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys("add", "team-a")
    path = config.parent / "keys.d" / "team-a.yaml"
    path.write_text("# Written by Ansible; change the inventory instead.\n" + path.read_text())
    for action in ("disable", "enable", "rotate", "disable"):
        capfd.readouterr()
        assert keys(action, "team-a") == 0
        assert "comes from the inventory" in capfd.readouterr().err
        # By this line the deployment finds what has left the inventory.
        assert path.read_text().startswith("# Written by Ansible")
    assert yaml.safe_load(path.read_text())["disabled"] is True
    assert keys("remove", "team-a") == 0
    assert "comes from the inventory" in capfd.readouterr().err


def test_a_folder_that_cannot_be_read_is_said(
    keys: Ctl, config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "keys.d").rmdir()
    assert keys("list") == 78
    assert "keys.d" in capfd.readouterr().err


def test_every_action_teaches(capfd: pytest.CaptureFixture[str]) -> None:
    for action in ("add", "list", "rotate", "disable", "enable", "remove"):
        with pytest.raises(SystemExit) as ended:
            main(["keys", action, "--help"])
        assert ended.value.code == 0
    assert "llmctl keys rotate team-a --keep" in capfd.readouterr().out


def test_help_says_who_waits_for_whom(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["keys", "add", "--help"])
    said = " ".join(capfd.readouterr().out.split())
    assert "waiting requests of a more urgent class, here named first, go first" in said
    assert "a key without --concurrency can fill the queue alone" in said


def test_times_have_their_zone(keys: Ctl, config: Path) -> None:
    keys("add", "team-a", "--expires", "2027-01-31")
    text = yaml.safe_load((config.parent / "keys.d" / "team-a.yaml").read_text())["expires"]
    given = dt.datetime.fromisoformat(text) if isinstance(text, str) else text
    assert given == dt.datetime(2027, 1, 31, tzinfo=dt.UTC)
