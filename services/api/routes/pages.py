"""The dashboard and the API reference, with their scripts and styles, all served from this package."""

from functools import cache
from http import HTTPStatus
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, HTTPException, Response

router = APIRouter(include_in_schema=False)

#: The only files that are served. A client can choose only a name of this table.
ASSETS = {
    "app.js": "text/javascript",
    "alerts.js": "text/javascript",
    "charts.js": "text/javascript",
    "dom.js": "text/javascript",
    "format.js": "text/javascript",
    "live.js": "text/javascript",
    "operator.js": "text/javascript",
    "style.css": "text/css",
    "docs.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "uplot.js": "text/javascript",
    "uplot.css": "text/css",
}

_VENDORED = {"uplot.js": "uPlot.iife.min.js", "uplot.css": "uPlot.min.css"}


@router.get("/")
def dashboard() -> Response:
    """The dashboard."""
    return Response(_read("index.html"), media_type="text/html", headers={"Cache-Control": "no-cache"})


@router.get("/docs")
def reference() -> Response:
    """The reference of every route; the browser builds it from /openapi.json."""
    return Response(_read("docs.html"), media_type="text/html", headers={"Cache-Control": "no-cache"})


@router.get("/assets/{name}")
def asset(name: str) -> Response:
    """A script or style of the pages."""
    if name not in ASSETS:
        raise HTTPException(HTTPStatus.NOT_FOUND, "there is no such file")
    return Response(_read(name), media_type=ASSETS[name], headers={"Cache-Control": "no-cache"})


@cache
def _read(name: str) -> bytes:
    folder: Traversable = files("services.api") / "dashboard"
    path = folder / "vendor" / _VENDORED[name] if name in _VENDORED else folder / name
    return path.read_bytes()
