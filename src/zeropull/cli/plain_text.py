"""Text from outside, such as names, reasons and lines of containers, for the terminal."""

from __future__ import annotations

from rich.text import Text


def plain(text: str, style: str = "") -> Text:
    """`text` exactly as it is: Rich finds no markup in it (`[/path]` would be a closing tag), and
    the terminal no escape sequence. Characters that cannot be printed are shown as "?"."""
    shown = "".join(each if each.isprintable() or each == "\n" else "?" for each in text)
    return Text(shown, style=style)
