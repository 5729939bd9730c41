"""The board's server: what is written is told within a cycle, whoever looks, whatever the store does."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.board_jobs import MINUTE, T0, board, document, served, write
from tests.cluster import until
from velocity.io.dead_letter_counts import Failed
from velocity.io.sqlite_totals import SqliteTotals
from velocity.io.totals import Alerts, Ask, Latest, StoreDown, Totals, Where
from velocity.pipelines.live import View
from velocity.runners.board import MOST_VIEWS, REFRESH, Hub, TooManyViews, Viewer, view_of

CARD = "card:orders.by_city"


class Store:
    """A store that counts what it is asked, and is down when that is said."""

    def __init__(self, path: Path) -> None:
        self.inner = SqliteTotals(path)
        self.asked: Counter[str] = Counter()
        self.down = False
        self.closed = False
        self.busy = threading.Lock()

    def _told(self, what: str, count: int = 1) -> None:
        self.asked[what] += count
        if self.down:
            raise StoreDown("gone fishing")

    def latest(self) -> Mapping[tuple[str, str], Latest]:
        assert self.busy.acquire(blocking=False), "two questions at a time"
        try:
            self._told("latest")
            return self.inner.latest()
        finally:
            self.busy.release()

    def totals(self, asks: Sequence[Ask]) -> list[Totals]:
        assert self.busy.acquire(blocking=False), "two questions at a time"
        try:
            self._told("asks", len(asks))
            return self.inner.totals(asks)
        finally:
            self.busy.release()

    def alerts(
        self, jobs: Sequence[str], since: int, until: int, where: Where, most: int
    ) -> Alerts:
        self._told("alerts")
        return self.inner.alerts(jobs, since, until, where, most)

    def keys(self, jobs: Sequence[str], dimension: str, begins: str, most: int) -> list[str]:
        assert self.busy.acquire(blocking=False), "two questions at a time"
        try:
            self._told("keys")
            return self.inner.keys(jobs, dimension, begins, most)
        finally:
            self.busy.release()

    def close(self) -> None:
        self.closed = True
        self.inner.close()


class Letters:
    def __init__(self) -> None:
        self.found: Any = {Failed("orders", "late", T0): 3}
        self.answers = threading.Event()
        self.answers.set()

    def counts(self) -> Any:
        self.answers.wait()
        if isinstance(self.found, StoreDown):
            raise self.found
        return self.found

    def close(self) -> None:
        pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "documents.db"
    write(found, [document(orders=1, events=1)])
    return found


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    made = Store(path)
    yield made
    made.close()


def cycles(hub: Hub, count: int = 1) -> None:
    async def several() -> None:
        for _ in range(count):
            await hub.cycle()

    asyncio.run(several())


def taken(viewer: Viewer) -> dict[str, Any]:
    return {name: json.loads(text) for name, text in viewer.take().items()}


def headline(part: Any) -> str:
    text: str = part["tile"]["values"][0]["text"]
    return text


def test_a_viewer_is_told_of_everything_at_first_and_of_what_changes_then(
    path: Path, store: Store
) -> None:
    hub = Hub(board(), store)
    with hub.looking(View()) as viewer:
        cycles(hub)
        told = taken(viewer)
        assert {f"card:{card.id}" for card in hub.board.cards} <= told.keys()
        assert headline(told[CARD]) == "1"
        write(path, [document(orders=2, events=2)])
        cycles(hub)
        told = taken(viewer)
        assert set(told) == {CARD} and headline(told[CARD]) == "2"
        cycles(hub, 3)
        assert taken(viewer) == {}


def test_viewers_of_one_view_share_its_questions(store: Store) -> None:
    hub = Hub(board(), store)
    with hub.looking(View()) as one, hub.looking(View()) as other:
        cycles(hub)
        asked = store.asked["asks"]
        assert asked <= 2 * len(hub.board.cards)
        assert taken(one) == taken(other)
        with hub.looking(View()) as third:
            assert CARD in taken(third)  # from what is known, without a question
            assert store.asked["asks"] == asked


def test_only_metrics_whose_documents_changed_are_asked_for_until_all_are_again(
    path: Path, store: Store
) -> None:
    time = [0.0]
    hub = Hub(board(), store, clock=lambda: time[0])
    with hub.looking(View()):
        cycles(hub)
        before = store.asked["asks"]
        cycles(hub, 5)
        assert store.asked["asks"] == before
        write(path, [document(orders=2, events=2)])
        cycles(hub)
        assert store.asked["asks"] == before + 1
        time[0] += REFRESH
        cycles(hub)
        assert store.asked["asks"] >= before + 1 + len(hub.board.cards)


def test_views_are_bounded_and_forgotten_when_nobody_looks(store: Store) -> None:
    hub = Hub(board(), store)
    views = [View(until=i) for i in range(MOST_VIEWS + 1)]
    looking = [hub.looking(view) for view in views]
    for each in looking[:-1]:
        each.__enter__()
    with pytest.raises(TooManyViews):
        looking[-1].__enter__()
    looking[0].__exit__(None, None, None)
    with hub.looking(views[-1]):
        pass


def test_a_store_that_is_down_is_told_of_and_what_was_known_stays(path: Path, store: Store) -> None:
    hub = Hub(board(), store)
    with hub.looking(View()) as viewer:
        cycles(hub)
        assert taken(viewer)["status"]["down"] is None
        store.down = True
        cycles(hub)
        told = taken(viewer)
        assert told["status"]["down"] == "gone fishing" and CARD not in told
        cycles(hub, 3)
        assert taken(viewer) == {}
        write(path, [document(orders=5, events=5)])
        store.down = False
        cycles(hub)
        told = taken(viewer)
        assert told["status"]["down"] is None and headline(told[CARD]) == "5"


def test_dead_letters_that_cannot_be_read_are_shown_as_they_were_with_the_reason(
    store: Store,
) -> None:
    letters = Letters()
    hub = Hub(board(), store, [letters])
    with hub.looking(View()) as viewer:
        cycles(hub)
        assert taken(viewer)["letters"]["total"] == "3"
        letters.found = StoreDown("no broker")
        cycles(hub)
        told = taken(viewer)
        assert (told["letters"]["total"], told["letters"]["why"]) == ("3", "no broker")
        assert "status" not in told


def test_who_counts_dead_letters_may_wait_and_delays_no_document(store: Store, path: Path) -> None:
    letters = Letters()
    hub = Hub(board(), store, [letters])
    with hub.looking(View()) as viewer:
        cycles(hub)
        taken(viewer)
        letters.answers.clear()
        letters.found = {Failed("orders", "late", T0): 4}
        write(path, [document(orders=5, events=5)])
        cycles(hub, 2)
        told = taken(viewer)
        assert headline(told[CARD]) == "5" and "letters" not in told
        letters.answers.set()
        cycles(hub)
        assert taken(viewer)["letters"]["total"] == "4"


def test_an_empty_store_is_empty_and_a_silent_hub_does_not_say_so(tmp_path: Path) -> None:
    path = tmp_path / "documents.db"
    write(path, [])
    store = Store(path)
    hub = Hub(board(), store)
    with hub.looking(View()) as viewer:
        assert taken(viewer)["status"]["empty"] is None
        cycles(hub)
        assert taken(viewer)["status"]["empty"] is True
        write(path, [document(orders=1)])
        cycles(hub)
        assert taken(viewer)["status"]["empty"] is False
    store.close()


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ({"domain": "none"}, "domain: 'none'"),
        ({"range": "2h"}, "range: '2h'"),
        ({"until": "noon"}, "until: 'noon'"),
        ({"key.colour": "red"}, "no metric has the dimension 'colour'"),
    ],
)
def test_an_address_that_names_no_view_is_refused_by_name(
    query: dict[str, str], wrong: str
) -> None:
    with pytest.raises(ValueError, match=wrong):
        view_of(board(), query)


def test_the_end_of_a_view_is_a_time_of_the_boards_zone() -> None:
    assert view_of(board(), {"until": "2026-01-05T07:00"}).until == T0
    assert view_of(board(), {"until": "2026-01-05T00:00+00:00"}).until == T0


class Stream:
    """The events of a board, read by a thread: the parts told so far."""

    def __init__(self, url: str, query: str = "") -> None:
        self.parts: dict[str, Any] = {}
        self.answer = requests.get(f"{url}/events{query}", stream=True, timeout=30)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self.answer.iter_lines():
            if line.startswith(b"data: "):
                self.parts.update(json.loads(line[6:])["parts"])

    def wait(self, seen: Callable[[dict[str, Any]], bool]) -> None:
        until(lambda: seen(self.parts), 30)


@pytest.mark.embedded
def test_over_http_a_document_is_told_of_as_it_is_written(path: Path) -> None:
    with served(path) as url:
        stream = Stream(url, "?key.city=Jakarta")
        stream.wait(lambda parts: CARD in parts and headline(parts[CARD]) == "1")
        write(path, [document(start=T0 + MINUTE, orders=7, pane="early", events=7)])
        stream.wait(lambda parts: headline(parts[CARD]) == "7")
        assert stream.parts[CARD]["tile"]["provisional"]
        assert requests.get(f"{url}/health", timeout=30).json() == {"store": "up"}
        found = requests.get(f"{url}/keys?dimension=city&begins=Ja", timeout=30)
        assert found.json() == ["Jakarta"]


@pytest.mark.embedded
def test_over_http_all_that_the_page_needs_comes_from_here(path: Path) -> None:
    with served(path) as url:
        page = requests.get(url, timeout=30)
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]
        for name in ("board.css", "board.js", "icon.svg", "plotly.js"):
            found = requests.get(f"{url}/assets/{name}", timeout=30)
            assert found.status_code == 200 and f"assets/{name}" in page.text
        for name in ("page.html", "board.py", "../board.py"):
            assert requests.get(f"{url}/assets/{name}", timeout=30).status_code == 404
        assert requests.get(f"{url}/events?range=2h", timeout=30).status_code == 400
        # A page elsewhere, whose name leads here, is not answered.
        refused = requests.get(url, headers={"Host": "elsewhere.example"}, timeout=30)
        assert refused.status_code == 400
