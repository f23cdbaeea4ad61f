"""Plain progress: a line now and then while work gets on, and one now and then while it does not."""

from __future__ import annotations

import time

import pytest

from tilth import ui


def test_work_that_gets_nowhere_is_heard_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ui, "SILENT_SECONDS", 0.05)
    with ui.Reporter("plain").progress("loading", 8, "units"):
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1
    assert set(lines) == {"loading: 0 of 8 units, 0 s"}


def test_work_that_gets_on_is_told_of_seldom(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ui, "PLAIN_SECONDS", 0.2)
    start = time.monotonic()
    with ui.Reporter("plain").progress("reading", 100) as advance:
        for _ in range(100):
            time.sleep(0.011)
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 2 + (time.monotonic() - start) / 0.2
    assert lines[-1].startswith("reading: 100 of 100 rows, ")


def test_quick_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ui.Reporter("plain").progress("reading", 1) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")
