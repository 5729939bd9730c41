"""The board in a real browser: what is written is seen, by whom and however it is looked at."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.board_jobs import JOB, MINUTE, T0, document, job_text, write
from tests.board_server import Boards
from tests.chromium import browsing
from velocity.io.records import Document

pytestmark = pytest.mark.embedded

SECONDS = 30_000
"""Milliseconds for what must come; each test waits for it, not for a time."""
expect.set_options(timeout=SECONDS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from browsing()


@pytest.fixture(scope="module")
def boards() -> Iterator[Boards]:
    made = Boards()
    yield made
    made.close()


@contextmanager
def opened(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    """A page, which must have no error of its own, and ask nobody but the board."""
    made = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | context))
    made.set_default_timeout(SECONDS)
    page = made.new_page()
    errors: list[str] = []
    elsewhere: list[str] = []
    origin = re.match(r"http://[^/?]+", url)[0]  # type: ignore[index]
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((origin, "data:", "blob:"))
            else elsewhere.append(request.url)
        ),
    )
    page.goto(url)
    try:
        yield page
        assert errors == []
        assert elsewhere == []
    finally:
        made.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "documents.db"
    cities = [("Jakarta", 120), ("Solo", 75)]
    documents = [
        document(start=T0 + i * MINUTE, dimensions={"city": city}, orders=n, revenue=n * 104_500)
        for i in range(8)
        for city, n in cities
    ]
    write(found, documents)
    return found


def box(page: Page, metric: str, job: str = "orders") -> Any:
    return page.locator(f'[data-part="card:{job}.{metric}"]')


def shows(page: Page, number: str, metric: str = "by_city") -> None:
    expect(box(page, metric).locator(".headline b")).to_have_text(number)


def bars(page: Page, metric: str = "by_city") -> Any:
    return box(page, metric).locator(".chart .bars .point path")


def early(n: int, minute: int = 8, city: str = "Jakarta", events: int = 1) -> Document:
    start = T0 + minute * MINUTE
    return document(
        start=start, pane="early", dimensions={"city": city}, orders=n, revenue=n, events=events
    )


def test_a_document_is_seen_as_it_is_written_and_an_early_one_as_provisional(
    browser: Browser, boards: Boards, path: Path
) -> None:
    with boards.served(path) as url, opened(browser, url) as page:
        shows(page, "195")
        pill = box(page, "by_city").locator(".pill.provisional")
        expect(pill).to_be_hidden()
        expect(bars(page)).to_have_count(16)
        write(path, [early(1_020)])
        shows(page, "1,020")
        expect(pill).to_be_visible()
        expect(box(page, "by_city").locator(".when strong")).to_have_text("195")
        expect(bars(page)).to_have_count(17)
        # Not by colour alone: the bar of what may still change is hatched.
        hatched = box(page, "by_city").locator('.chart .point path[style*="url("]')
        expect(hatched).to_have_count(1)
        last = document(
            start=T0 + 8 * MINUTE, dimensions={"city": "Jakarta"}, orders=1_500, events=2
        )
        write(path, [last])
        shows(page, "1,500")
        expect(pill).to_be_hidden()
        expect(hatched).to_have_count(0)


def test_what_is_chosen_narrows_the_board_and_is_in_the_address(
    browser: Browser, boards: Boards, path: Path
) -> None:
    write(path, [document(start=T0, job="visits", dimensions={"city": "Solo"}, orders=3)])
    shown = [JOB, job_text("visits")]
    with boards.served(path, shown) as url, opened(browser, url) as page:
        shows(page, "195")
        page.get_by_label("Value", exact=True).fill("Solo")
        page.get_by_role("button", name="Narrow").click()
        shows(page, "75")
        assert "key.city=Solo" in page.url
        page.get_by_label("Domain").select_option("visits")
        expect(page.locator('[data-domain="orders"]')).to_have_count(0)
        expect(box(page, "by_city", "visits").locator(".headline b")).to_have_text("3")
        page.go_back()
        shows(page, "75")
        page.get_by_role("button", name="City: Solo: remove").click()
        shows(page, "195")
        page.get_by_label("Until").fill("2026-01-05T07:03")
        expect(box(page, "by_city").locator(".when")).to_contain_text("07:02–07:03")
        # Whoever is given the address sees the same.
        address = page.url
    with (
        boards.served(path, shown) as url,
        opened(browser, url + re.sub(r"^[^?]*", "", address)) as page,
    ):
        expect(box(page, "by_city").locator(".when")).to_contain_text("07:02–07:03")


def test_any_key_may_be_narrowed_to_and_its_values_are_offered(
    browser: Browser, boards: Boards, path: Path
) -> None:
    key = {"city": "Solo", "tier": "gold", "open": True, "code": 7}
    write(path, [document("by_all", T0, size=5 * MINUTE, dimensions=key, n=4)])
    with boards.served(path) as url, opened(browser, url) as page:
        shows(page, "4", "by_all")
        page.locator("[name=dimension]").select_option("tier")
        page.get_by_label("Value", exact=True).focus()
        expect(page.locator("#values option")).to_have_count(1)
        expect(page.locator("#values option")).to_have_attribute("value", "gold")
        page.get_by_label("Value", exact=True).fill("silver")
        page.keyboard.press("Enter")
        expect(box(page, "by_all").locator(".when")).to_have_text("No window in this time.")
        shows(page, "195")  # it has no tier
        expect(box(page, "by_city").locator(".notes")).to_contain_text("Not narrowed by tier")


def test_an_empty_store_says_what_fills_it_and_is_filled_by_the_first_document(
    browser: Browser, boards: Boards, tmp_path: Path
) -> None:
    path = tmp_path / "documents.db"
    write(path, [])
    with boards.served(path) as url, opened(browser, url) as page:
        expect(page.get_by_role("heading", name="No document yet")).to_be_visible()
        write(path, [document(orders=5)])
        shows(page, "5")
        expect(page.get_by_role("heading", name="No document yet")).to_be_hidden()


def test_a_store_that_goes_is_told_of_and_one_that_comes_back_is_read_again(
    browser: Browser, boards: Boards, path: Path
) -> None:
    with boards.served(path) as url, opened(browser, url) as page:
        shows(page, "195")
        banner = page.get_by_role("alert")
        expect(banner).to_be_hidden()
        away = path.with_suffix(".away")
        path.rename(away)
        expect(banner).to_contain_text("The store does not answer")
        expect(page.locator("#connection")).to_have_text("store down")
        shows(page, "195")  # what was known stays
        away.rename(path)
        expect(banner).to_be_hidden()
        write(path, [early(9)])
        shows(page, "9")


def test_a_server_that_goes_is_told_of_and_asked_again(
    browser: Browser, boards: Boards, path: Path
) -> None:
    with boards.served(path) as url:
        made = opened(browser, url)
        page = made.__enter__()
        shows(page, "195")
    expect(page.get_by_role("alert")).to_contain_text("server is not reached")
    expect(page.locator("#connection")).to_have_text("not connected")
    write(path, [early(9)])
    with boards.served(path, port=int(url.rpartition(":")[2])):
        shows(page, "9")
        expect(page.get_by_role("alert")).to_be_hidden()
        made.__exit__(None, None, None)


def test_what_is_old_is_seen_to_be(browser: Browser, boards: Boards, tmp_path: Path) -> None:
    from datetime import UTC, datetime, timedelta

    path = tmp_path / "documents.db"
    write(path, [document(orders=5)], datetime.now(UTC) - timedelta(hours=3))
    write(path, [document("whole", dimensions={}, n=6)])
    with boards.served(path) as url, opened(browser, url) as page:
        stale = box(page, "by_city").locator(".pill.stale")
        expect(stale).to_contain_text("last document 3 h ago")
        shows(page, "6", "whole")
        expect(box(page, "whole").locator(".pill.stale")).to_be_hidden()


def many(metrics: int, keys: int) -> tuple[str, list[Document]]:
    """A job of many metrics, each with its documents; the first has many keys."""
    names = [f"m{i}" for i in range(metrics)]
    specs = "\n".join(
        f"  - {{name: {n}, by: [city], window: {{fixed: 1m}}, values: {{orders: count()}}}}"
        for n in names
    )
    text = re.sub(r"metrics:\n.*?(?=sinks:)", f"metrics:\n{specs}\n", JOB, flags=re.DOTALL)
    documents = [
        document(name, T0 + i * MINUTE, dimensions={"city": f"K{key:05}"}, orders=1, events=1)
        for name in names
        for i in range(3)
        for key in range(keys if name == "m0" else 9)
    ]
    return text, documents


def test_fifty_metrics_and_ten_thousand_keys_are_shown_and_kept_up_with(
    browser: Browser, boards: Boards, tmp_path: Path
) -> None:
    path = tmp_path / "documents.db"
    text, documents = many(50, 10_000)
    write(path, documents)
    with boards.served(path, [text]) as url, opened(browser, url) as page:
        shows(page, "10,000", "m0")
        expect(page.locator("article[data-part^='card:']")).to_have_count(50)
        # Of ten thousand keys a few are drawn, and the others as one.
        expect(box(page, "m0").locator(".legend li")).to_have_count(7)
        expect(box(page, "m0").locator(".legend li").last).to_have_text("all others")
        page.get_by_label("Value", exact=True).press_sequentially("K0999")
        expect(page.locator("#values option")).to_have_count(10)
        write(path, [document("m49", T0 + 3 * MINUTE, dimensions={"city": "K00001"}, orders=77)])
        shows(page, "77", "m49")
        box(page, "m49").scroll_into_view_if_needed()
        expect(bars(page, "m49").first).to_be_attached()


def test_what_needs_attention_comes_first(browser: Browser, boards: Boards, tmp_path: Path) -> None:
    path = tmp_path / "documents.db"
    pipelines = Path(__file__).parent.parent / "pipelines"
    text = (pipelines / "transactions.yaml").read_text()
    funnel = [
        document(
            "funnel",
            T0,
            job="transactions",
            size=5 * MINUTE,
            dimensions={"stage": stage, "city": city},
            entered=n,
            moved_on=n // 2,
            dropped=n // 10,
            stuck=1,
        )
        for stage, n in (("order", 1_000), ("consultation", 4_000))
        for city in ("Solo", "Jakarta")
    ]
    stuck = document(
        "alerts",
        T0,
        job="transactions",
        dimensions={"transaction": "trx-<b>1</b>", "stage": "order", "city": "Solo"},
        status="stuck",
    )
    write(path, [*funnel, stuck])
    shown = [text]
    with boards.served(path, shown, letters=True) as url, opened(browser, url) as page:
        alerts = page.locator('[data-part="alerts"]')
        expect(alerts.locator(".headline b")).to_have_text("1")
        # What documents hold is text, whatever it looks like.
        expect(alerts.get_by_role("cell", name="trx-<b>1</b>")).to_be_visible()
        rows = page.locator('[data-part="funnel:transactions"] tbody tr')
        expect(rows).to_have_count(2)
        expect(rows.first).to_contain_text("Consultation8,0004,000800")
        page.get_by_label("Value", exact=True).fill("Solo")
        page.keyboard.press("Enter")
        expect(rows.first).to_contain_text("Consultation4,0002,000400")


def test_dead_letters_are_counted_by_cause(browser: Browser, boards: Boards, path: Path) -> None:
    with boards.served(path, letters=True) as url, opened(browser, url) as page:
        letters = page.locator('[data-part="letters"]')
        expect(letters.locator(".headline b")).to_have_text("1,239")
        expect(letters.locator("tbody tr").first).to_contain_text("Late1,234")


def contrast(page: Page, selector: str) -> list[float]:
    """Of each element's colour against the ground it is on: as WCAG 2 has it."""
    found: list[float] = page.evaluate(
        """(selector) => {
          const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
          const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
          return [...document.querySelectorAll(selector)].map((mark) => {
            const ground = getComputedStyle(mark.closest('.box')).backgroundColor;
            const [a, b] = [light(rgb(getComputedStyle(mark).backgroundColor)), light(rgb(ground))];
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
          });
        }""",
        selector,
    )
    return found


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_light_and_dark_are_readable_by_the_rules_of_wcag_aa(
    browser: Browser, boards: Boards, path: Path, theme: Any
) -> None:
    """By axe-core, which looks for what a screen reader or weak eyes would miss."""
    write(path, [early(1_020)])
    shown = [JOB]
    with (
        boards.served(path, shown, letters=True) as url,
        opened(browser, url, color_scheme=theme) as page,
    ):
        shows(page, "1,020")
        expect(page.locator("html")).to_have_attribute("data-theme", theme)
        box(page, "by_city").locator("summary").click()
        expect(box(page, "by_city").locator("td").first).to_be_visible()
        expect(box(page, "by_city").locator(".legend i").first).to_be_visible()
        rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
        told = Axe().run(page, options={"runOnly": rules})
        assert told.violations_count == 0, told.generate_report()
        ratios = contrast(page, ".legend i")
        assert ratios and min(ratios) >= 3


def test_a_theme_that_is_chosen_stays(browser: Browser, boards: Boards, path: Path) -> None:
    with boards.served(path) as url, opened(browser, url, color_scheme="light") as page:
        shows(page, "195")
        button = page.get_by_role("button", name=re.compile("Theme"))
        for chosen, seen in (("light", "light"), ("dark", "dark")):
            button.click()
            expect(button).to_have_text(f"Theme: {chosen}")
            expect(page.locator("html")).to_have_attribute("data-theme", seen)
        page.reload()
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")


@pytest.mark.parametrize("width", [320, 390])
def test_on_a_phone_nothing_stands_out_of_the_page(
    browser: Browser, boards: Boards, path: Path, width: int
) -> None:
    viewport = {"width": width, "height": 800}
    with (
        boards.served(path, letters=True) as url,
        opened(browser, url, viewport=viewport) as page,
    ):
        shows(page, "195")
        expect(bars(page).first).to_be_attached()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.get_by_label("Domain").select_option("orders")
        shows(page, "195")


def test_on_a_wall_what_matters_can_be_read_from_afar(
    browser: Browser, boards: Boards, path: Path
) -> None:
    """Letters of 15 mm are read at 3 m: on a screen of 55 inches, 1920 wide, that is 24 px."""
    viewport = {"width": 1920, "height": 1080}
    with boards.served(path) as url, opened(browser, f"{url}/?wall=1", viewport=viewport) as page:
        shows(page, "195")
        size = "(e) => parseFloat(getComputedStyle(e).fontSize)"
        assert box(page, "by_city").locator(".headline b").evaluate(size) >= 60
        assert box(page, "by_city").locator("h3").evaluate(size) >= 28
        expect(page.locator("#filters")).to_be_hidden()
        page.get_by_role("button", name="Wall").click()
        expect(page.locator("#filters")).to_be_visible()


def tab(page: Page, until: Callable[[str], bool]) -> list[str]:
    """Presses Tab until what has the focus is found; the names of all that had it."""
    names: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate(
                "(() => { const e = document.activeElement; return (e.getAttribute('aria-label')"
                " || e.labels?.[0]?.textContent || e.textContent).trim().slice(0, 40); })()"
            )
        )
        if until(names[-1]):
            return names
    raise AssertionError(f"not found among {names}")


def test_the_keyboard_reaches_everything_in_the_order_of_the_page(
    browser: Browser, boards: Boards, path: Path
) -> None:
    with boards.served(path) as url, opened(browser, url) as page:
        shows(page, "195")
        names = tab(page, lambda name: name == "Narrow")
        assert names[:3] == ["Skip to the figures", "Wall", "Theme: system"]
        assert names[3].startswith("Domain")
        names = tab(page, lambda name: name == "By city as a table")
        assert "By city: value in the chart" in names
        page.keyboard.press("Enter")
        table = box(page, "by_city").get_by_role("table")
        expect(table.get_by_role("columnheader", name="Jakarta")).to_be_visible()
        expect(table.get_by_role("row")).to_have_count(9)
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"


def test_a_screen_reader_is_told_what_a_chart_shows_and_of_what_comes(
    browser: Browser, boards: Boards, path: Path
) -> None:
    with boards.served(path) as url, opened(browser, url) as page:
        shows(page, "195")
        chart = box(page, "by_city").get_by_role("img")
        expect(chart).to_have_attribute(
            "aria-label", re.compile(r"By city, Orders: bars for 2 keys, .*07:00–07:01")
        )
        expect(page.locator("#live")).to_contain_text("By city: 195")
        expect(page.get_by_role("article", name="By city")).to_be_visible()


def test_another_value_of_a_metric_is_drawn_when_it_is_chosen(
    browser: Browser, boards: Boards, path: Path
) -> None:
    with boards.served(path) as url, opened(browser, url) as page:
        shows(page, "195")
        expect(bars(page)).to_have_count(16)
        box(page, "by_city").get_by_label("value in the chart").select_option("mean_fee")
        expect(bars(page)).to_have_count(0)
        box(page, "by_city").get_by_label("value in the chart").select_option("revenue")
        expect(bars(page)).to_have_count(16)
        expect(box(page, "by_city").get_by_role("img")).to_have_attribute(
            "aria-label", re.compile("Revenue in IDR")
        )
