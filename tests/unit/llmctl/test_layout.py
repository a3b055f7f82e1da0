"""What a start of the local stack writes, and what it leaves as the operator has it."""

from pathlib import Path

import pytest
import yaml

from daemons.gateway.tenants.key_files import hash_of
from daemons.llmctl.up.layout import Layout, Model, Ports, Served
from daemons.runtime.errors import Fatal

SERVED = Served("simulated", "a simulation")


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    made = Layout(tmp_path / "state")
    made.make()
    return made


def start(layout: Layout, port: int = 8080) -> bool:
    layout.write_gateway(SERVED, Ports(port))
    return layout.write_keys()


def keys(layout: Layout) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in layout.keys.iterdir()}


def test_a_first_start_makes_both_keys(layout: Layout) -> None:
    assert not start(layout)
    found = {name: yaml.safe_load(text) for name, text in keys(layout).items()}
    assert set(found) == {"local", "original-examples"}
    assert found["local"]["secrets"] == [hash_of(layout.key())]


def test_later_starts_leave_settings_of_the_operator(layout: Layout) -> None:
    start(layout)
    written = layout.gateway_config.read_text()
    layout.gateway_config.write_text(written + "limits: {bodies_bytes: 1000000}\n")
    start(layout, 18080)
    text = layout.gateway_config.read_text()
    content = yaml.safe_load(text)
    assert content["limits"] == {"bodies_bytes": 1000000}
    assert content["listen"]["port"] == 18080
    said = "# `make up` writes listen, metrics, admin, engines anew at every start; other keys stay"
    assert text.startswith(said)
    assert text.count("# ") == 1


def test_settings_that_cannot_be_read_are_not_overwritten(layout: Layout) -> None:
    layout.gateway_config.write_text("limits: [\n")
    with pytest.raises(Fatal, match=r"gateway\.yaml: cannot be read"):
        start(layout)
    assert layout.gateway_config.read_text() == "limits: [\n"


def test_the_engine_s_file_says_that_it_is_written_anew(layout: Layout) -> None:
    layout.write_engine(Model("m", "m"), Ports(0), {})
    assert layout.engine_config.read_text().startswith("# `make up` writes this file anew at every start")


def test_later_starts_leave_keys_as_they_are(layout: Layout) -> None:
    start(layout)
    (layout.keys / "original-examples.yaml").unlink()
    local = layout.keys / "local.yaml"
    local.write_text(local.read_text() + "disabled: true\n")
    before = keys(layout)
    assert not start(layout)
    assert keys(layout) == before


def test_the_key_that_the_stack_needs_comes_back_and_that_is_said(layout: Layout) -> None:
    start(layout)
    key, before = layout.key(), keys(layout)
    (layout.keys / "local.yaml").unlink()
    assert start(layout)
    assert (keys(layout), layout.key()) == (before, key)


def test_without_its_file_a_new_key_is_made(layout: Layout) -> None:
    start(layout)
    former = layout.key()
    layout.key_file.unlink()
    assert not start(layout)
    assert layout.key() != former
    assert yaml.safe_load(keys(layout)["local"])["secrets"] == [hash_of(layout.key())]
