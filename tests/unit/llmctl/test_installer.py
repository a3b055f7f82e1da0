"""pip's settings as uv's, uv's output as progress, failures as one line, programs to their end."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.llmctl.up.command import run_program
from daemons.llmctl.up.downloads import Downloads
from daemons.llmctl.up.failures import explain
from daemons.llmctl.up.pip_settings import to_uv
from daemons.runtime.errors import Fatal

from .fake_uv import FakeUv, Shown

LISTING = """\
:env:.find-links='/env/wheels'
:env:.disable-pip-version-check='1'
global.cert='/etc/ssl/company.pem'
global.extra-index-url='https://one/simple\\nhttps://two/simple'
global.find-links='/global/wheels'
global.index-url='https://global/simple'
install.index-url='https://user:secret@install/simple'
install.trusted-host='one two'
freeze.all='1'
"""


def test_settings_of_pip_become_settings_of_uv() -> None:
    assert to_uv(LISTING) == {
        "SSL_CERT_FILE": "/etc/ssl/company.pem",
        "UV_EXTRA_INDEX_URL": "https://one/simple https://two/simple",
        "UV_FIND_LINKS": "/env/wheels",
        "UV_DEFAULT_INDEX": "https://user:secret@install/simple",
        "UV_INSECURE_HOST": "one two",
    }


def test_several_wheel_folders_are_separated_as_uv_wants() -> None:
    assert to_uv("global.find-links='/a /b'") == {"UV_FIND_LINKS": "/a,/b"}


@given(st.text())
def test_no_listing_breaks_the_reader(text: str) -> None:
    assert all(isinstance(value, str) for value in to_uv(text).values())


@given(st.from_regex(r"https://[a-z]{1,9}(:[0-9]{2})?/[!-~]{0,9}", fullmatch=True))
def test_a_value_survives_pip_quoting(url: str) -> None:
    assert to_uv(f"global.index-url={url!r}") == {"UV_DEFAULT_INDEX": url}


def test_settings_reach_uv_by_environment_and_never_by_argument(tmp_path: Path) -> None:
    uv = FakeUv(pip_config=LISTING.splitlines())
    uv.installer(UV_FIND_LINKS="/own").install(tmp_path / "lock", (), Shown(), what="it")
    (environment,), (argv,) = uv.environments, uv.calls
    assert environment["UV_DEFAULT_INDEX"] == "https://user:secret@install/simple"
    assert environment["UV_FIND_LINKS"] == "/own"
    assert not any("secret" in word for word in argv)


def test_downloads_become_progress_in_mib() -> None:
    shown = Shown()
    downloads = Downloads(shown)
    for line in (
        "Resolved 150 packages in 498ms",
        "Downloading numba (3.5MiB)",
        "Downloading vllm (1.0GiB)",
        " Downloaded numba",
        "Downloading tiny (512.0KiB)",
        " Downloaded tiny",
        " Downloaded vllm",
        " Downloaded never-announced",
        "Prepared 150 packages in 7.66s",
        " + accelerate==1.15.0",
    ):
        downloads.hear(line)
    assert shown.phases == ["looking up packages", "downloading", "installing"]
    assert shown.steps == [(3.5, 1027.5), (4.0, 1028.0), (1028.0, 1028.0), (1028.0, 1028.0)]


@given(st.text())
def test_no_output_breaks_the_meter(text: str) -> None:
    Downloads(Shown()).hear(text)


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("  cause: Hash mismatch for `idna==3.20`", "is not what the lock names"),
        ("  cause: failed to create directory `/x`: Permission denied (os error 13)", "run as the owner"),
        ("  cause: tcp connect error: Connection refused (os error 111)\n  cause: dns error", "out of reach"),
        ("  cause: operation timed out", "out of reach"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("killed by SIGKILL", "free some memory"),
    ],
)
def test_known_failures_name_their_cure(said: str, cure: str) -> None:
    assert cure in explain(said.splitlines(), "install it")


def test_an_unknown_failure_gives_the_last_words() -> None:
    said = ["Traceback (most recent call last):", "  …", "KeyError: 'llama.block_count'", ""]
    assert explain(said, "convert it", "it") == "cannot convert it: it says: KeyError: 'llama.block_count'"


def test_keys_do_not_get_into_the_line() -> None:
    assert "sk-abcdefghijklmnop" not in explain(["error: Bearer sk-abcdefghijklmnop refused"], "install it")


def test_a_program_that_dies_in_silence_is_still_described(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="exit status 3"):
        FakeUv(installs=[(3, ())]).installer().install(tmp_path / "lock", (), Shown(), what="it")
    with pytest.raises(Fatal, match=r"free some memory.*killed by SIGKILL"):
        FakeUv(installs=[(-9, ())]).installer().install(tmp_path / "lock", (), Shown(), what="it")


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_real_program_is_heard_line_by_line() -> None:
    lines: list[str] = []
    code = "import os, sys; print('out', flush=True); os.write(2, b'\\xff err\\n'); sys.exit(5)"
    assert run_program(python(code), environment=os.environ, on_line=lines.append) == 5
    assert lines == ["out", "\ufffd err"]


def test_a_program_is_ended_when_its_listener_fails() -> None:
    """The wait in `run_program` would not return before the program has ended by itself."""
    pids: list[int] = []

    def fail(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_program(
            python("import os, time; print(os.getpid(), flush=True); time.sleep(3600)"),
            environment=os.environ,
            on_line=fail,
        )
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
