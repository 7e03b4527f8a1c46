"""What senders of Influx' line protocol ask before they write: whether somebody is there, and for a
database.

Telegraf's `outputs.influxdb` sends CREATE DATABASE when it starts and goes on without an answer of
1.x (InfluxData: "InfluxDB 1.8 API reference", /ping and /query). There are no databases here: `db`
of `/write` becomes a label. Nothing else of InfluxQL is answered; the error says where to ask.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from siltstone.errors import PeerError
from siltstone.serve.parameters import first, parameters
from siltstone.serve.prometheus import JSON

VERSION: Final = "1.8.10"  # of the API that is spoken
HEADERS: Final = {"X-Influxdb-Build": "siltstone", "X-Influxdb-Version": VERSION}
_CREATE: Final = re.compile(r"\s*create\s+database\s+\S", re.IGNORECASE)


def routes() -> list[Route]:
    return [
        Route("/ping", _ping, methods=["GET"]),  # and HEAD
        Route("/query", _query, methods=["GET", "POST"]),
    ]


async def _ping(request: Request) -> Response:
    if (await parameters(request)).get("verbose", ["false"])[0] in ("false", "0", ""):
        return Response(status_code=204, headers=HEADERS)
    return _answer({"version": VERSION})


async def _query(request: Request) -> Response:
    try:
        text = first(await parameters(request), "q")
    except PeerError as error:
        return _answer({"error": str(error)}, 400)
    if not text.strip():
        return _answer({"error": 'missing required parameter "q"'}, 400)
    if _CREATE.match(text):
        return _answer({"results": [{"statement_id": 0}]})
    return _answer({"error": "InfluxQL is not spoken here: ask in PromQL, at /api/v1/query"}, 400)


def _answer(data: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(data), status, HEADERS, JSON)
