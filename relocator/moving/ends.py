"""A disk that moves: its proxy at the destination, and its server at the source.

The proxy is asked over its control socket. The source is asked over its own, or, where the operator
gave an NBD URI, over the wire that the proxy uses too (`control/identify`, docs/exports.md).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from relocator import words
from relocator.client import Client
from relocator.errors import ConfigError, RelocatorError
from relocator.moving.address import Address, parse
from relocator.moving.reach import Reach
from relocator.source.key import Key

T = TypeVar("T")
PATIENCE_S = 10.0
_URIS = ("nbd://", "nbds://", "nbd+unix://", "nbds+unix://")


class SourceEnd(Protocol):
    """The server of the disk at the source."""

    def identify(self) -> dict[str, Any]:
        """Who it is: `id`, `epoch`, `seal`, `moved`; RelocatorError if it can't be asked."""

    def unseal(self, word: str | None = None, *, force: bool = False) -> None:
        """Let the VM there write again; RelocatorError if it is refused, or can't be told.

        `word` is the seal that the proxy says it has given back: asked for later, it is refused.
        `force`: the proxy can't be asked, and it is certain that it never let a write pass; should
        it do so later, it is outdated.
        """


class Control(Protocol):
    """A control socket, as `Client`."""

    def call(self, verb: str, patience_s: float | None = ..., **arguments: Any) -> dict[str, Any]:
        """Carries out a verb; RelocatorError if it is refused, or nobody can be asked."""


class Anywhere:
    """A control socket at an address, which is looked for at each call: an ssh may have ended."""

    def __init__(self, address: Address, reach: Reach) -> None:
        self._address = address
        self._reach = reach

    def call(self, verb: str, patience_s: float | None = 60.0, **arguments: Any) -> dict[str, Any]:
        """As Client.call."""
        client = Client(self._reach.path(self._address), str(self._address))
        return client.call(verb, patience_s, **arguments)


class ByControl:
    """A source by its control socket."""

    def __init__(self, client: Control) -> None:
        self._client = client

    def identify(self) -> dict[str, Any]:
        """Who it is."""
        return self._client.call("identify", PATIENCE_S)

    def unseal(self, word: str | None = None, *, force: bool = False) -> None:
        """Undo its seal."""
        if word is not None:
            self._client.call("unseal", PATIENCE_S, withdrawn=word)
        if self.identify()["seal"] is not None:
            self._client.call("unseal", PATIENCE_S, force=force)


class ByNbd:
    """A source by its NBD URI."""

    def __init__(self, uri: str, key: Key | None) -> None:
        from relocator.source.endpoint import Endpoint
        from relocator.source.remote import Source

        endpoint = Endpoint(uri, key=key)
        problem = endpoint.problem()
        if problem is None and (conflict := endpoint.conflict()):
            problem = f"{conflict}; a move is not given them: name the target's control socket"
        if problem:
            raise ConfigError(f"--disk={words.without_password(uri)}: {problem}")
        self._source = Source(endpoint)

    def identify(self) -> dict[str, Any]:
        """Who it is."""
        return self._source.call("identify").fields

    def unseal(self, word: str | None = None, *, force: bool = False) -> None:
        """Undo its seal."""
        seal = self.identify()["seal"]
        word = seal if force else word
        if word is not None and seal in (None, word):
            self._source.call(f"withdrawn/{word}")
        elif seal is not None:
            raise RelocatorError("it is sealed for another proxy; see `relocator unseal` there")


class NoSource:
    """A source that need not be asked."""

    def identify(self) -> dict[str, Any]:
        """Nobody is there."""
        raise RelocatorError("the source was not named")

    def unseal(self, word: str | None = None, *, force: bool = False) -> None:
        """Nobody is there."""
        del word, force
        raise RelocatorError("the source was not named")


class Disk:
    """One disk of the VM; `name` is what messages call it.

    `asks_for` is the seal that its proxy asked for when it was last heard of, if it was.
    """

    def __init__(self, name: str, source: SourceEnd, proxy: Control) -> None:
        self.name = name
        self.source = source
        self.asks_for: str | None = None
        self._proxy = proxy

    def call(
        self, verb: str, patience_s: float | None = PATIENCE_S, **arguments: Any
    ) -> dict[str, Any]:
        """A verb at the proxy; the error names the disk."""
        try:
            return self._ask(verb, patience_s, **arguments)
        except RelocatorError as error:
            raise RelocatorError(f"disk {self.name}: {error}") from error

    def status(self) -> dict[str, Any] | None:
        """The proxy's status; None if it can't be asked."""
        try:
            return self._ask("status", PATIENCE_S)
        except RelocatorError:
            return None

    def _ask(self, verb: str, patience_s: float | None, **arguments: Any) -> dict[str, Any]:
        answer = self._proxy.call(verb, patience_s, **arguments)
        self.asks_for = answer.get("asks_for") or self.asks_for
        return answer


def parse_disk(text: str) -> tuple[Address | str, Address]:
    """`SOURCE,DEST` of `--disk`: two control sockets, or an NBD URI and one.

    Raises:
        ConfigError: it is something else.
    """
    source, comma, proxy = text.rpartition(",")
    if not comma or not source or not proxy:
        raise ConfigError(
            f"--disk={text}: write SOURCE,DEST: the control sockets of the target and the proxy "
            "(SOURCE may be the target's NBD URI)"
        )
    there = source if source.startswith(_URIS) else parse("--disk", source, tcp=False)
    return there, parse("--disk", proxy, tcp=False)


def open_disk(text: str, reach: Reach, number: int, key: Key | None = None) -> Disk:
    """The disk that `--disk TEXT` means; `key` is that of a source by its URI."""
    source, proxy = parse_disk(text)
    end: SourceEnd = (
        ByNbd(source, key) if isinstance(source, str) else ByControl(Anywhere(source, reach))
    )
    stem = str(proxy).rpartition("/")[2]
    stem = stem.rpartition(".")[0] or stem
    return Disk(stem or str(number), end, Anywhere(proxy, reach))


def of_all(disks: Sequence[Disk], step: Callable[[Disk], T]) -> list[T]:
    """`step` for all disks at once, in their order."""
    with ThreadPoolExecutor(max(1, len(disks))) as pool:
        return list(pool.map(step, disks))
