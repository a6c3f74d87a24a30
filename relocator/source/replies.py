"""A verb's reply on the wire: made by running/exports.py, read by remote.py.

One line of JSON, then the packed maps that the line's `attachments` tells the places of. The line
begins with a name that no disk begins with, so a server that serves its disk under every export
name is not taken for a relocator.
"""

import json
from typing import Any

MAGIC = "relocator-1"
FIRST_READ_BYTES = 8 << 10  # less than what TCP sends at once over a connection that was idle

#: a verb's fields, and maps by name
Reply = tuple[dict[str, Any], dict[str, bytes]]


def encode(reply: Reply) -> bytes:
    """A verb's reply as bytes."""
    fields, attachments = reply
    places: dict[str, tuple[int, int]] = {}
    body = b""
    for name, content in attachments.items():
        places[name] = (len(body), len(content))
        body += content
    line = json.dumps({"relocator": MAGIC, **fields, "attachments": places}) + "\n"
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
