"""What a proxy asks of its source besides blocks: the other end of running/exports.py.

A source that is not ours has none of it: it refuses the export's name, or serves its disk under
every name, which the reply's magic tells. Then everything works but heat, pre-seed, sealing and the
return trip, and the status says so.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import Thread
from typing import Any, TypeVar

from relocator import words
from relocator.errors import (
    OtherDiskError,
    RelocatorError,
    ShutOutError,
    StateError,
    UpstreamError,
)
from relocator.filesystem.rounds import Rounds, serve
from relocator.source.answer import Answer, Asked
from relocator.source.endpoint import Endpoint
from relocator.source.handles import (
    connected,
    exports_at,
    hang_up,
    open_handle,
    read,
    read_many,
)
from relocator.source.incoming import Incoming, end_later, is_quiet
from relocator.source.replies import FIRST_READ_BYTES, check, decode_line

T = TypeVar("T")
#: refuses who gives this answer to `identify`, by an OtherDiskError
Look = Callable[[Answer], None]
#: what a relocator of any version lists among its exports, and hardly anybody else
_OURS = frozenset({"control", "dirty", "diverged"})


def _unknown(error: StateError) -> OtherDiskError:
    return OtherDiskError(f"it can't be told which disk this is: {error}")


def _fail(error: UpstreamError) -> Answer:
    raise error


def _hang_up(handles: dict[str, Any]) -> None:
    """Hang up those that nobody takes meanwhile."""
    for verb in list(handles):
        if (handle := handles.pop(verb, None)) is not None:
            hang_up(handle)


class Source:
    """Control of the source at `endpoint`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._ready: dict[str, Any] = {}

    def prepare(self, *verbs: str, look: Look | None = None) -> None:
        """Connect for `verbs` now, and no other, so that carrying them out takes one round trip.

        Until all are connected what was ready before stays so.

        Raises:
            UpstreamError: the source can't be reached, or has no such export; as before.
            OtherDiskError: `look` refuses it.
        """
        opened = self._open_all(verbs, look)
        before, self._ready = self._ready, opened
        _hang_up(before)

    def _open_all(self, verbs: Sequence[str], look: Look | None) -> dict[str, Any]:
        """Connections for `verbs`, made at once; errors as of `prepare`.

        Who answers is looked at once they are connected: what takes that server's place later is
        not reached over them, and nothing of them is asked before. Where that is a connection too
        many, it is looked at first.
        """
        if look is None:
            return self._connect_all(verbs)
        try:
            opened = self._connect_all([*verbs, "identify"])
        except UpstreamError as error:
            if error.is_away:
                raise
            look(self._who(self._open("identify")))
            return self._connect_all(verbs)
        try:
            look(self._who(opened.pop("identify")))
        except RelocatorError:
            _hang_up(opened)
            raise
        return opened

    def _connect_all(self, verbs: Sequence[str]) -> dict[str, Any]:
        """A connection for each verb, made at once; an UpstreamError if one can't be."""
        opened: dict[str, Any] = {}
        errors: list[UpstreamError] = []

        def connect(verb: str) -> None:
            try:
                opened[verb] = self._open(verb)
            except UpstreamError as error:
                errors.append(error)

        threads = [Thread(target=connect, args=(verb,), daemon=True) for verb in verbs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            _hang_up(opened)
            raise errors[0]
        return opened

    def _who(self, handle: Any) -> Answer:
        """What is answered to `identify`, without its maps: one round trip, and hung up."""
        incoming = Incoming(handle)
        try:
            fields, _, _ = self._line("identify", incoming)
        except StateError as error:
            raise _unknown(error) from error
        finally:
            incoming.end()
        return Answer(fields, {})

    def is_ready(self, *verbs: str) -> bool:
        """Whether a connection is ready for each of `verbs`, and none has been lost meanwhile."""
        ready = dict(self._ready)
        return all(verb in ready and is_quiet(ready[verb]) for verb in verbs)

    def unprepare(self) -> None:
        """Hang up what is ready and was not used: it would keep the source's server from ending."""
        ready, self._ready = self._ready, {}
        _hang_up(ready)

    def _open(self, verb: str) -> Any:
        return open_handle(self.endpoint.with_export(f"control/{verb}"))

    def identify(self) -> Answer | None:
        """Who the source is, without the maps that it would bring; None if it is not ours.

        That it has not answered says nothing: it may have been away for a moment, or some of the
        connections to it may fail and others not. What it lists tells.

        Raises:
            UpstreamError: it can't be reached, or wants a key: a relocator must never be taken for
                something else.
            OtherDiskError: it refuses to say, as no relocator does.
        """
        try:
            return self._who(self._open("identify"))
        except OtherDiskError:
            raise
        except UpstreamError:
            if not exports_at(self.endpoint) >= _OURS:
                return None
        return self._who(self._open("identify"))

    def call(
        self,
        verb: str,
        rest_bytes: int = 0,
        parts: Sequence[str] = (),
        look: Look | None = None,
    ) -> Answer:
        """Carry out a verb at the source; `rest_bytes` of the disk are expected with the answer.

        `parts` are verbs that bring the same together, each over a connection of its own. They are
        asked for instead if a connection is ready for the first of them. Where none is ready, who
        answers is looked at first, which takes a round trip more.

        Raises:
            UpstreamError: the source can't be reached, is not ours, or wants a key. Who asks again
                connects anew, also where it was silent over what was ready.
            OtherDiskError: `look` refuses it; it was not asked.
            StateError: it refused.
        """
        first, *further = parts or [verb]
        if (incoming := self._take(first, rest_bytes)) is not None:
            others = [self._ask_too(part, rest_bytes) for part in further]
            try:
                answer = self._ask(first, incoming, rest_bytes)
                return replace(answer, others=tuple(others))
            except RelocatorError as error:
                end_later(other.incoming for other in others if other.incoming is not None)
                if not isinstance(error, UpstreamError) or error.is_away:
                    raise  # else the connection has died since it was made ready
        handle = self._open(verb) if look is None else self._open_all([verb], look)[verb]
        return self._ask(verb, Incoming(handle, more=bool(rest_bytes)), rest_bytes)

    def _take(self, verb: str, rest_bytes: int) -> Incoming | None:
        """Ask for `verb` if a connection is ready for it."""
        with suppress(UpstreamError):  # it was made ready long ago and has died since
            if (ready := self._ready.pop(verb, None)) is not None:
                return Incoming(ready, more=bool(rest_bytes))
        return None

    def _ask_too(self, verb: str, rest_bytes: int) -> Asked:
        """As `_take`, for something that is waited for later."""
        if (incoming := self._take(verb, rest_bytes)) is not None:
            return Asked(partial(self._understand, verb, incoming, rest_bytes), incoming)
        what = f"nothing is ready for '{verb.partition('/')[0]}'"
        return Asked(partial(_fail, UpstreamError(what)))

    def _ask(self, verb: str, incoming: Incoming, asked_bytes: int) -> Answer:
        """What comes in, which is ended where that is not what was asked for."""
        try:
            return self._understand(verb, incoming, asked_bytes)
        except RelocatorError:
            end_later([incoming])
            raise

    def _line(
        self, verb: str, incoming: Incoming
    ) -> tuple[dict[str, Any], int, dict[str, tuple[int, int]]]:
        """An answer's fields, where it ends, and the places of what comes behind."""
        found = decode_line(incoming.read(0, FIRST_READ_BYTES))
        if found is None:
            raise UpstreamError(f"the source {self.endpoint.uri} is not a relocator")
        fields, start = found
        verb = verb.partition("/")[0]  # a seal's name is nobody else's business
        try:
            places = check(fields)
        except ValueError as error:
            what = f"the source's answer to '{verb}' can't be understood: {error}"
            raise UpstreamError(what) from error
        if not fields["ok"]:
            why = words.printable(str(fields["error"]))
            if fields.get("shut"):
                raise ShutOutError(f"the source {self.endpoint.uri} refused '{verb}': {why}")
            raise StateError(f"the source refused '{verb}': {why}")
        return fields, start, places

    def _understand(self, verb: str, incoming: Incoming, asked_bytes: int) -> Answer:
        fields, start, places = self._line(verb, incoming)
        end = max((at + length for at, length in places.values()), default=0)
        rest_at, rest_bytes = places.pop("rest", (0, 0))
        if rest_bytes > asked_bytes:
            raise UpstreamError("the source's answer brings more than it was asked for")
        incoming.ask(start + end)
        maps = {
            name: incoming.read(start + at, length, timeout_s=60.0)
            for name, (at, length) in places.items()
        }
        if not asked_bytes:
            incoming.end()
            return Answer(fields, maps)
        return Answer(fields, maps, rest_bytes, (), start + rest_at, incoming)

    def export(self, name: str, most_bytes: int) -> bytes:
        """The whole content of a further export, such as `heat`.

        Raises:
            UpstreamError: it can't be read, or is longer than `most_bytes`.
        """
        with connected(self.endpoint.with_export(name)) as handle:
            size = handle.get_size()
            if size > most_bytes:
                raise UpstreamError(f"the source's export '{name}' has {size} bytes; too many")
            return b"".join(
                read(handle, at, min(1 << 20, size - at), timeout_s=60.0)
                for at in range(0, size, 1 << 20)
            )

    def serve(self, rounds: Rounds[T]) -> T:
        """Serve the rounds of a reader from the disk itself, each in one round trip.

        Raises:
            UpstreamError: the source can't be reached, or fails a read.
        """
        with connected(self.endpoint) as handle:
            return serve(rounds, lambda wanted: read_many(handle, wanted, timeout_s=60.0))

    def reader(self, name: str) -> Callable[[int, int], bytes]:
        """A function `(offset, length)` that reads from a further export."""
        handle = open_handle(self.endpoint.with_export(name))
        return lambda offset, length: read(handle, offset, length, timeout_s=60.0)
