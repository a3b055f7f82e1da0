"""Downloads from a real HTTP mirror."""

import argparse
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from daemons.engine.models.hub import Hub, Unreachable
from daemons.engine.models.peek import peek
from daemons.engine.models.store import MANIFEST, Store
from daemons.llmctl import models
from daemons.runtime.errors import Fatal
from tests.integration.engine.conftest import PROJECT, wait_for
from tests.integration.engine.mirror import COMMIT, Mirror

WEIGHTS = bytes(range(256)) * 8192  # 2 MiB


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    made = Mirror()
    made.files = {
        "config.json": b'{"a": 1}',
        "tokenizer.json": b"{}",
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"the same in another format",
        "original/consolidated.00.pth": b"and again",
        "README.md": b"words",
    }
    yield made
    made.close()


@pytest.fixture
def hub(mirror: Mirror) -> Hub:
    return Hub(mirror.url, first_delay=0.01)


def quiet(name: str, done: int, total: int) -> None:
    assert 0 <= done <= total, name


def test_only_what_serving_needs_at_the_exact_revision(mirror: Mirror, hub: Hub, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    store = Store(tmp_path)
    manifest = hub.download("org/tiny", None, store, lambda *progress: told.append(progress))
    assert manifest.revision == COMMIT
    assert set(manifest.files) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (store.path("org/tiny") / "model.safetensors").read_bytes() == WEIGHTS
    assert told[-1] == ("", told[-1][2], told[-1][2])
    assert store.find("org/tiny", None) == store.find("org/tiny", COMMIT) == tmp_path / "org--tiny"
    assert store.find("org/tiny", "v2") is None
    served = mirror.served
    hub.download("org/tiny", None, store, quiet)
    assert mirror.served == served


def test_an_interrupted_download_goes_on_where_it_was(mirror: Mirror, hub: Hub, tmp_path: Path) -> None:
    # The library takes 10 MiB at a time: what is to be resumed must be larger.
    large = WEIGHTS * 16
    mirror.files["model.safetensors"] = large
    mirror.cut = 1
    hub.download("org/tiny", None, Store(tmp_path), quiet)
    assert (tmp_path / "org--tiny" / "model.safetensors").read_bytes() == large
    assert mirror.ranges == [f"bytes={10 << 20}-"]


def test_a_line_that_always_breaks_is_one_clear_error_and_no_model(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut = 1000
    store = Store(tmp_path)
    with pytest.raises(Unreachable, match="org/tiny"):
        Hub(mirror.url, attempts=1).download("org/tiny", None, store, quiet)
    assert store.find("org/tiny", None) is None


def test_damaged_bytes_are_fetched_again(mirror: Mirror, hub: Hub, tmp_path: Path) -> None:
    mirror.corrupt = 1
    hub.download("org/tiny", None, Store(tmp_path), quiet)
    assert (tmp_path / "org--tiny" / "model.safetensors").read_bytes() == WEIGHTS
    mirror.corrupt = 100
    with pytest.raises(Fatal, match=r"model\.safetensors arrives damaged"):
        hub.download("org/tiny", None, Store(tmp_path / "other"), quiet)


def test_a_slow_line_is_waited_for(mirror: Mirror, hub: Hub, tmp_path: Path) -> None:
    mirror.delay = 0.02
    hub.download("org/tiny", "main", Store(tmp_path), quiet)
    assert Store(tmp_path).find("org/tiny", "main")


def test_progress_is_told_in_bytes(mirror: Mirror, hub: Hub, tmp_path: Path) -> None:
    # The library takes 10 MiB at a time.
    mirror.files["model.safetensors"] = WEIGHTS * 16
    told: list[tuple[str, int, int]] = []
    hub.download("org/tiny", None, Store(tmp_path), lambda *progress: told.append(progress))
    of_weights = [done for name, done, _ in told if name == "model.safetensors"]
    assert len(of_weights) >= 4
    assert of_weights == sorted(of_weights)
    assert of_weights[-1] == told[-1][2]


def test_one_model_is_fetched_once_however_many_ask(mirror: Mirror, hub: Hub, tmp_path: Path) -> None:
    mirror.go_on.clear()
    said: list[str] = []

    def download() -> None:
        hub.download("org/tiny", None, Store(tmp_path), lambda doing, *_: said.append(doing))

    both = [threading.Thread(target=download) for _ in range(2)]
    for thread in both:
        thread.start()
    wait_for(lambda: "waiting for another download of it" in said)
    mirror.go_on.set()
    for thread in both:
        thread.join(60)
    assert mirror.served == len(WEIGHTS)


def test_ctrl_c_ends_a_download_at_once_and_the_next_one_goes_on(
    mirror: Mirror, hub: Hub, tmp_path: Path
) -> None:
    mirror.go_on.clear()
    command = [sys.executable, "-m", "daemons.llmctl", "download", "org/tiny", "--models-dir", str(tmp_path)]
    with subprocess.Popen(command, env=os.environ | {"HF_ENDPOINT": mirror.url}, cwd=PROJECT) as running:
        wait_for(lambda: mirror.under_way)
        running.send_signal(signal.SIGINT)
        # Not as long as the mirror stands still.
        assert running.wait(30) == 130
    assert Store(tmp_path).find("org/tiny", None) is None
    mirror.go_on.set()
    hub.download("org/tiny", None, Store(tmp_path), quiet)


def test_gated_absent_and_unreachable_are_told_apart(mirror: Mirror, hub: Hub, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(Fatal, match="there is no model org/other"):
        hub.download("org/other", None, store, quiet)
    with pytest.raises(Fatal, match="has no revision v9"):
        hub.download("org/tiny", "v9", store, quiet)
    with pytest.raises(Fatal, match="is no name of a model"):
        hub.download("a/b/c", None, store, quiet)
    mirror.gated = True
    with pytest.raises(Fatal, match="is gated: accept its licence") as gated:
        hub.download("org/tiny", None, store, quiet)
    assert gated.value.exit_code == 78
    Hub(mirror.url, SecretStr("hf_read")).download("org/tiny", None, store, quiet)
    assert mirror.tokens == {"hf_read"}
    with pytest.raises(Unreachable):
        Hub("http://127.0.0.1:9", first_delay=0.01).download("org/tiny", None, store, quiet)


def test_too_little_space_is_said_before_anything_is_fetched(
    mirror: Mirror, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: argparse.Namespace(free=1 << 20))
    with pytest.raises(Fatal, match=r"needs 0\.0 GiB more and 0\.0 GiB are free"):
        hub.download("org/tiny", None, Store(tmp_path), quiet)
    assert mirror.served == 0


def llmctl(*words: str) -> int:
    parser = argparse.ArgumentParser()
    models.add_parsers(parser.add_subparsers())
    args = parser.parse_args(words)
    status: int = args.run(args)
    return status


def test_the_verbs(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("daemons.llmctl.models.Hub", lambda token: Hub(mirror.url, token))
    store, etc = str(tmp_path / "models"), tmp_path / "etc"
    (etc / "engines").mkdir(parents=True)
    (etc / "engines" / "a.yaml").write_text(
        "model: org/tiny\nserved_names: [t]\ngpus: []\nmetrics: {port: 0}\n"
    )
    where = ("--models-dir", store, "--config-dir", str(etc))
    assert llmctl("download", *where) == 0
    assert llmctl("download", "--engine", "a", *where) == 0
    assert "org/tiny is complete" in capsys.readouterr().out
    assert llmctl("models", "list", *where) == 0
    assert COMMIT[:12] in capsys.readouterr().out
    assert llmctl("models", "list", "--json", *where) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["model"], listed["revision"], listed["files"]) == ("org/tiny", COMMIT, 3)
    assert llmctl("models", "verify", *where) == 0
    weights = Path(store) / "org--tiny" / "model.safetensors"
    weights.write_bytes(WEIGHTS[:-1] + b"x")
    assert llmctl("models", "verify", "org/tiny", *where) == 1
    assert "model.safetensors was changed" in capsys.readouterr().out
    with pytest.raises(Fatal, match="is the model of the engine a"):
        llmctl("models", "remove", "org/tiny", *where)
    (etc / "engines" / "a.yaml").unlink()
    assert llmctl("models", "remove", "org/tiny", *where) == 0
    assert not weights.exists()
    with pytest.raises(Fatal, match="no engine is configured"):
        llmctl("download", *where)
    with pytest.raises(Fatal, match=r"org/x.*\n.*org/y"):
        llmctl("download", "org/x", "org/y", *where)


def test_several_models_at_once(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("daemons.llmctl.models.Hub", lambda token: Hub(mirror.url, token))
    mirror.go_on.clear()

    def release_both() -> None:
        wait_for(lambda: mirror.under_way == 2)
        mirror.go_on.set()

    releasing = threading.Thread(target=release_both)
    releasing.start()
    assert llmctl("download", "org/tiny", "org/twin", "--models-dir", str(tmp_path)) == 0
    releasing.join(60)
    assert mirror.at_once == 2
    said = capsys.readouterr().out
    assert "org/tiny is complete" in said
    assert "org/twin is complete" in said


def test_a_damaged_manifest_is_no_model(mirror: Mirror, hub: Hub, tmp_path: Path) -> None:
    store = Store(tmp_path)
    hub.download("org/tiny", None, store, quiet)
    manifest = tmp_path / "org--tiny" / MANIFEST
    assert json.loads(manifest.read_text())["revision"] == COMMIT
    manifest.write_text("{")
    assert store.find("org/tiny", None) is None
    assert store.models() == []


def safetensors(tensors: int) -> bytes:
    """A file of `tensors` tensors of 64 KiB."""
    size = 1 << 16
    header = {
        f"layer.{index}": {
            "dtype": "BF16",
            "shape": [size // 2],
            "data_offsets": [index * size, (index + 1) * size],
        }
        for index in range(tensors)
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(tensors * size)


CONFIG = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 512}


@pytest.mark.parametrize("tensors", [40, 1600])
def test_a_model_of_the_hub_is_planned_without_its_weights(mirror: Mirror, hub: Hub, tensors: int) -> None:
    # The header of 1600 tensors is longer than what the library asks for first.
    mirror.files["config.json"] = json.dumps(CONFIG).encode()
    mirror.files["model.safetensors"] = safetensors(tensors)
    mirror.files["model-2.safetensors"] = safetensors(1)
    shape, weights = peek(hub, "org/tiny", None)
    assert shape.hidden == 64
    assert weights == (tensors + 1) << 16
    assert mirror.served < 1 << 19
    assert all(asked.startswith("bytes=") for asked in mirror.ranges)


def test_older_formats_are_planned_by_their_size(mirror: Mirror, hub: Hub) -> None:
    mirror.files["config.json"] = json.dumps(CONFIG).encode()
    del mirror.files["model.safetensors"]
    _, weights = peek(hub, "org/tiny", None)
    assert weights == len(mirror.files["pytorch_model.bin"])
    assert mirror.served == 0


def test_what_cannot_be_planned_says_why(mirror: Mirror, hub: Hub) -> None:
    with pytest.raises(Fatal, match=r"config\.json of org/tiny describes no decoder-only transformer"):
        peek(hub, "org/tiny", None)
    mirror.files["config.json"] = json.dumps(CONFIG).encode()
    mirror.files["model.safetensors"] = b"<html>not a model at all</html>"
    with pytest.raises(Fatal, match=r"model\.safetensors is no safetensors file"):
        peek(hub, "org/tiny", None)
    del mirror.files["config.json"]
    with pytest.raises(Fatal, match=r"has no config\.json"):
        peek(hub, "org/tiny", None)
    with pytest.raises(Fatal, match="there is no model org/other"):
        peek(hub, "org/other", None)
    mirror.gated = True
    with pytest.raises(Fatal, match="is gated"):
        peek(hub, "org/tiny", None)


def test_llmctl_plan_asks_the_hub_once_nothing_is_downloaded(
    mirror: Mirror, hub: Hub, tmp_path: Path
) -> None:
    mirror.files["config.json"] = json.dumps(CONFIG).encode()
    mirror.files["model.safetensors"] = safetensors(40)
    command = [
        sys.executable,
        "-m",
        "daemons.llmctl",
        "plan",
        "org/tiny@main",
        "--gpus",
        "1",
        "--gpu-memory",
        "4",
    ]
    command += ["--json", "--models-dir", str(tmp_path)]

    def weights(endpoint: str) -> int:
        environment = os.environ | {"HF_ENDPOINT": endpoint}
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment, cwd=PROJECT
        )
        size: int = json.loads(done.stdout)[0]["weights_bytes"]
        return size

    assert weights(mirror.url) == 40 << 16
    assert mirror.served < 1 << 19
    hub.download("org/tiny", "main", Store(tmp_path), quiet)
    assert weights("http://127.0.0.1:9") == 40 << 16
