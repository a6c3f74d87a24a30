"""A running target or proxy: its parts put together, its life, its status, its verbs.

Opening (`open_engine`) checks everything and takes the store's lock, so that errors are shown while
nbdkit still has a terminal; `start` begins to connect and to copy, after nbdkit has forked.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from relocator import config, states
from relocator.config import ProxyConfig, TargetConfig
from relocator.copier import Copier
from relocator.disk import ProxyDisk, TargetDisk
from relocator.errors import ConfigError, RelocatorError, StateError, UpstreamError
from relocator.hydration import Hydration
from relocator.image import open_image
from relocator.pacing import TokenBucket, Window
from relocator.states import Role, State
from relocator.status import RateMeter, proxy_status, target_status
from relocator.store import Store, open_store, read_meta
from relocator.upstream import Upstream, probe_size

COMMIT_EVERY_S = 5.0
_MOST_WAIT_S = 3600.0


class TargetEngine:
    """Serves a disk that is all here."""

    role = Role.TARGET
    state = State.COMPLETE

    def __init__(self, settings: TargetConfig) -> None:
        self._image = open_image(settings.disk)
        self.disk = TargetDisk(self._image)

    def start(self) -> None:
        """Nothing runs beside the requests."""

    def stop(self) -> None:
        """Make everything durable and let go."""
        self.disk.flush()
        self._image.close()

    def status(self) -> dict[str, Any]:
        """See docs/status.md."""
        return target_status(self.disk)

    def call(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out a control verb."""
        states.check(self.state, verb)
        refuse_unknown(verb, arguments, {"timeout_s"} if verb == "wait" else set())
        if verb == "flush":
            self.disk.flush()
        return self.status()


class ProxyEngine:
    """Serves a disk that may still be partly at its source, and brings the rest here."""

    def __init__(self, settings: ProxyConfig, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._finished = threading.Event()
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._commit_regularly, name="commit", daemon=True)
        self.meter = RateMeter(time.monotonic)
        self.state = State.COMPLETE if store.complete else State.ACTIVE
        self.failure: str | None = None
        self.upstream: Upstream | None = None
        self.hydration: Hydration | None = None
        self.copier: Copier | None = None
        if self.state is State.ACTIVE:
            self._assemble()
        else:
            self._finished.set()
        self.disk = ProxyDisk(store, self.upstream, self.hydration)

    def _assemble(self) -> None:
        settings = self._settings
        if settings.source is None:
            raise ConfigError(
                f"source is missing: the store {settings.store} is not complete; "
                f"it was made from {self._store.meta['source']}"
            )
        self.upstream = Upstream(settings.source, settings.retry_timeout_s)
        self.hydration = Hydration(self._store, self.upstream, self._all_present)
        self.copier = Copier(
            self._store,
            upstream=self.upstream,
            hydration=self.hydration,
            window=Window(settings.window_bytes),
            bucket=TokenBucket(settings.rate_bits_per_s),
            finish=self._finish,
        )

    @property
    def role(self) -> Role:
        """A proxy that is complete is a target."""
        return Role.TARGET if self.state is State.COMPLETE else Role.PROXY

    @property
    def store(self) -> Store:
        """The local copy."""
        return self._store

    def start(self) -> None:
        """Connect to the source and begin to copy."""
        self._keeper.start()
        if self.upstream is not None and self.copier is not None:
            self.upstream.start()
            self.copier.start(enabled=self._settings.background)
            if self._store.present_blocks == self._store.geometry.total_blocks:
                self._all_present()

    def stop(self) -> None:
        """Stop copying, disconnect, commit, and let go of the store."""
        self._stopping.set()
        if self.copier is not None:
            self.copier.stop()
        if self.upstream is not None:
            self.upstream.close()
        if self.copier is not None:
            self.copier.join()
        if self._keeper.is_alive():
            self._keeper.join()
        self._store.close()

    def status(self) -> dict[str, Any]:
        """See docs/status.md."""
        return proxy_status(self)

    def call(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out a control verb.

        Raises:
            StateError: not legal in this state.
            ConfigError: an argument is unknown or wrong.
        """
        states.check(self.state, verb)
        known = {"wait": {"timeout_s"}, "set": set(_SETTINGS)}.get(verb, set())
        refuse_unknown(verb, arguments, known)
        if verb == "flush":
            self.disk.flush()
        elif verb == "wait":
            self._wait(arguments)
        elif verb in ("pause", "resume"):
            self._active_copier().set_paused(verb == "pause")
        elif verb == "set":
            self._set(arguments)
        return self.status()

    def _wait(self, arguments: dict[str, Any]) -> None:
        timeout_s = config.parse_seconds("timeout_s", str(arguments.get("timeout_s", _MOST_WAIT_S)))
        give_up_s = time.monotonic() + timeout_s
        while not self._finished.wait(min(1.0, max(0.0, give_up_s - time.monotonic()))):
            if self._stopping.is_set():
                raise StateError("the proxy is being stopped; the relocation is not complete")
            if time.monotonic() >= give_up_s:
                raise StateError(f"'wait' gave up after {timeout_s:g} s: not complete yet")

    def _set(self, arguments: dict[str, Any]) -> None:
        if not arguments:
            raise ConfigError(f"'set' needs at least one of: {', '.join(_SETTINGS)}")
        copier = self._active_copier()
        # All values are read before any takes effect: a refusal changes nothing.
        steps = [_SETTINGS[key](key, str(text), copier) for key, text in arguments.items()]
        for step in steps:
            step()

    def _active_copier(self) -> Copier:
        if self.copier is None:
            raise StateError(f"nothing is being copied in state '{self.state}'")
        return self.copier

    def _all_present(self) -> None:
        if self.copier is not None:
            self.copier.all_present()

    def _finish(self) -> None:
        """Make it durable that every block is here, then drop the upstream (copier's thread)."""
        try:
            self._store.finish()
        except OSError as error:
            self.failure = f"the last commit failed: {error}"
            return
        self.disk.all_here = True
        self.state = states.after(self.state, "last-block-arrived")
        if self.upstream is not None:
            self.upstream.close()
        self._finished.set()

    def _commit_regularly(self) -> None:
        while not self._stopping.wait(COMMIT_EVERY_S):
            if self._store.owes_commit:
                try:
                    self._store.commit()
                except RelocatorError as error:
                    self.failure = str(error)
                    return


def refuse_unknown(verb: str, arguments: dict[str, Any], known: set[str]) -> None:
    """Refuse arguments that the verb doesn't have."""
    for key in arguments:
        if key not in known:
            allowed = ", ".join(sorted(known)) or "none"
            raise ConfigError(f"{key}: '{verb}' has no such argument; it takes: {allowed}")


def _set_rate(key: str, text: str, copier: Copier) -> Callable[[], None]:
    value = config.parse_rate(key, text)
    return lambda: copier.set_rate(value)


def _set_window(key: str, text: str, copier: Copier) -> Callable[[], None]:
    value = config.parse_window(key, text)
    return lambda: copier.set_window(value)


def _set_background(key: str, text: str, copier: Copier) -> Callable[[], None]:
    value = config.parse_switch(key, text)
    return lambda: copier.set_enabled(value)


def _set_order(key: str, text: str, copier: Copier) -> Callable[[], None]:
    value = config.parse_order(key, text)
    return lambda: copier.set_order(value)


_SETTINGS: dict[str, Callable[[str, str, Copier], Callable[[], None]]] = {
    "rate": _set_rate,
    "window": _set_window,
    "background": _set_background,
    "order": _set_order,
}


def open_engine(settings: TargetConfig | ProxyConfig) -> TargetEngine | ProxyEngine:
    """Open the disk and everything it needs, without starting anything.

    Raises:
        ConfigError: the disk, store or source doesn't fit.
    """
    if isinstance(settings, TargetConfig):
        return TargetEngine(settings)
    meta = read_meta(settings.store)
    size_bytes = None if meta is None else int(meta["size_bytes"])
    if meta is None or not meta["complete"]:
        size_bytes = _source_size(settings, known=size_bytes)
    assert size_bytes is not None
    source = settings.source or ""
    return ProxyEngine(
        settings, open_store(settings.store, size_bytes, settings.block_bytes, source)
    )


def _source_size(settings: ProxyConfig, known: int | None) -> int:
    """The source's size; where a copy has begun, an unreachable source doesn't matter yet."""
    if settings.source is None:
        what = f"the store {settings.store} is new" if known is None else "the copy is not complete"
        raise ConfigError(f"source is missing: {what}; give source=nbd://HOST[:PORT]")
    try:
        return probe_size(settings.source)
    except UpstreamError as error:
        if known is not None:
            return known
        raise ConfigError(f"source={settings.source}: can't be connected to: {error}") from error
