"""Pages compressed in two pieces are gzip files like any other, whoever reads them."""

import gzip
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from daemons.gpu_exporter.packing import Packed, gzipped, pack
from daemons.gpu_exporter.page import Page
from daemons.gpu_exporter.settings import GpuExporterSettings
from daemons.gpu_exporter.snapshot import NvmlState, Snapshot


@given(st.binary(max_size=5000), st.binary(max_size=500))
def test_both_pieces_come_out(first: bytes, rest: bytes) -> None:
    assert gzip.decompress(gzipped(pack(first), rest)) == first + rest
    assert gzip.decompress(gzipped(Packed(), rest)) == rest


def test_gzip_takes_it_for_one_file() -> None:
    command = shutil.which("gzip")
    if command is None:
        pytest.skip("gzip is missing: the compressed page is read by Python's zlib alone")
    first, rest = b"gpu_data 1\n" * 10_000, b"gpu_age 2\n"
    done = subprocess.run([command, "-dc"], input=gzipped(pack(first), rest), capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (first + rest, b"")


@pytest.mark.parametrize("age", [0.5, 60.0])
def test_a_page_is_the_same_in_both_forms(age: float) -> None:
    page = Page(GpuExporterSettings(), CollectorRegistry(), clock=lambda: age)
    page.snapshot(Snapshot(state=NvmlState.OK, body=pack(b"gpu_data 1\n" * 1000)))
    plain, headers = page.render({"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in headers
    packed, headers = page.render({"Accept-Encoding": "br, gzip;q=0.8"})
    assert headers["Content-Encoding"] == "gzip"
    assert headers["Vary"] == "Accept-Encoding"
    assert len(packed) < len(plain)
    assert gzip.decompress(packed) == plain
    assert (b"gpu_data 1\n" in plain) == (age < 1)
