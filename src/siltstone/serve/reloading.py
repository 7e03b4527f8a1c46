"""Reading the settings again while the server runs, as Prometheus does: at SIGHUP, and at POST
/-/reload where `http.lifecycle` allows it.

What changes is what is scraped, and with which rules. Settings of which some make no sense change
nothing and are told; those of other sections count after a restart, which is told as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from siltstone.clock import Clock
from siltstone.errors import EnvironmentFailure, ProtocolError, SiltstoneError
from siltstone.serve.exposition import Sample
from siltstone.serve.loop import LoopThread
from siltstone.serve.parameters import own_site
from siltstone.serve.scraping import Scraper

log = logging.getLogger("siltstone.serve")

Load = Callable[[], Mapping[str, Any]]
RELOADED: Final = "scrape"  # the section


class Reloader:
    """`load` reads all settings anew, or raises what is wrong with them; None: they are nowhere
    that could be read again. `reload` may be called in any thread but the loop's."""

    def __init__(
        self, load: Load | None, sections: Mapping[str, Any], scraper: Scraper, loop: LoopThread,
        clock: Clock, *, enabled: bool,
    ) -> None:  # fmt: skip
        self.load = load
        self.sections = sections
        self.scraper = scraper
        self.loop = loop
        self.clock = clock
        self.enabled = enabled
        self.succeeded = True
        self.succeeded_ms = clock.now_ms()
        self.reloads = 0

    def request(self) -> None:
        """Begin to, and return; for signal handlers."""
        self.loop.begin(self._told())

    def reload(self) -> None:
        """Returns when it is done; raises what is wrong, and then nothing has changed."""
        self.loop.call(self._reload())

    async def _told(self) -> None:
        try:
            await self._reload()
        except Exception as error:
            log.error("the settings stay as they were: %s", error)

    async def _reload(self) -> None:
        self.reloads += 1
        self.succeeded = False
        if self.load is None:
            raise EnvironmentFailure(None, "there is no settings file to read again")
        sections = await asyncio.to_thread(self.load)
        await self.scraper.reload(sections[RELOADED])
        for name, settings in sections.items():
            if name != RELOADED and settings != self.sections[name]:
                log.warning("what changed in [%s] counts after a restart", name)
        self.succeeded, self.succeeded_ms = True, self.clock.now_ms()
        log.info("the settings are read again")

    # Over HTTP ------------------------------------------------------------------------------

    def routes(self) -> list[Route]:
        return [Route("/-/reload", self._asked, methods=["POST", "PUT"])]

    async def _asked(self, request: Request) -> Response:
        if not self.enabled:
            text = "Lifecycle API is not enabled: set http.lifecycle = true to have it.\n"
            return PlainTextResponse(text, 403)
        try:
            return await own_site(self._answer)(request)
        except ProtocolError as error:
            return PlainTextResponse(f"{error}\n", 403)

    async def _answer(self, request: Request) -> Response:
        try:
            await asyncio.to_thread(self.reload)
        except SiltstoneError as error:
            log.error("the settings stay as they were: %s", error)
            return PlainTextResponse(f"failed to reload config: {error}\n", 500)
        return PlainTextResponse("")

    def samples(self) -> Iterable[Sample]:
        """What the server tells of itself about it."""
        yield Sample("siltstone_reloads_total", {}, self.reloads)
        yield Sample("siltstone_config_last_reload_successful", {}, int(self.succeeded))
        yield Sample(
            "siltstone_config_last_reload_success_timestamp_seconds", {}, self.succeeded_ms / 1000
        )
