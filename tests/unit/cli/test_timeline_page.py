from __future__ import annotations

from html.parser import HTMLParser

import pytest

from tests.unit.cli.statuses import HOSTILE, timeline
from zeropull.admin.messages import Timeline
from zeropull.cli.timeline_page import render_page

NOW_S = 20.0


class Page(HTMLParser):
    """Collects tags and text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", HOSTILE)
def test_what_comes_from_outside_is_text_on_the_page(text: str) -> None:
    page = Page(render_page(timeline(text), NOW_S))
    assert text in page.text
    assert page.tags == Page(render_page(timeline("plain"), NOW_S)).tags


def test_a_page_tells_stages_bytes_and_seconds() -> None:
    page = Page(render_page(timeline("demo"), NOW_S))
    for fact in ("4.00 s", "not ready, 10.00 s", "8 of 9 layers from the cache", "registry: 5 B"):
        assert fact in page.text


def test_a_page_without_launches_is_a_page() -> None:
    assert "0 launches" in Page(render_page(Timeline("demo", "uid", ()), NOW_S)).text
