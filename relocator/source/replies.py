"""A verb's reply on the wire: made by running/exports.py, read by remote.py.

One line of JSON, then the packed maps that the line's `attachments` tells the places of, and behind
them perhaps `rest`, content of the disk. The line begins with a name that no disk begins with, so a
server that serves its disk under every export name is not taken for a relocator.
"""

import json
from typing import Any, NamedTuple, Protocol

MAGIC = "relocator-1"
FIRST_READ_BYTES = 8 << 10  # less than what TCP sends at once over a connection that was idle


class Content(Protocol):
    """Bytes that are read when they are asked for."""

    size_bytes: int

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the content at `offset`."""


class Reply(NamedTuple):
    """A verb's fields, maps by name, and what of the disk comes with them."""

    fields: dict[str, Any]
    attachments: dict[str, bytes] = {}  # noqa: RUF012 (never changed)
    rest: Content | None = None


def encode(reply: Reply) -> bytes:
    """A verb's reply as bytes, up to its `rest`, which follows."""
    places: dict[str, tuple[int, int]] = {}
    body = b""
    for name, content in reply.attachments.items():
        places[name] = (len(body), len(content))
        body += content
    if reply.rest is not None:
        places["rest"] = (len(body), reply.rest.size_bytes)
    line = json.dumps({"relocator": MAGIC, **reply.fields, "attachments": places}) + "\n"
    return line.encode() + body


def decode_line(data: bytes) -> tuple[dict[str, Any], int] | None:
    """The line of a reply and where its attachments begin; None if this is no such reply."""
    end = data.find(b"\n", 0, FIRST_READ_BYTES)
    if end < 0 or not data.startswith(b'{"relocator": "' + MAGIC.encode()):
        return None
    try:
        fields = json.loads(data[:end])
    except ValueError:
        return None
    return (fields, end + 1) if isinstance(fields, dict) else None
