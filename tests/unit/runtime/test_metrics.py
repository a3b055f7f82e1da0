"""The metrics endpoint, and the engine control types."""

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.runtime.control import EngineReport, EngineState, GatewayView, decode_report, encode_report
from daemons.runtime.metrics import new_registry, render_registry, serve_metrics
from daemons.runtime.sockets import Address, listen_tcp, port_of


async def test_metrics_are_served_in_the_form_the_scraper_asks_for() -> None:
    sock = listen_tcp(Address(port=0))
    url = f"http://127.0.0.1:{port_of(sock)}"
    async with (
        serve_metrics("example", render_registry(new_registry()), sock),
        aiohttp.ClientSession() as http,
    ):
        async with http.get(f"{url}/metrics") as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            assert "llm_build_info{" in await answer.text()
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        async with http.get(f"{url}/metrics", headers=accept) as answer:
            assert (await answer.text()).endswith("# EOF\n")
        async with http.get(url) as answer:
            assert "/metrics" in await answer.text()
        async with http.get(f"{url}/nothing") as answer:
            assert answer.status == 404


def test_a_report_survives_the_wire() -> None:
    report = EngineReport(state=EngineState.STARTING, phase="loading weights", generation=2, gpus=("GPU-1",))
    assert decode_report(encode_report(report)) == report


@given(st.binary())
def test_bytes_that_are_no_report_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an engine report"):
        decode_report(data)


def test_a_gateway_view_survives_the_query() -> None:
    view = GatewayView(gateway="host-1", in_flight=3, oldest_silence=1.25)
    assert GatewayView.from_query(view.to_query()) == view
    assert GatewayView.from_query({}) is None
    with pytest.raises(ValueError, match="invalid literal"):
        GatewayView.from_query({"gateway": "g", "in_flight": "many"})
