"""The server behind `hsal play`: the replay page with a drawing area above it, and one address that a drawing or an image is sent to.

It is a web server on the user's own machine, so it answers only what comes from there: it listens on 127.0.0.1, takes no other name for
itself (or a page elsewhere could reach it by a name that it makes point here), and no request that another page makes.
"""

from __future__ import annotations

import dataclasses
import html
import io
import re
import socket
import threading
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from hsal_cli.errors import FileError, UsageError
from hsal_cli.pictures.replay import document_of, page_of
from hsal_cli.play.canvas import PEN, SIDE, render
from hsal_cli.typed import Odd, checked, parsed
from hsal_cli.vision.images import read_image

if TYPE_CHECKING:
    from starlette.requests import Request

    from hsal_cli.models.model import Model

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")  # what the machine calls itself
LARGEST = 20_000_000  # bytes of a request
MOST_POINTS = 20_000  # of a drawing
FARTHEST = 10.0 * SIDE  # px, from the image's edge, that a point may lie
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
ENDS_WITHIN_S = 3  # after Ctrl-C, whatever a browser still holds open


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What the page sends: `strokes`, each the (x, y) of the pen's path, px of the image of `canvas.SIDE` px."""

    strokes: list[list[tuple[float, float]]]

    def __post_init__(self) -> None:
        if sum(map(len, self.strokes)) > MOST_POINTS:
            raise UsageError(f"a drawing has more than {MOST_POINTS:,} points", "clear it")
        if any(abs(at) > FARTHEST for stroke in self.strokes for point in stroke for at in point):
            raise UsageError(f"a point lies more than {FARTHEST:,.0f} px off", "clear it")


def make_app(model: Model) -> Starlette:
    """The application.

    Args:
        model: what looks, at one image at a time.
    """
    place = model.loaded.checkpoint.path
    page, alone = _page(place.parents[1].name if place.parent.name == "checkpoints" else place.name), threading.Lock()

    def seen(body: bytes, kind: str, called: str) -> dict[str, Any]:
        if kind == "application/json":
            picture: Any = render(checked(parsed(body), Drawing).strokes)
        else:
            picture = read_image(Path(called), io.BytesIO(body))
        with alone:
            look = model(picture)
        return document_of(dataclasses.replace(look, name=called))

    async def show(request: Request) -> Response:
        return HTMLResponse(page, headers=HEADERS)

    async def look(request: Request) -> Response:
        origin = request.headers.get("origin")
        if origin is not None and origin != f"http://{request.headers['host']}":
            return _refusal(403, "another page than that of hsal play asked")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > LARGEST:
                return _refusal(413, f"more than {LARGEST // 1_000_000} MB: take a smaller image")
        kind = request.headers.get("content-type", "").partition(";")[0]
        called = request.query_params.get("name", "")[:200] or "image"
        try:
            return JSONResponse(await run_in_threadpool(seen, bytes(body), kind, called), headers=HEADERS)
        except Odd as odd:
            return _refusal(400, f"the drawing {odd}")
        except FileError as error:
            return _refusal(400, error.message)

    routes = [Route("/", show), Route("/look", look, methods=["POST"])]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=NAMES, www_redirect=False)])


def _refusal(status: int, why: str) -> Response:
    return JSONResponse({"error": why}, status, HEADERS)


def _page(name: str) -> str:
    text = files("hsal_cli.play").joinpath("page.html").read_text(encoding="utf-8")
    for place, value in (("MODEL", html.escape(name)), ("SIDE", f"{SIDE:g}"), ("PEN", f"{PEN:g}")):
        text = text.replace(f"@{place}@", value)
    parts = re.fullmatch(r"(.*)<style>(.*)</style>(.*)<script>(.*)</script>\s*", text, re.DOTALL)
    assert parts is not None
    return page_of([], "hsal play", parts[1], parts[2], parts[4], "'self'")


def listen(port: int) -> socket.socket:
    """Takes a port of this machine; a browser may call it from then on, and is answered once `serve` runs.

    Args:
        port: 0 takes any that is free.

    Raises:
        UsageError: it is taken, or may not be had.
    """
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise UsageError(f"port {port} cannot be had: {error.strerror}", "take any that is free: hsal play --port 0") from error


def serve(app: Starlette, listening: socket.socket) -> None:
    """Answers until a signal comes, which is raised again once all is closed."""
    config = uvicorn.Config(
        app, lifespan="off", log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=ENDS_WITHIN_S
    )
    uvicorn.Server(config).run(sockets=[listening])
