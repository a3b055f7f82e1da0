"""``control.sock``: the engine's state for gateways, and `llmctl drain`."""

from aiohttp import web

from daemons.engine.board import Board
from daemons.runtime.control import GatewayView, encode_report


def control_app(board: Board) -> web.Application:
    """``GET /state``, ``POST /drain`` (with an optional reason as the body) and ``POST /undrain``."""

    async def state(request: web.Request) -> web.Response:
        try:
            view = GatewayView.from_query(request.query)
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"malformed query: {error}\n") from None
        # The answer is made first: a gateway counts as told only once it was given the new state.
        answer = _report(board)
        if view is not None:
            board.heard(view)
        return answer

    async def drain(request: web.Request) -> web.Response:
        board.drain((await request.text()).strip()[:200] or "drained by an operator")
        return _report(board)

    async def undrain(_: web.Request) -> web.Response:
        board.undrain()
        return _report(board)

    app = web.Application(client_max_size=4096)
    app.router.add_get("/state", state)
    app.router.add_post("/drain", drain)
    app.router.add_post("/undrain", undrain)
    return app


def _report(board: Board) -> web.Response:
    return web.Response(body=encode_report(board.report()), content_type="application/json")
