"""The dashboard's files, from package data: the page at `/`, what it loads below `/static`.

The page is drawn by the browser from /api/v1 (web/*.js); nothing is computed here. The chart
library, uPlot, is brought by tools/web.py when siltstone is built; without it the page shows
numbers and tables.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

WEB = Path(__file__).parent / "web"


def routes() -> list[BaseRoute]:
    return [
        Route("/", page, methods=["GET"]),
        Mount("/static", StaticFiles(directory=WEB)),
    ]


async def page(request: Request) -> Response:
    return FileResponse(WEB / "index.html", media_type="text/html")
