"""application/vnd.amazon.eventstream: frames of headers and payload, with two CRC-32.

https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html and
https://smithy.io/2.0/aws/amazon-eventstream.html. All integers are big-endian:

    total length u32 | headers length u32 | CRC of these 8 bytes | headers | payload | CRC of all
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

from isal.isal_zlib import crc32

from zeropull.errors import IntegrityError

CONTENT_TYPE = "application/vnd.amazon.eventstream"
MAX_PAYLOAD_BYTES = 16 << 20
MAX_HEADERS_BYTES = 128 << 10
_STRING = 7
_OVERHEAD = 16
_PRELUDE = struct.Struct(">II")
_CRC = struct.Struct(">I")
# Header value types by number: struct format of those with a fixed size.
_FIXED = {2: ">b", 3: ">h", 4: ">i", 5: ">q", 8: ">q"}


@dataclass(frozen=True, slots=True)
class Event:
    headers: dict[str, str | bytes | int | bool]
    payload: bytes


def encode_event(headers: dict[str, str], payload: bytes | memoryview) -> bytes:
    """One frame; header values are strings."""
    return _frame(_encode_headers(headers), payload)


def encode_payload_part(payload: bytes | memoryview) -> bytes:
    """One piece of the container's answer, as InvokeEndpointWithResponseStream sends it."""
    return _frame(_PAYLOAD_PART, payload)


def encode_exception(kind: str, members: dict[str, str]) -> bytes:
    """An error after the first byte, for example ModelStreamError with Message and ErrorCode."""
    headers = {
        ":message-type": "exception",
        ":exception-type": kind,
        ":content-type": "application/json",
    }
    return encode_event(headers, json.dumps(members).encode())


class EventDecoder:
    """Collects bytes as they arrive and gives out whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Event]:
        """The frames that `data` completes.

        Raises:
            IntegrityError: a CRC or a length is wrong; the stream cannot be used any more.
        """
        self._buffer += data
        events = []
        while (event := self._take()) is not None:
            events.append(event)
        return events

    @property
    def pending_bytes(self) -> int:
        return len(self._buffer)

    def _take(self) -> Event | None:
        if len(self._buffer) < 12:
            return None
        total, headers_length, prelude_crc = struct.unpack_from(">III", self._buffer)
        if crc32(self._buffer[:8]) != prelude_crc:
            raise IntegrityError("event stream: the prelude does not match its CRC")
        if headers_length > MAX_HEADERS_BYTES or not (
            _OVERHEAD + headers_length <= total <= _OVERHEAD + headers_length + MAX_PAYLOAD_BYTES
        ):
            raise IntegrityError(
                f"event stream: impossible lengths (total {total}, headers {headers_length} bytes)"
            )
        if len(self._buffer) < total:
            return None
        frame = bytes(self._buffer[:total])
        del self._buffer[:total]
        if crc32(frame[:-4]) != struct.unpack_from(">I", frame, total - 4)[0]:
            raise IntegrityError("event stream: the message does not match its CRC")
        return Event(
            _decode_headers(frame[12 : 12 + headers_length]), frame[12 + headers_length : -4]
        )


def _encode_headers(headers: dict[str, str]) -> bytes:
    parts = []
    for name, value in headers.items():
        raw_name, raw = name.encode(), value.encode()
        parts.append(struct.pack(">B", len(raw_name)) + raw_name)
        parts.append(struct.pack(">BH", _STRING, len(raw)) + raw)
    return b"".join(parts)


# There is one for each token of a stream.
_PAYLOAD_PART = _encode_headers(
    {
        ":message-type": "event",
        ":event-type": "PayloadPart",
        ":content-type": "application/octet-stream",
    }
)


def _frame(head: bytes, payload: bytes | memoryview) -> bytes:
    prelude = _PRELUDE.pack(_OVERHEAD + len(head) + len(payload), len(head))
    prelude_crc = crc32(prelude)
    raw_crc = _CRC.pack(prelude_crc)
    # crc32 continues from a running value: nothing is hashed or copied twice.
    crc = crc32(payload, crc32(head, crc32(raw_crc, prelude_crc)))
    return b"".join((prelude, raw_crc, head, payload, _CRC.pack(crc)))


def _decode_headers(data: bytes) -> dict[str, str | bytes | int | bool]:
    headers: dict[str, str | bytes | int | bool] = {}
    at = 0
    try:
        while at < len(data):
            end = at + 1 + data[at]
            name, kind = data[at + 1 : end].decode(), data[end]
            at = end + 1
            if kind in (0, 1):
                headers[name] = kind == 0
            elif kind in _FIXED:
                headers[name] = int(struct.unpack_from(_FIXED[kind], data, at)[0])
                at += struct.calcsize(_FIXED[kind])
            elif kind in (6, _STRING, 9):
                length = 16 if kind == 9 else int(struct.unpack_from(">H", data, at)[0])
                at += 0 if kind == 9 else 2
                if at + length > len(data):
                    raise IntegrityError("event stream: a header is cut short")
                raw = data[at : at + length]
                headers[name] = raw.decode() if kind == _STRING else raw
                at += length
            else:
                raise IntegrityError(f"event stream: unknown header type {kind}")
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise IntegrityError("event stream: a header is malformed") from error
    return headers
