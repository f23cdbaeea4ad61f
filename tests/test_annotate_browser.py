"""Both forms in a real browser, from the invitation to the export, on a desk and on a phone."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from campaign import LINK, Campaign, write_items

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium in PATH: apt-get install chromium, or set CHROMIUM"),
]
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
#: a machine that is busy takes its time over a password's hash and a first page
PATIENCE_MS = 120_000


#: texts whose contrast with what is behind them is below what WCAG 2.2 asks for (1.4.3: 4.5, 3 where large)
FAINT = """() => {
  const parts = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = rgb => rgb.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const found = parts(getComputedStyle(node).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), faint = [];
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), node = walker.currentNode.parentElement;
    if (!text || !node.checkVisibility() || ['SCRIPT', 'STYLE'].includes(node.tagName)) continue;
    const style = getComputedStyle(node), [a, b] = [light(parts(style.color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) faint.push(`${text}: ${ratio.toFixed(2)}`);
  }
  return faint;
}"""
#: where the keyboard is: its name, and whether a ring is drawn around it or what stands for it
FOCUS = """() => {
  const node = document.activeElement;
  const shown = [node, ...(node.labels || []), node.parentElement, node.nextElementSibling].filter(Boolean);
  const ringed = each => (style => style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0)(
    getComputedStyle(each));
  return [node.tagName, shown.some(ringed)];
}"""
FORMS: dict[str, dict[str, Any]] = {
    "pairwise": {"kind": "pairwise"},
    "direct": {"kind": "direct"},
    "likert": {"kind": "direct", "criteria": [{"name": "fluency", "question": "Is it fluent?", "scale": "likert"}]},
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def listening() -> Iterator[Any]:
    """Serves a campaign from this process; gives its address."""
    servers: list[uvicorn.Server] = []

    def serve(campaign: Campaign) -> str:
        server = uvicorn.Server(uvicorn.Config(campaign.app, port=0, log_level="warning"))
        servers.append(server)
        threading.Thread(target=server.run, daemon=True).start()
        while not server.started:
            time.sleep(0.02)
        return f"http://localhost:{server.servers[0].sockets[0].getsockname()[1]}"

    yield serve
    for server in servers:
        server.should_exit = True


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", FORMS)
def test_from_the_invitation_to_the_export(kind: str, size: str, chromium: Any, listening: Any, tmp_path: Path) -> None:
    campaign = Campaign(write_items(tmp_path / "items.jsonl", 2), form=FORMS[kind], overlap=1)
    base = listening(campaign)
    invited = campaign.manager().send("/manage", "/manage/invite", note="Ann").text
    width, height = SIZES[size]
    page = chromium.new_context(viewport={"width": width, "height": height}).new_page()
    page.set_default_timeout(PATIENCE_MS)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.goto(base + LINK.search(invited).group(2))
    with page.expect_navigation():
        page.get_by_role("button", name="Join").click()
    with page.expect_navigation():
        page.get_by_role("link", name="Begin").click()
    while page.locator("#answer").count():
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off at the side"
        page.screenshot(path=tmp_path / "question.png", full_page=True)
        assert page.evaluate(FAINT) == []
        for _ in range(8):
            page.keyboard.press("Tab")
            where, ringed = page.evaluate(FOCUS)
            assert ringed or where == "BODY", f"who uses the keyboard does not see it at {where}"
        if kind == "pairwise":
            page.keyboard.press("a")
            assert page.get_by_role("radio", name="A is better").is_checked()
        elif kind == "likert":
            page.keyboard.press("4")
            assert page.get_by_role("radio", name="4").is_checked()
        else:
            page.get_by_role("slider").first.focus()
            for key in "753":
                page.keyboard.press(key)
        with page.expect_navigation():
            page.keyboard.press("Enter")
    assert "Thank you" in page.inner_text("h1")
    assert page.evaluate(FAINT) == []
    with page.expect_navigation():
        page.get_by_role("button", name="Undo the last answer").click()
    assert page.locator("#answer").count()
    with page.expect_navigation():
        page.keyboard.press("Enter")  # as it was answered before
    assert "Thank you" in page.inner_text("h1")
    manager = chromium.new_context().new_page()
    manager.set_default_timeout(PATIENCE_MS)
    manager.goto(f"{base}/login/{campaign.manager_token}")
    with manager.expect_navigation():
        manager.get_by_role("button", name="Sign in").click()
    assert manager.evaluate(FAINT) == []
    manager.screenshot(path=tmp_path / "manager.png", full_page=True)
    with manager.expect_download() as download:
        manager.get_by_role("link", name="answers.jsonl").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert len(lines) == (2 if kind == "pairwise" else 4)
    assert faults == []
