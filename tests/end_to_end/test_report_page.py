"""The report's page in a real browser: it sorts by mouse and keyboard, prints, is read aloud, and asks for nothing."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hpc_ewc.report.build import Options, report
from tests.unit.report_fixture import RunBuilder

TIMEOUT_S = 120


class Browser:
    """Chromium spoken to over a pipe, by the DevTools protocol: JSON messages that end in a zero byte."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, from_us = os.pipe()
        to_us, from_browser = os.pipe()
        # the browser reads from file descriptor 3 and writes to 4
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_browser, from_browser)]

        def wire() -> None:
            for fd, number in zip(high, (3, 4), strict=True):
                os.dup2(fd, number)

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            [program, *flags, "about:blank"],
            pass_fds=(3, 4),
            preexec_fn=wire,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (to_browser, from_browser, *high):
            os.close(fd)
        self.write_fd, self.read_fd = from_us, to_us
        self.buffer = b""
        self.events: list[dict[str, Any]] = []
        self.number = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session: str | None = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    session = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write_fd, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read_fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"chromium said nothing for {TIMEOUT_S} s"
            part = os.read(self.read_fd, 1 << 20)
            assert part, "chromium ended"
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        return dict(json.loads(line))

    def open(self, path: Path) -> None:
        for domain in ("Page", "Network", "Runtime", "Accessibility"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def run(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        shared = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **shared)
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        os.close(self.write_fd)
        os.close(self.read_fd)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    RunBuilder(folder / "runs" / "page", strengths=(0.0, 1e4, 1e12), tasks=("arc_easy", "mmlu"), n=24).build()
    formats = ("html",)
    return report([folder / "runs" / "page"], folder / "out", Options(formats), Console(quiet=True)) / "report.html"


@pytest.fixture(scope="module")
def browser(chromium: str, page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(chromium, tmp_path_factory.mktemp("profile"))
    try:
        opened.open(page)
        yield opened
    finally:
        opened.close()


FIRST_COLUMN = "[...document.querySelectorAll('#{key} ~ .scroll tbody tr')].map(row => row.cells[0].textContent)"
HEAD = "document.querySelectorAll('#{key} ~ .scroll thead th')[{place}]"


def order(browser: Browser, key: str) -> list[str]:
    return list(browser.run(FIRST_COLUMN.format(key=key)))


def test_a_table_sorts_down_up_and_back(browser: Browser) -> None:
    given = ["base", "0", "1e4", "1e12"]
    assert order(browser, "summary") == given
    head = HEAD.format(key="summary", place=1)
    values = browser.run(
        "Object.fromEntries([...document.querySelectorAll('#summary ~ .scroll tbody tr')]"
        ".map(row => [row.cells[0].textContent, Number(row.cells[1].dataset.sort)]))"
    )
    falling = sorted(given, key=lambda name: -values[name])
    rising = sorted(given, key=lambda name: values[name])
    for expected, state in ((falling, "descending"), (rising, "ascending"), (given, "none")):
        browser.run(f"{head}.querySelector('button').click()")
        assert order(browser, "summary") == expected
        assert browser.run(f"{head}.getAttribute('aria-sort')") == state


def test_rows_without_a_value_stay_below(browser: Browser) -> None:
    head = HEAD.format(key="summary", place=3)  # the base has no difference to itself
    for _ in range(2):
        browser.run(f"{head}.querySelector('button').click()")
        assert order(browser, "summary")[-1] == "base"
    browser.run(f"{head}.querySelector('button').click()")


def test_the_foot_of_a_table_is_not_sorted(browser: Browser) -> None:
    rows = "document.querySelector('#accuracy-en ~ .scroll tfoot').textContent.trim()"
    assert browser.run(rows).startswith("chance")
    browser.run(HEAD.format(key="accuracy-en", place=1) + ".querySelector('button').click()")
    assert browser.run(rows).startswith("chance")
    assert "chance" not in order(browser, "accuracy-en")


def test_a_table_sorts_by_the_keyboard(browser: Browser) -> None:
    head = HEAD.format(key="tradeoff", place=1)
    before = order(browser, "tradeoff")
    browser.run(f"{head}.querySelector('button').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.run(f"{head}.getAttribute('aria-sort')") == "descending"
    browser.press("Enter", 13, "\r")
    browser.press("Enter", 13, "\r")
    assert order(browser, "tradeoff") == before
    browser.run("document.activeElement.blur()")
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.tagName") in ("A", "BUTTON", "INPUT", "DIV")


def test_n_and_p_stand_beside_each_value_and_can_be_hidden(browser: Browser) -> None:
    small = "getComputedStyle(document.querySelector('#difference-en ~ .scroll td small')).display"
    words = browser.run("document.querySelector('#difference-en ~ .scroll td small').textContent")
    assert re.fullmatch(r"n=24, p[<=].*", words)
    assert browser.run(small) == "block"
    browser.run("document.getElementById('beside').click()")
    assert browser.run(small) == "none"
    browser.run("document.getElementById('beside').click()")
    assert browser.run(small) == "block"


def test_a_screen_reader_finds_names_heads_and_pictures(browser: Browser) -> None:
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]

    def names(role: str) -> list[str]:
        return [n.get("name", {}).get("value", "") for n in nodes if n.get("role", {}).get("value") == role]

    tables = names("table")
    assert "Kept and learnt" in tables
    assert all(tables)
    assert all(names("columnheader"))
    assert {"base", "1e12"} <= set(names("rowheader"))
    assert all(names("button"))
    pictures = names("image") or names("img")
    assert len(pictures) >= 4
    assert all("standard error" in name or "The numbers are in the table above" in name for name in pictures)
    headings = [
        int(level) for level in browser.run("[...document.querySelectorAll('h1,h2,h3')].map(h => h.tagName[1])")
    ]
    assert headings[0] == 1
    assert set(headings[1:]) == {2}
    assert browser.run("document.documentElement.lang") == "en"


def test_the_pictures_are_whole(browser: Browser) -> None:
    sizes = browser.run("[...document.images].map(image => [image.complete, image.naturalWidth])")
    assert sizes
    assert all(complete and width > 100 for complete, width in sizes)


@pytest.mark.parametrize("width", [360, 1280])
def test_no_head_or_cell_is_wider_than_the_page(browser: Browser, width: int) -> None:
    """Tables scroll in their own frame, where the names of the rows stay."""
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **screen)
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    frame = "document.querySelector('#summary ~ .scroll')"
    browser.run(f"{frame}.scrollLeft = 200")
    left = "document.querySelector('#summary ~ .scroll tbody th').getBoundingClientRect().left"
    assert browser.run(f"{left} - {frame}.getBoundingClientRect().left") == pytest.approx(1, abs=1)
    browser.run(f"{frame}.scrollLeft = 0")
    browser.call("Emulation.clearDeviceMetricsOverride")


def test_the_page_prints(browser: Browser, tmp_path: Path) -> None:
    pdf = base64.b64decode(browser.call("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert pdf.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 3 <= pages <= 30
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.run("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    paper = {"width": 1032, "height": 700, "deviceScaleFactor": 1, "mobile": False}  # A4, landscape, without margins
    browser.call("Emulation.setDeviceMetricsOverride", **paper)
    assert browser.run("Math.max(...[...document.querySelectorAll('table')].map(t => t.scrollWidth))") <= 1032
    browser.call("Emulation.clearDeviceMetricsOverride")
    browser.call("Emulation.setEmulatedMedia", media="")


def test_no_request_leaves_the_page(browser: Browser, page: Path) -> None:
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked[0] == page.as_uri()
    assert all(url == page.as_uri() or url.startswith("data:") for url in asked), asked
    refused = "fetch('data:,x').then(() => 'sent', error => String(error))"  # without a policy this needs no network
    assert "Failed to fetch" in browser.run(refused), "and its policy would not let it"
    assert not [event for event in browser.events if event.get("method") == "Runtime.exceptionThrown"]
