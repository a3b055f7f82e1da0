"""The lab under a short load, once for all tests here."""

import pytest

from tests.integration.gpu_exporter.conftest import library

__all__ = ["library"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Make `make pictures` a run of the same lab, longer, whose pictures are kept."""
    parser.addoption("--pictures", metavar="FOLDER", help="draw every dashboard, after minutes of load")
    parser.addoption("--record", metavar="FOLDER", help="keep what each daemon answers to a scrape")
