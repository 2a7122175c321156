"""The page in a real browser: live, sortable, silent ranks seen, history kept, nothing from elsewhere, no markup."""

import shutil
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scraping import Service
from workers import record_until_killed

from kvxfer.publisher import StatsPublisher

pytestmark = [pytest.mark.extra, pytest.mark.timeout(240)]
CHROMIUM = shutil.which("chromium")
HOSTILE = "<img src=x onerror=alert(1)>"
PATIENCE_SECONDS = 60.0


class Shown(NamedTuple):
    page: Any
    service: Service
    workers: list[Any]


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of a browser of its own; whatever goes wrong in it fails the test, and so does a request elsewhere."""
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("not installed: chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        made = browser.new_page(viewport={"width": 1300, "height": 900})
        wrong: list[str] = []
        made.on("pageerror", lambda error: wrong.append(str(error)))
        made.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        made.on("dialog", lambda dialog: wrong.append(dialog.message))
        made.on("request", lambda sent: wrong.append(sent.url) if not is_ours(sent.url) else None)
        yield made
        browser.close()
        # That a collector which was killed does not answer is said by the browser itself.
        assert [each for each in wrong if "ERR_CONNECTION" not in each and "ERR_INCOMPLETE" not in each] == []


def is_ours(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:"))


@pytest.fixture
def shown(page: Any, ipc_endpoint: str, tmp_path: Path) -> Iterator[Shown]:
    service = Service(ipc_endpoint, tmp_path)
    workers = [
        get_context("spawn").Process(target=record_until_killed, args=(ipc_endpoint, str(rank), HOSTILE), daemon=True)
        for rank in range(4)
    ]
    for worker in workers:
        worker.start()
    try:
        page.goto(service.url("/"))
        yield Shown(page, service, workers)
    finally:
        for worker in workers:
            worker.kill()
        service.kill()


def wait(page: Any, condition: str) -> None:
    """Until it is true; the page's own policy keeps the browser's driver from waiting in it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(100)


def number_of(page: Any, term: str) -> str:
    text: str = page.locator("#pipeline div", has_text=term).locator("dd").first.inner_text()
    return text


def column(page: Any, number: int) -> list[str]:
    return [row.inner_text() for row in page.locator(f"#ranks tbody tr td:nth-child({number})").all()]


def test_numbers_are_live_ranks_sort_and_a_killed_worker_turns_silent(shown: Shown) -> None:
    page = shown.page
    wait(page, "document.querySelectorAll('#ranks tbody tr').length === 4")
    assert page.locator("#status").inner_text() == "live"
    before = number_of(page, "reports received")
    wait(page, f"!document.querySelector('#pipeline dd').innerText.match(/^{before}$/)")
    assert all(HOSTILE in rank for rank in column(page, 1))
    assert page.locator("#ranks img, #tiles img, select img").count() == 0

    page.get_by_role("button", name="Rank", exact=True).focus()
    page.keyboard.press("Enter")
    assert [rank.partition(" engine")[0] for rank in column(page, 1)] == [f"rank {number}" for number in range(4)]
    page.keyboard.press("Enter")
    assert column(page, 1)[0].startswith("rank 3")
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("Rank")

    shown.workers[2].kill()
    wait(page, "[...document.querySelectorAll('#ranks .state-silent')].length === 1")
    page.get_by_role("button", name="State").click()
    assert column(page, 1)[0].startswith("rank 2")
    assert "1 silent" in page.locator("#tiles").inner_text()


def test_a_transfer_that_hangs_is_seen_with_its_rank(shown: Shown, ipc_endpoint: str) -> None:
    page = shown.page
    with StatsPublisher("NixlConnector", ipc_endpoint, {"rank": "77"}) as publisher:
        token = publisher.stats.under_way.begin()
        hangs = "row.innerText.startsWith('rank 77') && row.cells[10].innerText.endsWith(' s')"
        wait(page, f"[...document.querySelectorAll('#ranks tbody tr')].some((row) => {hangs})")
        assert "1 now, the oldest for " in page.locator("#tiles").inner_text()
        publisher.stats.under_way.end(token)
        wait(page, f"![...document.querySelectorAll('#ranks tbody tr')].some((row) => {hangs})")


def test_the_last_numbers_stand_under_the_charts(shown: Shown) -> None:
    numbers = "[...document.querySelectorAll('.u-value')].map((value) => value.innerText)"
    wait(shown.page, f"{numbers}.length >= 8 && {numbers}.filter((text) => /^[-\\u2013]+$/.test(text)).length === 0")


def test_history_outlives_a_collector_and_the_page_finds_the_next_one(shown: Shown) -> None:
    page = shown.page
    wait(page, "document.querySelectorAll('#charts canvas').length === 4")
    wait(page, "document.querySelectorAll('#ranks tbody tr').length === 4")
    shown.service.kill()
    wait(page, "document.querySelector('#status').dataset.state === 'lost'")
    shown.service.start()
    wait(page, "document.querySelector('#status').dataset.state === 'live'")
    ended = page.evaluate("fetch('api/v1/history?limit=1000').then((answer) => answer.json())")
    assert len(ended["intervals"]) >= 2
    page.reload()
    wait(page, "document.querySelectorAll('#charts canvas').length === 4")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_both_schemes(shown: Shown, scheme: str) -> None:
    page = shown.page
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    wait(page, "document.querySelectorAll('#ranks tbody tr').length === 4")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("button", name="Dark or light").click()
    chosen = page.evaluate("document.documentElement.dataset.theme")
    assert chosen == ("dark" if scheme == "light" else "light")
