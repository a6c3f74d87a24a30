"""The errors of the engine, each with the errno a guest or an operator is shown.

An error is classified where it occurs and raised as one of these; `plugin.py` turns it into an
errno for nbdkit, `control.py` into a line of JSON, the command line into an exit status.
"""

import errno

_AWAY = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH})


class RelocatorError(Exception):
    """Base of all errors whose message is for a guest's log or an operator."""

    errno = errno.EIO


class ConfigError(RelocatorError):
    """A parameter is missing or wrong: names the key, the value and what would be right."""

    errno = errno.EINVAL


class StoreError(RelocatorError):
    """The local store refused or failed; `errno` is the file system's own."""

    def __init__(self, message: str, number: int = errno.EIO) -> None:
        super().__init__(message)
        self.errno = number


class NotKeptError(StoreError):
    """Data arrived from upstream but the store could not keep it: read it through instead."""


class UpstreamError(RelocatorError):
    """The source answered with an error, or could not be reached for too long."""

    def __init__(self, message: str, number: int = errno.EIO) -> None:
        super().__init__(message)
        self.errno = number

    @property
    def is_away(self) -> bool:
        """Whether nobody answers there: to ask at once in another way would take long, in vain."""
        return self.errno in _AWAY


class RefusedError(UpstreamError):
    """The source has answered this request with an error: it can't read that place, say."""


class ShutOutError(UpstreamError):
    """The source is a relocator, and wants a key that was not shown."""


class OtherDiskError(UpstreamError):
    """At the source's address is another disk than the copy was begun from, or one that changes."""


class OutdatedError(OtherDiskError):
    """The source goes on with another version of this disk: this one's writes are not in it."""


class EndedError(RelocatorError):
    """What this connection reads may be newer than its client believes: it must connect anew."""

    errno = errno.ESHUTDOWN


class StateError(RelocatorError):
    """A verb that the current state does not allow: names both."""

    errno = errno.EPERM
