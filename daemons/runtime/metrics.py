"""The Prometheus endpoint that every daemon offers on an address of its own."""

import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from aiohttp import web
from prometheus_client import (
    CollectorRegistry,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder

from daemons.runtime.http import serving
from daemons.runtime.version import VERSION

Render = Callable[[Mapping[str, str]], tuple[bytes, Mapping[str, str]]]
"""Turns the headers of a scrape into an exposition and its headers, ``Content-Type`` among them."""


def new_registry() -> CollectorRegistry:
    """A registry with the metrics every daemon has: process, interpreter, version."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    build = Gauge("llm_build_info", "The running release; always 1", ["version"], registry=registry)
    build.labels(VERSION).set(1)
    return registry


def render_registry(registry: CollectorRegistry) -> Render:
    """A `Render` for `registry`, in the text format or OpenMetrics as the scraper prefers."""

    def render(headers: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
        encode, content_type = choose_encoder(headers.get("Accept", ""))
        return encode(registry), {"Content-Type": content_type}

    return render


def metrics_app(title: str, render: Render) -> web.Application:
    """An application that answers ``GET /metrics``, and ``GET /`` with a link to it."""

    async def metrics(request: web.Request) -> web.Response:
        body, headers = render(request.headers)
        return web.Response(body=body, headers=headers)

    async def index(_: web.Request) -> web.Response:
        page = f'<!doctype html><title>{title}</title><h1>{title}</h1><a href="/metrics">metrics</a>\n'
        return web.Response(text=page, content_type="text/html")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/", index)
    return app


def serve_metrics(title: str, render: Render, sock: socket.socket) -> AbstractAsyncContextManager[None]:
    """Serve `metrics_app` on `sock` within the returned context."""
    return serving(metrics_app(title, render), sock)
