"""remote_write to another server: every sample that comes in is queued on disk, and sent.

`take` packs and queues, in the thread of whoever brings samples. One task sends, the oldest first,
one request at a time, so that samples arrive in order. A `Service` of a `LoopThread`.

    answer                      then
    2xx                         sent
    5xx, 429, none at all       sent again, after min_backoff, twice that, ... up to max_backoff
                                (each shortened by chance), or when a Retry-After says, 5 minutes
                                at most
    anything else               dropped and counted: it would be refused again (3xx and 4xx)

Protocol: prometheus.io, "Remote-Write 1.0".
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import cramjam
import httpx2

from siltstone.clock import SYSTEM_RANDOM, Clock, Random
from siltstone.errors import SiltstoneError
from siltstone.serve.exposition import Sample
from siltstone.serve.forward_settings import ForwardSettings
from siltstone.serve.outbox import Outbox, Taken
from siltstone.serve.peers import client, what_happened
from siltstone.serve.write_request import Packer

log = logging.getLogger("siltstone.serve")

PACKED_SAMPLES_MAX: Final = 10_000  # of a message in the queue
REQUEST_SIZE_MAX: Final = 16 << 20  # before packing: receivers allow 32 MiB and more
RETRY_AFTER_SECONDS_MAX: Final = 300.0
STOP_SECONDS: Final = 2.0  # for the request under way; what is not answered is sent again later
HEADERS: Final = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}

LabelsOf = Callable[[int], Mapping[str, str]]


class Refused(Exception):
    """The other server will not take this request, now or later."""


class Unreachable(Exception):
    """It may take it later: after `seconds`, if it said so."""

    def __init__(self, text: str, seconds: float | None = None) -> None:
        super().__init__(text)
        self.seconds = seconds


class Forwarder:
    """One other server. Its queue is open from the beginning until `close`."""

    def __init__(
        self,
        settings: ForwardSettings,
        directory: Path,
        labels_of: LabelsOf,
        clock: Clock,
        rng: Random = SYSTEM_RANDOM,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.rng = rng
        self.outbox = Outbox(directory / settings.name, size_max=settings.queue_size)
        self.sent = self.refused = self.unqueued = self.requests = self.retries = 0
        self.last_error = ""
        self._packer = Packer(lambda id: {**settings.external_labels, **labels_of(id)})
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._client: httpx2.AsyncClient | None = None

    # Queueing -----------------------------------------------------------------------------

    def take(self, ids: Any, times: Any, values: Any) -> None:
        """Queue samples; a queue that cannot be written loses them, counted, and not the sender's
        request: the samples are stored here."""
        for begin in range(0, len(ids), PACKED_SAMPLES_MAX):
            part = slice(begin, begin + PACKED_SAMPLES_MAX)
            message = self._packer.pack(ids[part], times[part], values[part])
            count = len(ids[part])
            try:
                self.outbox.add(bytes(cramjam.snappy.compress_raw(message)), count)
            except SiltstoneError as error:
                self.unqueued += count
                self._told(f"samples cannot be queued: {error}")
        loop = self._loop
        if loop is not None and not self._arrived.is_set():
            loop.call_soon_threadsafe(self._arrived.set)

    # Sending ------------------------------------------------------------------------------

    async def start(self) -> None:
        self._client = client(self.settings, self.settings.remote_timeout)
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._keep_sending())

    async def stop(self) -> None:
        """The request under way may end; what waits stays in the queue."""
        self._loop = None
        self._stopping.set()
        assert self._task is not None
        assert self._client is not None
        await asyncio.wait({self._task}, timeout=STOP_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._client.aclose()

    def close(self) -> None:
        """When nobody calls `take` any more."""
        self.outbox.close()

    async def _keep_sending(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._send_one()
            except SiltstoneError as error:
                self._told(f"the queue cannot be read: {error}")
                await self._pause(self.settings.max_backoff)
            except Exception:
                log.exception("remote_write %s", self.settings.name)
                await self._pause(self.settings.max_backoff)

    async def _send_one(self) -> None:
        """Wait for enough, or long enough, and send it until it is settled."""
        settings = self.settings
        if self.outbox.samples < settings.max_samples_per_send:
            await self._wait_for_samples()
            await self._pause(settings.batch_send_deadline, enough=settings.max_samples_per_send)
        taken = await asyncio.to_thread(
            self.outbox.take, settings.max_samples_per_send, REQUEST_SIZE_MAX
        )
        if not taken.messages or not await self._settled(taken):
            return
        await asyncio.to_thread(self.outbox.done)

    async def _wait_for_samples(self) -> None:
        self._arrived.clear()
        if self.outbox.samples:
            return
        waits = [asyncio.create_task(one.wait()) for one in (self._arrived, self._stopping)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _pause(self, seconds: float, *, enough: int = 0) -> None:
        """That long, or until the stop, or until so many samples wait."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not self._stopping.is_set():
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or (enough and self.outbox.samples >= enough):
                return
            try:
                # a step at a time where the queue's length is looked at
                async with asyncio.timeout(min(left, 0.05) if enough else left):
                    await self._stopping.wait()
            except TimeoutError:
                pass

    async def _settled(self, taken: Taken) -> bool:
        """Sent, or refused for good; False: the stop came first."""
        body = await asyncio.to_thread(_joined, taken.messages)
        wait = self.settings.min_backoff
        while True:
            try:
                await self._post(body)
            except Unreachable as error:
                self.retries += 1
                self._told(str(error))
                await self._pause(self._backoff(wait, error.seconds))
                wait = min(2 * wait, self.settings.max_backoff)
                if self._stopping.is_set():
                    return False
            except Refused as error:
                self.refused += taken.samples
                self._told(f"{taken.samples} samples dropped: {error}")
                return True
            else:
                self.sent += taken.samples
                self.last_error = ""
                return True

    def _backoff(self, wait: float, asked: float | None) -> float:
        if asked is not None:
            return min(asked, RETRY_AFTER_SECONDS_MAX)
        # by chance, so that many senders do not come back in one moment
        return wait * (0.5 + self.rng.uniform() / 2)

    async def _post(self, body: bytes) -> None:
        assert self._client is not None
        self.requests += 1
        try:
            async with asyncio.timeout(self.settings.remote_timeout):
                response = await self._client.post(self.settings.url, content=body, headers=HEADERS)
        except TimeoutError:
            seconds = self.settings.remote_timeout
            raise Unreachable(f"no answer within remote_timeout ({seconds:g} s)") from None
        except (httpx2.HTTPError, OSError) as error:
            raise Unreachable(what_happened(error)) from None
        status = response.status_code
        if 200 <= status < 300:
            return
        text = f"the server answered {status}: {_first_line(response.text)}"
        if status >= 500 or status == 429:
            after = response.headers.get("retry-after", "")
            raise Unreachable(text, retry_after(after, self.clock.now_ms() / 1000))
        raise Refused(text)

    def _told(self, text: str) -> None:
        if text != self.last_error:
            log.warning("remote_write %s: %s", self.settings.name, text)
        self.last_error = text

    def samples(self) -> Iterator[Sample]:
        """What the server tells of itself about it."""
        own = {"remote": self.settings.name}
        dropped = (
            ("queue_full", self.outbox.dropped),
            ("refused", self.refused),
            ("queue_failed", self.unqueued),
        )
        yield Sample("siltstone_remote_write_samples_sent_total", own, self.sent)
        for reason, count in dropped:
            labels = {**own, "reason": reason}
            yield Sample("siltstone_remote_write_samples_dropped_total", labels, count)
        for name, value in (
            ("requests_total", self.requests),
            ("retries_total", self.retries),
            ("queue_damaged_total", self.outbox.damaged),
            ("queue_samples", self.outbox.samples),
            ("queue_bytes", self.outbox.size),
        ):
            yield Sample(f"siltstone_remote_write_{name}", own, value)


def _joined(messages: Iterable[bytes]) -> bytes:
    plain = b"".join(bytes(cramjam.snappy.decompress_raw(one)) for one in messages)
    return bytes(cramjam.snappy.compress_raw(plain))


def retry_after(text: str, now: float) -> float | None:
    """Seconds of a Retry-After header: a number, or a date."""
    if text.strip().isdecimal():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - now)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]
