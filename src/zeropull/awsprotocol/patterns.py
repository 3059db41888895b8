"""The models' regular expressions (Java's dialect) as Python's.

What differs: Unicode properties (`\\p{L}`), POSIX classes (`\\p{Print}`), `\\z`, and character
ranges written as surrogate pairs. A pattern must match the whole value.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache

# As they stand between the brackets of a character class.
_POSIX = {
    "Print": r"\x20-\x7e",
    "ASCII": r"\x00-\x7f",
    "Alnum": "a-zA-Z0-9",
    "Alpha": "a-zA-Z",
    "Digit": "0-9",
    "Graph": r"\x21-\x7e",
    "Space": r"\s",
}
_PROPERTY = re.compile(r"\\p\{(\w+)\}")
# Java counts UTF-16 units; the models spell "any supplementary character" as this pair.
_SUPPLEMENTARY = r"\uD800\uDC00-\uDBFF\uDFFF"


@cache
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The pattern for `fullmatch`."""
    text = pattern.replace(_SUPPLEMENTARY, "\\U00010000-\\U0010ffff")
    text = text.replace(r"\z", r"\Z")
    # Two patterns of SageMaker are written as `(...)${1,256}`: a slip, the length is checked apart.
    text = re.sub(r"\$\{\d+,\d+\}$", "$", text)
    output, at = "", 0
    for found in _PROPERTY.finditer(text):
        output += text[at : found.start()]
        members = _POSIX.get(found[1]) or _unicode_class(found[1])
        output += members if _is_in_class(text, found.start()) else f"[{members}]"
        at = found.end()
    return re.compile(output + text[at:])


def _is_in_class(text: str, position: int) -> bool:
    inside, at = False, 0
    while at < position:
        if text[at] == "\\":
            at += 1
        elif text[at] == "[" and not inside:
            inside = True
        elif text[at] == "]":
            inside = False
        at += 1
    return inside


@cache
def _unicode_class(category: str) -> str:
    """All characters of a general category ("L", "Zs") as ranges."""
    ranges: list[str] = []
    start: int | None = None
    for point in range(sys.maxunicode + 2):
        is_member = point <= sys.maxunicode and unicodedata.category(chr(point)).startswith(
            category
        )
        if is_member and start is None:
            start = point
        elif not is_member and start is not None:
            ranges.append(f"\\U{start:08x}-\\U{point - 1:08x}")
            start = None
    return "".join(ranges)
