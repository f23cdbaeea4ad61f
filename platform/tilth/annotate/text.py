"""Texts of strangers as HTML that can do nothing."""

from __future__ import annotations

from functools import cache
from html import escape

from markdown_it import MarkdownIt
from markupsafe import Markup


@cache
def _markdown() -> MarkdownIt:
    """CommonMark with tables; HTML in it stays text, and a picture, which would be fetched, stays its words."""
    return MarkdownIt("commonmark", {"html": False, "linkify": False, "breaks": True}).enable("table").disable("image")


def shown(text: str, form: str = "markdown") -> Markup:
    """`text` as safe HTML: rendered Markdown, or the characters as they are; that it is empty, where it is."""
    if not text.strip():
        return Markup('<p class="empty">(empty)</p>')
    if form == "text":
        return Markup(f'<pre class="plain">{escape(text)}</pre>')
    html: str = _markdown().render(text)
    html = html.replace("<a href=", '<a target="_blank" rel="noopener noreferrer nofollow" href=')
    return Markup(html.replace("<pre>", '<pre tabindex="0">'))
