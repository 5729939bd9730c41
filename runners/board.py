"""The live board's server: one cycle of questions to the store, shared by all who look, and its page.

What a store has is asked in turns, one question at a time, however many look: viewers of the same
view share its answers, and the pause after a cycle is as long as the cycle took, or longer.
"""

import asyncio
import contextlib
import gzip
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, Self
from zoneinfo import ZoneInfo

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from velocity.io.dead_letter_counts import Counts, LetterCounts
from velocity.io.totals import Ask, Latest, StoreDown, Totalled, Totals
from velocity.pipelines.live import (
    RANGE,
    RANGES,
    LiveBoard,
    View,
    ask_of_funnel,
    asks_of,
    chosen,
    end_of,
    narrowed,
)
from velocity.pipelines.live_shapes import (
    Json,
    alerts_part,
    card_part,
    funnel_part,
    letters_part,
)
from velocity.transforms.windows import millis

PERIOD: Final = 0.5
"""Seconds from a look at the store to the next, at least."""
REFRESH: Final = 10.0
"""Seconds after which a view is asked for anew, though no document of its metrics has changed."""
MOST_VIEWS: Final = 32
"""That are looked at at the same time: another choice of filters is another view."""
TICK: Final = 5.0
"""Seconds between signs of life to whoever looks."""
ALERTS: Final = 12
"""Of those that have not ended, the oldest."""
KEYS: Final = 50
"""Offered of a dimension."""

ASSETS: Final = Path(__file__).parent / "board_assets"
_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS: Final = {
    # Plotly puts rules into a style element of its own; all else comes from here.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

Newest = Mapping[tuple[str, str], Latest]
LettersPart = Callable[[View], Json]
"""Dead letters, as a part of any view."""


class TooManyViews(RuntimeError):
    """More views are looked at than are asked for; close one, or take the filters of another."""


@dataclass(eq=False)
class Viewer:
    """Who looks at a view: the parts that have changed since they were last sent."""

    pending: dict[str, str]
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> dict[str, str]:
        self.changed.clear()
        taken, self.pending = self.pending, {}
        return taken


@dataclass(eq=False)
class Feed:
    """A view, who looks at it, and what is known of it."""

    view: View
    viewers: set[Viewer] = field(default_factory=set)
    parts: dict[str, str] = field(default_factory=dict)
    seen: Newest | None = None
    asked_at: float = float("-inf")

    def publish(self, parts: Mapping[str, Json]) -> None:
        for name, part in parts.items():
            text = json.dumps(part, ensure_ascii=False, separators=(",", ":"))
            if self.parts.get(name) != text:
                self.parts[name] = text
                for viewer in self.viewers:
                    # Of a part that a slow viewer has not taken yet the newest is enough.
                    viewer.pending[name] = text
                    viewer.changed.set()


class Hub:
    """Asks the store while anyone looks, and tells each viewer what has changed."""

    def __init__(
        self,
        board: LiveBoard,
        store: Totalled,
        letters: Sequence[LetterCounts] = (),
        *,
        unwatched: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``unwatched``: why dead letters are not counted, if they aren't."""
        self.board, self.zone = board, ZoneInfo(board.zone)
        self._store, self._letters, self._unwatched = store, letters, unwatched
        self._clock = clock
        self._feeds: dict[View, Feed] = {}
        self._asking = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._counts: Counts = {}
        self._counter = ThreadPoolExecutor(1, "dead letters")
        self._counting: Future[LettersPart] | None = None
        self._letters_part: LettersPart | None = None
        self.ended = False
        self.down: str | None = None
        self._down_since = 0.0

    # -- who looks --------------------------------------------------------------------------------

    @contextmanager
    def looking(self, view: View) -> Iterator[Viewer]:
        """A viewer, who is told of all parts at first. Raises ``TooManyViews``."""
        feed = self._feeds.get(view)
        if feed is None:
            if len(self._feeds) >= MOST_VIEWS:
                raise TooManyViews(
                    f"{MOST_VIEWS} different choices of filters are looked at already; close one, "
                    "or take the filters of another"
                )
            feed = self._feeds[view] = Feed(view)
            feed.publish({"layout": self._layout(view), "status": self._status(None)})
        viewer = Viewer(dict(feed.parts))
        viewer.changed.set()
        feed.viewers.add(viewer)
        self._wanted.set()
        try:
            yield viewer
        finally:
            feed.viewers.discard(viewer)
            if not feed.viewers:
                del self._feeds[view]

    def end(self) -> None:
        """Ends the streams of all who look: they have no end of their own."""
        self.ended = True
        for feed in self._feeds.values():
            for viewer in feed.viewers:
                viewer.changed.set()

    async def keys(self, jobs: Sequence[str], dimension: str, begins: str) -> list[str]:
        async with self._asking:
            return await asyncio.to_thread(self._store.keys, jobs, dimension, begins, KEYS)

    # -- the cycle --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                self._wanted.clear()
                if not self._feeds:
                    await self._wanted.wait()
                began = self._clock()
                await self.cycle()
                took = self._clock() - began
                with contextlib.suppress(TimeoutError):
                    # Who comes to look at something else is not left waiting.
                    await asyncio.wait_for(self._wanted.wait(), max(took, PERIOD - took, 0.05))
        finally:
            self._store.close()
            for letters in self._letters:
                self._counter.submit(letters.close)  # behind what is being counted
            await asyncio.to_thread(self._counter.shutdown)

    async def cycle(self) -> None:
        """One look at the store, and what follows from it."""
        async with self._asking:
            try:
                newest = await asyncio.to_thread(self._store.latest)
                for feed in list(self._feeds.values()):
                    parts = await asyncio.to_thread(self._ask, feed, newest)
                    feed.publish(parts)
                self.down = None
            except StoreDown as error:
                if self.down is None:
                    self._down_since = time.time()
                self.down = str(error)
                newest = None
        letters = await asyncio.to_thread(self._counted)
        for feed in list(self._feeds.values()):
            told = {} if letters is None else {"letters": letters(feed.view)}
            feed.publish({"status": self._status(newest), **told})

    def _ask(self, feed: Feed, newest: Newest) -> dict[str, Json]:
        """What of a view has changed."""
        view, board = feed.view, self.board
        until = end_of(board, view, newest)
        if until is None:
            feed.seen = None
            return {}
        anew = feed.seen is None or self._clock() - feed.asked_at >= REFRESH
        before: Newest = {} if anew or feed.seen is None else feed.seen
        jobs = chosen(board, view)

        def changed(job: str, metric: str) -> bool:
            return anew or before.get((job, metric)) != newest.get((job, metric))

        cards = [c for c in board.cards if c.job in jobs and changed(c.job, c.metric)]
        funnels = [f for f in board.funnels if f.job in jobs and changed(f.job, f.metric)]
        alerting = [job for job in board.alerting if job in jobs]
        pairs = [asks_of(card, view, until, newest.get((card.job, card.metric))) for card in cards]
        asks = [ask for pair in pairs for ask in pair if ask]
        asks += [ask_of_funnel(funnel, view, until) for funnel in funnels]
        answers = iter(self._store.totals(asks)) if asks else iter(())
        parts: dict[str, Json] = {}
        for card, (first, second) in zip(cards, pairs, strict=True):
            totals = next(answers)
            parts[f"card:{card.id}"] = card_part(
                card,
                view,
                self.zone,
                totals,
                next(answers) if second else None,
                newest.get((card.job, card.metric)),
                _times(first, totals),
            )
        for funnel in funnels:
            parts[f"funnel:{funnel.job}"] = funnel_part(funnel, next(answers))
        if alerting and any(changed(job, "alerts") for job in alerting):
            where = narrowed(board.dimensions, view)
            since = until - millis(view.range)
            found = self._store.alerts(alerting, since, until, where, ALERTS)
            parts["alerts"] = alerts_part(found, self.zone)
        feed.seen = newest
        if anew:
            feed.asked_at = self._clock()
        return parts

    def _counted(self) -> LettersPart | None:
        """What is known of dead letters: a broker that keeps who counts them waiting delays nothing."""
        if self._counting is None:
            self._counting = self._counter.submit(self._count)
        with contextlib.suppress(TimeoutError):
            self._letters_part = self._counting.result(PERIOD)
            self._counting = None
        return self._letters_part

    def _count(self) -> LettersPart:
        why = self._unwatched
        try:
            counts: dict[Any, int] = {}
            for letters in self._letters:
                counts.update(letters.counts())
            self._counts = counts
        except StoreDown as error:
            why = str(error)
        known = self._counts
        return lambda view: letters_part(self.board, view, known, self.zone) | {"why": why}

    def _layout(self, view: View) -> Json:
        jobs = chosen(self.board, view)
        return {
            "kind": "layout",
            "jobs": list(jobs),
            "cards": [f"card:{card.id}" for card in self.board.cards if card.job in jobs],
            "funnels": [f"funnel:{f.job}" for f in self.board.funnels if f.job in jobs],
            "alerts": any(job in jobs for job in self.board.alerting),
        }

    def _status(self, newest: Newest | None) -> Json:
        return {
            "kind": "status",
            "down": self.down,
            "since": round(self._down_since * 1000) if self.down else None,
            # As long as nothing was asked, it is not known.
            "empty": None if newest is None else not newest,
        }


def _times(ask: Ask, totals: Totals) -> tuple[int, int]:
    """From where to where a chart goes: also over windows that stand out of what was asked for."""
    starts = [cell.start for cell in totals.over_all]
    ends = [max(cell.end, cell.start + (ask.every or 0)) for cell in totals.over_all]
    return min([ask.since, *starts]), max([ask.until, *ends])


# -- the page -------------------------------------------------------------------------------------


def view_of(board: LiveBoard, query: Mapping[str, str]) -> View:
    """The view that an address names; raises ``ValueError``, which says what is wrong with it.

    ``domain``, ``range``, ``until`` (as the board's clocks show it), and ``key.NAME=VALUE`` for any
    dimension.
    """
    job = query.get("domain") or None
    if job is not None and job not in board.jobs:
        raise ValueError(f"domain: {job!r} is none of {', '.join(board.jobs)}")
    range_ = query.get("range") or RANGE
    if range_ not in RANGES:
        raise ValueError(f"range: {range_!r} is none of {', '.join(RANGES)}")
    until = None
    if text := query.get("until"):
        try:
            time_ = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"until: {text!r} is no time such as 2026-01-05T07:30") from None
        if time_.tzinfo is None:
            time_ = time_.replace(tzinfo=ZoneInfo(board.zone))
        until = round(time_.timestamp() * 1000)
    where = []
    for name, value in sorted(query.items()):
        if not name.startswith("key."):
            continue
        dimension = name.removeprefix("key.")
        if dimension not in board.dimensions:
            raise ValueError(f"{name}: no metric has the dimension {dimension!r}")
        where.append((dimension, value))
    return View(job, tuple(where), RANGES[range_], until)


def application(
    hub: Hub, hosts: Sequence[str] = ("*",), failed: Callable[[], None] = lambda: None
) -> Starlette:
    """The board as an ASGI application. ``hosts`` are those it answers to: names of this machine.

    ``failed`` is called if the hub ends by itself, which is a defect.
    """
    board = hub.board

    @asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(hub.run())
        task.add_done_callback(lambda done: None if done.cancelled() else failed())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def page(_: Request) -> Response:
        return _asset("page.html")

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name == "plotly.js":
            return _plotly(request)
        if name not in ("board.css", "board.js", "icon.svg"):
            return Response("not found", 404)
        return _asset(name)

    async def about(_: Request) -> Response:
        return JSONResponse(
            {
                "jobs": board.jobs,
                "dimensions": board.dimensions,
                "ranges": list(RANGES),
                "range": RANGE,
                "zone": board.zone,
            },
            headers=_HEADERS | {"Cache-Control": "no-store"},
        )

    async def keys(request: Request) -> Response:
        query = request.query_params
        dimension = query.get("dimension", "")
        if dimension not in board.dimensions:
            return JSONResponse({"error": f"no metric has the dimension {dimension!r}"}, 400)
        try:
            jobs = chosen(board, view_of(board, {"domain": query.get("domain", "")}))
            found = await hub.keys(jobs, dimension, query.get("begins", ""))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        except StoreDown as error:
            return JSONResponse({"error": str(error)}, 503)
        return JSONResponse(found, headers=_HEADERS)

    async def health(_: Request) -> Response:
        return JSONResponse({"store": hub.down or "up"}, 503 if hub.down else 200)

    async def events(request: Request) -> Response:
        try:
            view = view_of(board, request.query_params)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        # As the answer begins, or its status could no longer say that it is refused.
        looking = hub.looking(view)
        try:
            viewer = looking.__enter__()
        except TooManyViews as error:
            return JSONResponse({"error": str(error)}, 503, {"Retry-After": "30"})

        async def parts() -> AsyncIterator[str]:
            try:
                yield "retry: 2000\n\n"
                while not hub.ended:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(viewer.changed.wait(), TICK)
                    changed = ",".join(f'"{name}":{text}' for name, text in viewer.take().items())
                    yield f'data: {{"now":{round(time.time() * 1000)},"parts":{{{changed}}}}}\n\n'
            finally:
                looking.__exit__(None, None, None)

        return StreamingResponse(
            parts(),
            media_type="text/event-stream",
            headers=_HEADERS | {"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    return Starlette(
        routes=[
            Route("/", page),
            Route("/assets/{name}", asset),
            Route("/about", about),
            Route("/keys", keys),
            Route("/events", events),
            Route("/health", health),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        lifespan=running,
    )


def _asset(name: str) -> Response:
    path = ASSETS / name
    kind = _TYPES.get(path.suffix, "image/svg+xml")
    headers = _HEADERS | {"Cache-Control": "no-cache"}
    return Response(path.read_bytes(), media_type=kind, headers=headers)


def _plotly(request: Request) -> Response:
    headers = _HEADERS | {"Cache-Control": "max-age=86400", "Vary": "Accept-Encoding"}
    plain, packed = _plotly_js()
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(packed, media_type="text/javascript", headers=headers)
    return Response(plain, media_type="text/javascript", headers=headers)


@cache
def _plotly_js() -> tuple[bytes, bytes]:
    """Plotly's own script, which its package brings along; plain and packed."""
    from plotly.offline import get_plotlyjs

    plain = get_plotlyjs().encode()
    return plain, gzip.compress(plain, 6)


# -- serving --------------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self._hub = hub

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._hub.end()
        await super().shutdown(sockets)


class Serving:
    """The board on a socket; ``run`` serves until SIGINT or SIGTERM, the context while entered."""

    def __init__(self, hub: Callable[[], Hub], host: str = "127.0.0.1", port: int = 0) -> None:
        """Raises ``OSError`` if the port is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family)
        self.port = self._socket.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}"
        # Of a board for this machine alone a page elsewhere must not ask through a name of its own.
        local = host in ("127.0.0.1", "localhost", "::1")
        hosts = ["127.0.0.1", "localhost", "[::1]"] if local else ["*"]
        self._hosts, self._hub = hosts, hub
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        hub = self._hub()
        config = uvicorn.Config(
            application(hub, self._hosts, self._stop),
            log_level="warning",
            timeout_graceful_shutdown=5,  # whoever does not take the end of a stream
            server_header=False,
        )
        self._server = _Server(config, hub)
        self._server.run(sockets=[self._socket])

    def _stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.run, name="board", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._thread is not None
        self._stop()
        self._thread.join()
        self._socket.close()
