"""The page and its server: GET / is the page, POST /draw draws by the JSON of its form."""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

import srrl.demo
import srrl.report
from srrl.config import cut
from srrl.demo.answers import Answer, Painter
from srrl.demo.desk import Desk
from srrl.errors import UserError
from srrl.prompts import evenly

FEW = 4  # examples outside of the fold
LOOK_S = 0.5  # between looks whether who asked is still there
TEMPLATES = [Path(str(room.__file__)).parent / "templates" for room in (srrl.demo, srrl.report)]
# The page runs and loads nothing but what is in it, and speaks to this server alone.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data: blob:; base-uri 'none'; form-action 'none'"
)


def application(desk: Desk, hosts: Sequence[str]) -> Starlette:
    """The server of a desk's page; hosts: names by which it may be called, against pages elsewhere
    whose name turns into this machine's address."""
    page = rendered(desk.painter)

    async def show(_: Request) -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    async def draw(request: Request) -> Response:
        # Another site's page can send a form here, but no JSON without asking first.
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise UserError("expected the content type application/json")
        try:
            given = json.loads(await request.body())
        except (ValueError, RecursionError):
            raise UserError("expected a JSON object with the form's values") from None
        answer = await waited(request, desk.ask(given))
        return JSONResponse(answer.as_json()) if answer else Response(status_code=204)

    return Starlette(
        routes=[Route("/", show), Route("/draw", draw, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, list(hosts), www_redirect=False)],
        exception_handlers={UserError: refused, Exception: failed},
    )


def rendered(painter: Painter) -> str:
    """The page of a painter."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    some = list(dict.fromkeys(evenly(painter.examples, FEW)))
    return environment.get_template("demo.html").render(painter=painter, some=some)


async def waited(request: Request, future: "Future[Answer]") -> Answer | None:
    """The answer when it comes; None where who asked has left, for whom nothing is begun then."""
    waiting = asyncio.wrap_future(future)
    while not waiting.done():
        await asyncio.wait([waiting], timeout=LOOK_S)
        if await request.is_disconnected():
            waiting.cancel()
            return None
    return waiting.result()


async def refused(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": " ".join(str(error).split())}, 400)


async def failed(_: Request, error: Exception) -> JSONResponse:
    """What nobody foresaw; the server writes its traceback."""
    what = cut(" ".join(f"{type(error).__name__}: {error}".split()))
    return JSONResponse(
        {"error": f"drawing failed ({what}): the server's terminal says where"}, 500
    )
