"""The sample site: a plant nursery with a static page, a page drawn by a script, a five-page catalogue, and a form."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from string import Template

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

PER_PAGE = 8
SITE = files("cplane.demo") / "site"
NAV = {"/": "Home", "/catalogue/1": "Catalogue", "/greenhouse": "Greenhouse", "/order": "Order"}
HEADINGS = (
    "Plants for every window",
    "More plants, less care",
    "Plants that wait for you",
    "Plants with patience",
    "The last eight",
)


@dataclass(frozen=True, slots=True)
class Plant:
    """One item of the catalogue. `tint`, `pot` and `wash` are the colours of its drawing."""

    name: str
    latin: str
    shape: str
    price: str
    light: str
    tint: str
    pot: str
    wash: str


@cache
def catalogue() -> tuple[Plant, ...]:
    """Return all plants."""
    return tuple(Plant(**item) for item in json.loads(_text("catalogue.json")))


def catalogue_pages() -> int:
    """Return the number of pages of the catalogue."""
    return -(-len(catalogue()) // PER_PAGE)


def create_site() -> Starlette:
    """Return the site as an ASGI application."""
    site = Starlette(
        routes=[
            Route("/", _home),
            Route("/catalogue/{page:int}", _catalogue),
            Route("/greenhouse", _greenhouse),
            Route("/order", _order),
            Route("/thanks", _thanks),
            Route("/style.css", _asset("style.css", "text/css")),
            Route("/greenhouse.js", _asset("greenhouse.js", "text/javascript")),
            Route("/greenhouse.json", _asset("greenhouse.json", "application/json")),
            Route("/catalogue.json", _items),
        ]
    )
    site.state.stopping = asyncio.Event()  # set by cplane.web.open_server
    return site


async def _home(request: Request) -> Response:
    return _page(request, "House plants that forgive you", _text("home.html"))


async def _greenhouse(request: Request) -> Response:
    return _page(request, "The greenhouse today", _text("greenhouse.html"))


async def _catalogue(request: Request) -> Response:
    page = int(request.path_params["page"])
    if not 1 <= page <= catalogue_pages():
        raise HTTPException(404)
    first = (page - 1) * PER_PAGE
    cards = "".join(
        _card(number, plant) for number, plant in enumerate(catalogue()[first : first + PER_PAGE], first + 1)
    )
    links = "".join(
        f"<b>{number}</b>" if number == page else f'<a href="/catalogue/{number}">{number}</a>'
        for number in range(1, catalogue_pages() + 1)
    )
    values = {"page": page, "pages": catalogue_pages(), "heading": HEADINGS[page - 1], "cards": cards, "links": links}
    return _page(request, f"Catalogue, page {page}", Template(_text("catalogue.html")).substitute(values))


async def _order(request: Request) -> Response:
    options = "".join(f"<option>{escape(plant.name)}</option>" for plant in catalogue())
    return _page(request, "Order", Template(_text("order.html")).substitute(options=options))


async def _thanks(request: Request) -> Response:
    values = {name: escape(request.query_params.get(name) or "stranger") for name in ("name", "plant")}
    return _page(request, "Thank you", Template(_text("thanks.html")).substitute(values))


async def _items(_: Request) -> Response:
    return JSONResponse([{"name": plant.name, "price": plant.price} for plant in catalogue()])


def _asset(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def respond(_: Request) -> Response:
        return Response(_text(name), media_type=media_type)

    return respond


def _page(request: Request, title: str, main: str) -> HTMLResponse:
    here = "/catalogue/1" if request.url.path.startswith("/catalogue/") else request.url.path
    nav = "".join(f'<a href="{path}"{" aria-current" * (path == here)}>{name}</a>' for path, name in NAV.items())
    values = {"title": title, "description": title, "nav": nav, "main": main}
    return HTMLResponse(Template(_text("base.html")).substitute(values))


def _card(number: int, plant: Plant) -> str:
    values = {name: escape(str(getattr(plant, name))) for name in Plant.__dataclass_fields__}
    return Template(_text("card.html")).substitute(values, number=number)


@cache
def _text(name: str) -> str:
    return (SITE / name).read_text(encoding="utf-8")
