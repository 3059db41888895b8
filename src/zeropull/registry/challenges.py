"""What a 401's WWW-Authenticate asks for (RFC 9110, sections 11.2, 11.3 and 11.6.1).

One header may hold several challenges, and several headers are one list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - the grammar's word
_PARAMETER = re.compile(rf'({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_SCHEME = re.compile(_TOKEN)
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")
_ESCAPED = re.compile(r"\\(.)")


@dataclass(slots=True)
class Challenge:
    """`scheme` and the names of parameters are lower-case."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse_challenges(header: str) -> list[Challenge]:
    """Every challenge, in order. What cannot be read is passed over."""
    found: list[Challenge] = []
    position = 0
    while position < len(header):
        if header[position] in ", \t":
            position += 1
        elif found and (match := _PARAMETER.match(header, position)):
            value = match[3] if match[2] is None else _ESCAPED.sub(r"\1", match[2])
            found[-1].parameters.setdefault(match[1].lower(), value)
            position = match.end()
        elif match := _SCHEME.match(header, position):
            found.append(Challenge(match[0].lower()))
            position = match.end()
            if token68 := _TOKEN68.match(header, position):
                position = token68.end()
        else:
            position += 1
    return found
