"""Messages of the Debug Adapter Protocol: a length, an empty line, one JSON object.

https://microsoft.github.io/debug-adapter-protocol/specification, version 1.x.
"""

from __future__ import annotations

import json
from typing import IO, Any, Final

from mmurace.protocol.errors import UserError

BODY_BYTES_MAX: Final = 16 * 1024 * 1024
"""Far more than a debugger asks."""
HEADER_BYTES_MAX: Final = 4096
_LENGTH: Final = b"content-length:"


def read_message(stream: IO[bytes]) -> dict[str, Any] | None:
    """The next message; None at the end of the stream.  Raises ``UserError`` for what is none."""
    length = _length(stream)
    if length is None:
        return None
    body = stream.read(length)
    if len(body) < length:
        return None
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError("stdin", f"is not JSON: {error}", "the Debug Adapter Protocol") from None
    if not isinstance(message, dict):
        raise UserError("stdin", "is no object", "the Debug Adapter Protocol")
    return message


def _length(stream: IO[bytes]) -> int | None:
    length = None
    while line := stream.readline(HEADER_BYTES_MAX):
        text = line.strip()
        if not line.endswith(b"\n") and len(line) < HEADER_BYTES_MAX:
            return None  # the stream ends in it
        if not text and length is not None:
            return length
        if text.lower().startswith(_LENGTH):
            length = _number(text[len(_LENGTH) :])
        elif text and b":" not in text:
            raise UserError("stdin", "has no Content-Length", "the Debug Adapter Protocol")
    return None


def _number(text: bytes) -> int:
    try:
        length = int(text)
    except ValueError:
        length = -1
    if not 0 <= length <= BODY_BYTES_MAX:
        raise UserError("stdin", "Content-Length is no length", f"0 to {BODY_BYTES_MAX}")
    return length


def write_message(stream: IO[bytes], message: dict[str, Any]) -> None:
    """Write one message, at once."""
    body = json.dumps(message, default=str).encode()
    stream.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    stream.flush()
