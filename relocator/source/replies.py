"""A verb's reply on the wire: made by running/exports.py, read by remote.py.

What comes from another site is looked at before it is used: see `check`.

One line of JSON, then the packed maps that the line's `attachments` tells the places of, and behind
them perhaps `rest`, content of the disk. The line begins with a name that no disk begins with, so a
server that serves its disk under every export name is not taken for a relocator.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

MAGIC = "relocator-1"
#: of what comes with an answer, in bytes: a map of the most blocks there can be, and then some
MOST_ATTACHED_BYTES = 128 << 20
_MOST_NAME = 64
#: of an answer, in which its line is
FIRST_READ_BYTES = 8 << 10
#: so much is asked for before the line says how much there is: what TCP sends at once over a
#: connection that was idle (ten segments). More would come no sooner, and past an answer's end it
#: would be padding that keeps the link from the guest's reads
AT_ONCE_BYTES = 13 << 10


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
    except (ValueError, RecursionError):
        return None
    return (fields, end + 1) if isinstance(fields, dict) else None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 10**18


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MOST_NAME


def _is_base(value: Any) -> bool:
    keys = {"id": _is_name, "epoch": _is_count, "seal": _is_name_or_none}
    return value is None or (
        isinstance(value, dict) and all(key in value and keys[key](value[key]) for key in keys)
    )


def _is_name_or_none(value: Any) -> bool:
    return value is None or _is_name(value)


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e12


def _is_size(value: Any) -> bool:
    return _is_count(value) and value > 0 and value & (value - 1) == 0


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


#: what a field of an answer must be, if it is there
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "ok": _is_switch,
    "id": _is_name,
    "epoch": _is_count,
    "seal": _is_name_or_none,
    "rest_of": _is_name,
    "base": _is_base,
    "block_bytes": _is_size,
    "group_bytes": _is_size,
    "time_s": _is_time,
    "unsealed": _is_switch,
    "outdated": _is_switch,
    "kept": _is_switch,
    "shut": _is_switch,
}


def check(fields: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Whether an answer's fields are what they must be; the places of its attachments.

    Raises:
        ValueError: one is not; says which.
    """
    for name, fits in _FIELDS.items():
        if name in fields and not fits(fields[name]):
            raise ValueError(f"{name}={fields[name]!r:.80}")
    if "ok" not in fields or not isinstance(found := fields.get("attachments"), dict):
        raise ValueError("it has no 'ok' or no 'attachments'")
    if not fields["ok"] and not fields.get("error"):
        raise ValueError("it refuses without saying why")
    places: dict[str, tuple[int, int]] = {}
    for name, place in found.items():
        known = isinstance(place, list) and len(place) == 2 and all(map(_is_count, place))
        if not known or sum(place) > MOST_ATTACHED_BYTES:
            raise ValueError(f"attachments: {name!r:.80}={place!r:.80}")
        places[name] = place[0], place[1]
    return places
