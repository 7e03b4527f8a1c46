"""Scraping: every target of every job is asked in its interval, at its own point of it.

A `Service` of a `LoopThread`: one task a target, so that a slow one delays no other. The points
are spread by a hash of job and target and stay the same over restarts, so that samples are evenly
spaced. Jobs may change (`reload`), and the files that name targets (`look`), while it runs. What an
answer means is `target.py`'s.
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
from siltstone.errors import ConfigError, ProtocolError, SiltstoneError
from siltstone.metrics.registry import value_test
from siltstone.metrics.syntax import selector
from siltstone.serve.discovery import LOOK_SECONDS, TargetFiles
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


Key = tuple[Any, ...]  # job, URL and labels: a target with the same is the same


class Scraper:
    """All jobs. `targets` are there from the beginning, asked from `start` to `stop`."""

    def __init__(self, jobs: Sequence[ScrapeSettings], sink: Sink, clock: Clock) -> None:
        self.clock = clock
        self.sink = sink
        self.jobs: Sequence[ScrapeSettings] = ()
        self.dropped: list[dict[str, str]] = []  # by rules: what they were discovered as
        self.scrapes = self.failures = 0
        self._files: dict[str, TargetFiles] = {}  # by job
        self._targets: dict[Key, Target] = {}
        self._clients: dict[str, httpx2.AsyncClient] = {}
        self._asking: dict[Key, _Asking] = {}
        self._looking: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._take(jobs, _files_of(jobs, {}))

    @property
    def targets(self) -> list[Target]:
        return list(self._targets.values())

    async def start(self) -> None:
        for job in self.jobs:
            self._clients[job.job_name] = client(job, job.scrape_timeout)
        self._ask_all()
        self._looking = asyncio.create_task(self._keep_looking())
        if self._targets:
            log.info("scraping %d targets", len(self._targets))

    async def stop(self) -> None:
        assert self._looking is not None
        tasks = [self._looking, *(one.task for one in self._asking.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in self._clients.values():
            await one.aclose()

    # Other targets --------------------------------------------------------------------------

    async def reload(self, jobs: Sequence[ScrapeSettings]) -> None:
        """From now on these jobs. Targets that stay as they are notice nothing. ConfigError:
        nothing has changed."""
        async with self._changing:
            known = {job.job_name: job for job in self.jobs}
            changed = [job for job in jobs if known.get(job.job_name) != job]
            fresh = {job.job_name: client(job, job.scrape_timeout) for job in changed}
            files = await asyncio.to_thread(_files_of, jobs, self._files)
            gone = known.keys() - {job.job_name for job in jobs}
            await self._change(jobs, files, fresh, gone)

    async def look(self) -> None:
        """See whether files name other targets now."""
        async with self._changing:
            if await asyncio.to_thread(self._look):
                await self._change(self.jobs, self._files, {}, ())

    def _look(self) -> bool:
        changed = [one.look() for one in self._files.values()]
        return any(changed)

    async def _keep_looking(self) -> None:
        while True:
            seconds = [one.look_seconds for one in self._files.values()]
            await asyncio.sleep(min(seconds, default=LOOK_SECONDS))
            try:
                await self.look()
            except Exception:
                log.exception("looking for targets")

    async def _change(
        self, jobs: Sequence[ScrapeSettings], files: Mapping[str, TargetFiles],
        fresh: Mapping[str, httpx2.AsyncClient], gone: Iterable[str],
    ) -> None:  # fmt: skip
        """`fresh`: clients of jobs with other settings than before; `gone`: jobs that are."""
        before = dict(self._targets)
        await asyncio.to_thread(self._take, jobs, files)
        ended = [key for key, one in before.items() if self._targets.get(key) is not one]
        await asyncio.gather(*(self._asking.pop(key).end() for key in ended if key in self._asking))
        now_ms = self.clock.now_ms()
        for key in ended:
            heir = self._targets.get(key)
            if heir is not None:
                heir.succeed(before[key])
                continue
            try:
                await asyncio.to_thread(before[key].end, now_ms)
            except SiltstoneError as error:
                log.warning("the series of %s do not end: %s", before[key].url, error)
        old = [self._clients.pop(name) for name in (*fresh, *gone) if name in self._clients]
        self._clients.update(fresh)
        self._ask_all()
        for one in old:
            await one.aclose()
        log.info("scraping %d targets", len(self._targets))

    def _take(self, jobs: Sequence[ScrapeSettings], files: Mapping[str, TargetFiles]) -> None:
        """Make `targets` those of these jobs; one that stays as it is is the same object."""
        targets: dict[Key, Target] = {}
        dropped = []
        for job in jobs:
            for group in (*job.groups, *files[job.job_name].groups):
                for address in group.targets:
                    try:
                        place = job.place_of(address, group.labels)
                    except ConfigError as error:  # of a file: those of settings are checked
                        log.warning("not a target of %s: %s", job.job_name, error)
                        continue
                    if place is None:
                        dropped.append(job.discovered(address, group.labels))
                        continue
                    key = (job.job_name, place.url, *sorted(place.labels.items()))
                    known = self._targets.get(key)
                    if known is not None and known.is_of(job, address, group.labels):
                        targets.setdefault(key, known)
                    elif key not in targets:  # rules may make one of two
                        targets[key] = Target(job, address, self.sink, group.labels)
        self.jobs, self._files = jobs, dict(files)
        self._targets, self.dropped = targets, dropped

    # Asking -------------------------------------------------------------------------------

    def _ask_all(self) -> None:
        for key, target in self._targets.items():
            if key not in self._asking:
                self._asking[key] = _Asking(self, target)

    async def keep_asking(self, target: Target, busy: asyncio.Lock) -> None:
        """In each interval; `busy` is held meanwhile."""
        interval_ms = round(target.settings.scrape_interval * 1000)
        name = f"{target.settings.job_name} {target.url}"
        offset_ms = zlib.crc32(name.encode()) % interval_ms
        last = 0
        while True:
            now = self.clock.now_ms()
            due = next_tick(now, interval_ms, offset_ms, last)
            await asyncio.sleep((due - now) / 1000)
            now, last = self.clock.now_ms(), due
            async with busy:
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
        return [
            Route("/api/v1/targets", answered(self._about), methods=["GET"]),
            Route("/api/v1/targets/metadata", answered(self._metadata), methods=["GET"]),
        ]

    async def _about(self, request: Request) -> Response:
        state = first(await parameters(request), "state").lower()
        active = [_about(target) for target in self.targets] if state != "dropped" else []
        gone = [{"discoveredLabels": one} for one in self.dropped] if state != "active" else []
        return success({"activeTargets": active, "droppedTargets": gone})

    async def _metadata(self, request: Request) -> Response:
        """What targets tell of their metrics. `limit` ends it after a target, as in Prometheus."""
        found = await parameters(request)
        match, metric = first(found, "match_target"), first(found, "metric")
        tests = [
            (one.name, value_test(one.op, one.value))
            for one in (selector(match, "match_target") if match else ())
        ]
        try:
            limit = int(first(found, "limit") or -1)
        except ValueError:
            raise ProtocolError("limit must be a number") from None
        told: list[dict[str, Any]] = []
        for target in self.targets:
            if 0 <= limit <= len(told):
                break
            if all(test(target.labels.get(name, "")) for name, test in tests):
                told += target.about_metrics(metric)
        return success(told)

    def samples(self) -> Iterable[Sample]:
        """What the server tells of itself about it."""
        if not self.jobs:
            return
        yield Sample("siltstone_scrapes_total", {}, self.scrapes)
        yield Sample("siltstone_scrapes_failed_total", {}, self.failures)
        failures = sum(one.failures for one in self._files.values())
        yield Sample("siltstone_target_files_failed_total", {}, failures)
        for health in ("up", "down", "unknown"):
            count = sum(target.health == health for target in self.targets)
            yield Sample("siltstone_scrape_targets", {"health": health}, count)


class _Asking:
    """The task that asks one target."""

    def __init__(self, scraper: Scraper, target: Target) -> None:
        self._busy = asyncio.Lock()
        self.task = asyncio.create_task(scraper.keep_asking(target, self._busy))

    async def end(self) -> None:
        """Returns when nothing of it runs; what it has begun is finished first."""
        async with self._busy:
            self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def _files_of(
    jobs: Sequence[ScrapeSettings], known: Mapping[str, TargetFiles]
) -> dict[str, TargetFiles]:
    """Of each job, looked at. What files said that cannot be read now is still `known`."""
    found = {}
    for job in jobs:
        one = known.get(job.job_name)
        if one is None or one.configs != job.file_sd_configs:
            one = TargetFiles(job.file_sd_configs)
        one.look()
        found[job.job_name] = one
    return found


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
