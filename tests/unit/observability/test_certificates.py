"""The script that tells the node exporter when certificates end."""

import datetime as dt
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "systemd" / "certificates"
DAYS = 30

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate that ends in `DAYS` days."""
    path = tmp_path / "tls.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    make += ["-days", str(DAYS), "-subj", "/CN=x", "-keyout", str(tmp_path / "key"), "-out", str(path)]
    subprocess.run(make, check=True, capture_output=True)
    return path


def test_each_certificate_has_its_end_and_a_broken_one_hides_no_other(
    certificate: Path, tmp_path: Path
) -> None:
    out, broken = tmp_path / "out.prom", tmp_path / "broken.pem"
    broken.write_text("no certificate")
    subprocess.run([SCRIPT, out, broken, certificate, tmp_path / "missing.pem"], check=True)
    found = re.findall(
        r'^llm_certificate_expiry_timestamp_seconds\{file="(.*)"\} (\d+)$', out.read_text(), re.MULTILINE
    )
    assert [file for file, _ in found] == [str(certificate)]
    left = int(found[0][1]) - dt.datetime.now(dt.UTC).timestamp()
    assert abs(left - DAYS * 86400) < 3600
    if shutil.which("promtool"):
        subprocess.run(["promtool", "check", "metrics"], input=out.read_bytes(), check=True)
