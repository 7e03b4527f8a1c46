"""The dashboard in a real browser (Debian's chromium, headless), drawn from a running server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from siltstone import Cache, Metrics
from siltstone.clock import SYSTEM_CLOCK
from siltstone.config import load
from siltstone.serve.monitoring import Monitoring
from siltstone.serve.sections import OWNERS

webdriver = pytest.importorskip("selenium.webdriver")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs Debian's packages chromium and chromium-driver"
    ),
    pytest.mark.slow,
]
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage"
).split()
WAIT_SECONDS = 20


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(DRIVER)
    browser = webdriver.Chrome(options=options, service=service)
    browser.set_window_size(1280, 1000)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a cache that was used for a while, by its own records."""
    folder = tmp_path_factory.mktemp("data")
    with Cache(folder / "cache", ram="4MiB", flash="8MiB", segment_size="256KiB") as cache:
        metrics = Metrics(folder / "metrics", retention_size="32MiB")
        flags = {"http": {"listen": "127.0.0.1:0", "record": False}}
        monitoring = Monitoring(metrics, cache, load(OWNERS, flags=flags), None)
        now = SYSTEM_CLOCK.now_ms() / 1000
        for second in range(120):
            for number in range(20):
                cache[second, number] = bytes(500)
                cache.get((second // 2, number))
            for sample in monitoring.observer.samples():
                metrics.append(sample.name, sample.labels, now - 120 + second, sample.value)
        monitoring.start()
        yield f"http://{monitoring.http.address if monitoring.http else None}"
        monitoring.close()


def until(browser: Any, script: str) -> Any:
    """What the script gives, once that is something."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, WAIT_SECONDS, 0.1).until(
        lambda one: one.execute_script(f"return {script}")
    )


def no_complaints(browser: Any) -> None:
    """Nothing on the console: no error, nothing that the content policy refused."""
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def opened(browser: Any, address: str, page: str) -> None:
    browser.get("about:blank")
    browser.get(f"{address}/#{page}")


def test_the_overview_shows_numbers_and_charts(browser: Any, address: str) -> None:
    opened(browser, address, "overview")
    charts = until(browser, "document.querySelectorAll('#charts .u-over').length >= 8 && 8")
    assert charts == 8
    tiles = browser.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('.tile')]"
        ".map(tile => tile.innerText.split('\\n')))"
    )
    assert tiles["hit ratio"].endswith("%")
    assert tiles["items in RAM"] not in ("\u2013", "0")
    assert tiles["series"] != "\u2013"
    no_complaints(browser)


def test_the_segment_maps(browser: Any, address: str) -> None:
    opened(browser, address, "segments")
    titles = until(
        browser, "[...document.querySelectorAll('.map h2')].map(title => title.textContent)"
    )
    assert [title.split(":")[0] for title in titles] == ["cache", "metrics"]
    drawn = browser.execute_script(
        "const c = document.querySelector('.map canvas');"
        "return new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    )
    assert drawn > 4  # more than one colour
    no_complaints(browser)


def test_a_question_and_a_mistake(browser: Any, address: str) -> None:
    opened(browser, address, "query")
    until(browser, "document.querySelectorAll('#names button').length")
    box = browser.find_element("id", "promql")
    box.send_keys("siltstone_cache_items\n")
    rows = until(
        browser, "[...document.querySelectorAll('#answer-table tr')].map(row => row.innerText)"
    )
    assert rows[0].startswith("series (2)")
    assert any('tier="flash"' in row for row in rows)
    no_complaints(browser)
    box.clear()
    box.send_keys("rate(\n")
    assert "parse error" in until(
        browser,
        "!document.getElementById('problem').hidden"
        " && document.getElementById('problem').textContent",
    )


@pytest.mark.parametrize("width", [360, 768])
def test_narrow_screens_do_not_scroll_sideways(browser: Any, address: str, width: int) -> None:
    browser.set_window_size(max(width, 500), 900)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    for page in ("overview", "segments", "query"):
        opened(browser, address, page)
        until(browser, f"!document.getElementById('{page}').hidden")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
