"""Scraping: every target of every job is asked in its interval, at its own point of it.

A `Service` of a `LoopThread`: one task a target, so that a slow one delays no other. The points
are spread by a hash of job and target and stay the same over restarts, so that samples are evenly
spaced. What an answer means is `target.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import httpx2
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from siltstone.clock import Clock
from siltstone.errors import SiltstoneError
from siltstone.serve.exposition import Sample
from siltstone.serve.parameters import first, parameters, time_text
from siltstone.serve.peers import client, what_happened
from siltstone.serve.prometheus import answered, success
from siltstone.serve.scrape_settings import ScrapeSettings
from siltstone.serve.sink import Sink
from siltstone.serve.target import ScrapeFailed, Target

log = logging.getLogger("siltstone.serve")

ACCEPT: Final = (
    "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
# A scrape that begins this little late has the time it was due: evenly spaced times compress to
# nearly nothing. As Prometheus, which allows 2 ms.
LATE_MS_MAX: Final = 2
NEVER: Final = "0001-01-01T00:00:00Z"


class Scraper:
    """All jobs. `targets` are there from the beginning, asked from `start` to `stop`."""

    def __init__(self, jobs: Sequence[ScrapeSettings], sink: Sink, clock: Clock) -> None:
        self.clock = clock
        self.jobs = jobs
        self.targets: list[Target] = []
        self.dropped: list[dict[str, str]] = []  # by rules: what they were discovered as
        for job in jobs:
            seen = set()  # rules may make one of two
            for address in job.targets:
                place = job.place_of(address)
                if place is None:
                    self.dropped.append(job.discovered(address))
                elif (key := (place.url, *sorted(place.labels.items()))) not in seen:
                    seen.add(key)
                    self.targets.append(Target(job, address, sink))
        self.scrapes = self.failures = 0
        self._clients: dict[str, httpx2.AsyncClient] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        for job in self.jobs:
            self._clients[job.job_name] = client(job, job.scrape_timeout)
        self._tasks = [asyncio.create_task(self._keep_asking(target)) for target in self.targets]
        if self.targets:
            log.info("scraping %d targets", len(self.targets))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in self._clients.values():
            await one.aclose()

    # Asking -------------------------------------------------------------------------------

    async def _keep_asking(self, target: Target) -> None:
        interval_ms = round(target.settings.scrape_interval * 1000)
        name = f"{target.settings.job_name} {target.url}"
        offset_ms = zlib.crc32(name.encode()) % interval_ms
        last = 0
        while True:
            now = self.clock.now_ms()
            due = next_tick(now, interval_ms, offset_ms, last)
            await asyncio.sleep((due - now) / 1000)
            now, last = self.clock.now_ms(), due
            try:
                await self.scrape(target, due if 0 <= now - due <= LATE_MS_MAX else now)
            except SiltstoneError as error:
                # ours (a full disk), not the target's: the next scrape may succeed
                log.warning("scraping %s: %s", target.url, error)
            except Exception:
                log.exception("scraping %s", target.url)

    async def scrape(self, target: Target, now_ms: int) -> None:
        """Ask one target once, and store what it says as of `now_ms`."""
        began = self.clock.monotonic_ns()
        error: ScrapeFailed | None = None
        scraped = added = 0
        try:
            kind, body = await self._ask(target)
        except ScrapeFailed as failed:
            error = failed
            await asyncio.to_thread(target.lost, now_ms)
        else:
            openmetrics = kind.startswith("application/openmetrics-text")
            scraped, added, error = await asyncio.to_thread(
                target.absorb, body, now_ms, openmetrics=openmetrics
            )
        seconds = (self.clock.monotonic_ns() - began) / 1e9
        self.scrapes += 1
        if error is not None:
            self.failures += 1
            if target.health != "down":
                log.warning("scraping %s fails: %s", target.url, error)
        await asyncio.to_thread(target.report, now_ms, seconds, scraped, added, error)

    async def _ask(self, target: Target) -> tuple[str, bytes]:
        """Content type and body; ScrapeFailed says why there is none."""
        settings = target.settings
        try:
            async with asyncio.timeout(settings.scrape_timeout):
                return await self._body(target)
        except TimeoutError:
            raise ScrapeFailed(
                f"no whole answer within scrape_timeout ({settings.scrape_timeout:g} s)"
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            if isinstance(error, ScrapeFailed):
                raise
            raise ScrapeFailed(what_happened(error)) from None

    async def _body(self, target: Target) -> tuple[str, bytes]:
        settings = target.settings
        headers = {
            "Accept": ACCEPT,
            "Accept-Encoding": "gzip",
            "X-Prometheus-Scrape-Timeout-Seconds": f"{settings.scrape_timeout:g}",
        }
        one = self._clients[settings.job_name]
        async with one.stream(
            "GET", target.url, headers=headers, follow_redirects=True
        ) as response:
            if response.status_code != 200:
                raise ScrapeFailed(
                    f"the target answered {response.status_code} {response.reason_phrase}"
                )
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > settings.body_size_limit:
                    raise ScrapeFailed(f"an answer longer than {settings.body_size_limit} bytes")
            return response.headers.get("content-type", ""), bytes(body)

    # Telling ------------------------------------------------------------------------------

    def routes(self) -> list[Route]:
        return [Route("/api/v1/targets", answered(self._about), methods=["GET"])]

    async def _about(self, request: Request) -> Response:
        state = first(await parameters(request), "state").lower()
        active = [_about(target) for target in self.targets] if state != "dropped" else []
        gone = [{"discoveredLabels": one} for one in self.dropped] if state != "active" else []
        return success({"activeTargets": active, "droppedTargets": gone})

    def samples(self) -> Iterable[Sample]:
        """What the server tells of itself about it."""
        if not self.targets:
            return
        yield Sample("siltstone_scrapes_total", {}, self.scrapes)
        yield Sample("siltstone_scrapes_failed_total", {}, self.failures)
        for health in ("up", "down", "unknown"):
            count = sum(target.health == health for target in self.targets)
            yield Sample("siltstone_scrape_targets", {"health": health}, count)


def next_tick(now_ms: int, interval_ms: int, offset_ms: int, last_ms: int) -> int:
    """The first moment after `now_ms`, and after `last_ms` unless the clock went back, that lies
    at `offset_ms` in its interval."""
    due = now_ms - (now_ms - offset_ms) % interval_ms + interval_ms
    if due <= last_ms < now_ms + interval_ms:
        due = last_ms + interval_ms
    return due


def _about(target: Target) -> Mapping[str, Any]:
    last = time_text(target.last_ms) if target.last_ms else NEVER
    return {**target.about(), "lastScrape": last}
