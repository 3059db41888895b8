"""Text from outside, such as names, reasons and lines of containers, for the terminal."""

from __future__ import annotations

from rich.text import Text


def escaped(line: str) -> str:
    """One line in which every control character but a tab is written out: ESC as "\\x1b"."""
    if line.isprintable():
        return line
    return "".join(
        each if each.isprintable() or each == "\t" else repr(each)[1:-1] for each in line
    )


def plain(text: str, style: str = "") -> Text:
    """`text` exactly as it is: Rich finds no markup in it (`[/path]` would be a closing tag), and
    the terminal no escape sequence. Characters that cannot be printed are shown as "?"."""
    shown = "".join(each if each.isprintable() or each == "\n" else "?" for each in text)
    return Text(shown, style=style)
