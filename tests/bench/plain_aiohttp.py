"""The streaming proxy one writes in an afternoon, for comparison. Arguments: PORT UPSTREAM_PORT."""

import sys
from collections.abc import AsyncIterator

import aiohttp
import uvloop
from aiohttp import web

SESSION = web.AppKey("session", aiohttp.ClientSession)


async def proxy(request: web.Request) -> web.StreamResponse:
    """Forward one request, piece by piece."""
    url = f"http://127.0.0.1:{sys.argv[2]}{request.path}"
    body = await request.read()
    async with request.app[SESSION].post(
        url, data=body, headers={"Content-Type": "application/json"}
    ) as upstream:
        answer = web.StreamResponse(
            status=upstream.status, headers={"Content-Type": upstream.headers["Content-Type"]}
        )
        await answer.prepare(request)
        async for piece in upstream.content.iter_any():
            await answer.write(piece)
        await answer.write_eof()
        return answer


async def session(app: web.Application) -> AsyncIterator[None]:
    """One client for all requests."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as made:
        app[SESSION] = made
        yield


def main() -> None:
    """Serve until interrupted."""
    app = web.Application()
    app.cleanup_ctx.append(session)
    app.router.add_post("/v1/chat/completions", proxy)
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)


if __name__ == "__main__":
    main()
