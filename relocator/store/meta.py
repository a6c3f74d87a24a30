"""What a disk knows of itself, kept in DIR/meta.json and replaced atomically.

`id` names this copy of the disk; `epoch` counts how often its dirty map was begun anew. `seal` is
the token made when the disk was sealed: it names the exact content that was frozen then. `base`
says what this copy was taken from: the source's id, epoch and seal. The return trip rests on that:
a disk with `seal` S may take back only what diverged from a `base` whose seal is S.

A checksum goes over all of it: a damaged file is refused. What it says would else be believed.
Format 1 had none; a store of that format is read, and its next change makes it one of this format.
"""

import errno
import json
import os
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from relocator.errors import ConfigError, StoreError

FORMAT = 2
_WITHOUT_CHECKSUM = 1
_CHECKSUM = "checksum"
_SPARE = "spare"
_SPARE_BYTES = (64 << 10, 16 << 10, 4 << 10)


@dataclass(frozen=True)
class Base:
    """What a copy was taken from. `seal` is None until the source was sealed for it.

    `epoch` 0, which no epoch is: what was written since, on either side, is not known.
    """

    id: str
    epoch: int
    seal: str | None = None

    @property
    def is_void(self) -> bool:
        """Whether that isn't known."""
        return self.epoch == 0

    @property
    def void(self) -> "Base":
        """The same, of which it isn't known any more what was written since."""
        return replace(self, epoch=0)


@dataclass(frozen=True)
class Takeover:
    """An activation that is under way, or was withdrawn and whose source has not been told yet.

    `token` is what the source's seal is to be called. `held`: writes wait until the disk is
    released, not only until the source is sealed. `at_start`: the disk was to be active from its
    start on; one that is started to stand by gives that up.
    """

    token: str
    held: bool = False
    withdrawn: bool = False
    at_start: bool = False


@dataclass(frozen=True)
class Meta:
    """A disk's description of itself. `clean`: the last process that used it closed it.

    `creating`: the store was being made when that was written, and holds nothing yet. `graduated`:
    the image was handed to a server that records no writes (see graduation.py). `origin_id` and
    `origin_samples` are what the source is known by when it comes back (see identity.py), and
    `origin_seal` the seal by which it gave the disk up; `origin_kept`: it has a store, so its id is
    for good; `untold`: it doesn't know yet that the disk is active here. `outdated`: it was
    unsealed by force since.
    `bitmap`, one of the source's, says what of a copy is stale in standby where no epoch does.
    `asked`: another site asked for `seal`, and may be active with the disk. `void_seals` are the
    last tokens whose seal was undone: a request for one may still arrive.
    `written_ns` is when the image was written last, noted where nothing of ours writes it any more:
    where it is found otherwise, something else has.
    `map_versions` is how often the durable map's pages had been written: fewer than that were lost.
    """

    id: str
    size_bytes: int
    block_bytes: int
    source: str | None
    complete: bool
    standby: bool = False
    clean: bool = False
    creating: bool = False
    graduated: bool = False
    epoch: int = 1
    seal: str | None = None
    asked: bool = False
    moved: bool = False
    void_seals: tuple[str, ...] = ()
    base: Base | None = None
    bitmap: str | None = None
    takeover: Takeover | None = None
    disk: str | None = None
    origin_id: str | None = None
    origin_kept: bool = False
    origin_samples: str | None = None
    origin_seal: str | None = None
    untold: bool = False
    outdated: bool = False
    written_ns: int | None = None
    map_versions: int = 0
    format: int = FORMAT

    @property
    def unrecorded(self) -> bool:
        """Whether a power failure has taken the record of what was written here."""
        return self.base is not None and self.base.is_void and not self.standby

    @property
    def recorded(self) -> bool:
        """Whether the durable map has all that was written: a power failure took nothing of it.

        In standby nothing is written. Where it was noted when the image was written last, nothing
        of ours has done so since; what a server wrote that records nothing, is known anyhow.
        """
        return self.clean or self.graduated or self.standby or self.written_ns is not None

    @property
    def settled(self) -> bool:
        """Whether the image stays as it is until a server opens it anew, or unseals it."""
        return self.clean or (self.complete and self.seal is not None)


def new_token() -> str:
    """A name that nothing else has: 32 hexadecimal digits."""
    return os.urandom(16).hex()


def given_back(meta: Meta) -> dict[str, Any]:
    """What a withdrawal changes: as before the activation, but for what the source must be told."""
    base, takeover = meta.base, meta.takeover
    if takeover is not None:
        takeover = replace(takeover, held=False, withdrawn=True)
    elif base is not None and base.seal is not None:
        takeover = Takeover(base.seal, withdrawn=True)
    return {
        "standby": True,
        "takeover": takeover,
        "base": None if base is None else replace(base, seal=None),
        "origin_samples": None,
        "origin_seal": None,
        "untold": False,
    }


def read(directory: Path) -> Meta | None:
    """What the store at `directory` says of itself; None if there is no store.

    Raises:
        ConfigError: there is something, but not a store this version can read.
    """
    try:
        found = json.loads((directory / "meta.json").read_text())
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise ConfigError(f"store={directory}: is a file; give a directory") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"store={directory}: meta.json can't be read: {error}") from error
    return _parse(directory, found)


def _parse(directory: Path, found: Any) -> Meta:
    kind = found.get("format") if isinstance(found, dict) else type(found).__name__
    if kind not in (_WITHOUT_CHECKSUM, FORMAT):
        right = f"this version reads formats {_WITHOUT_CHECKSUM} and {FORMAT}"
        raise ConfigError(f"store={directory}: format {kind}; {right}")
    said = found.pop(_CHECKSUM, None)
    if said != (None if kind == _WITHOUT_CHECKSUM else _checksum(found)):
        raise ConfigError(
            f"store={directory}: meta.json is damaged (its checksum is wrong), so nothing in it is "
            "believed; put it back from a backup, or give another directory and copy anew"
        )
    known = {field.name for field in fields(Meta)}
    takeover = found.get("takeover")
    try:
        meta = Meta(**{key: value for key, value in found.items() if key in known})
        base = None if found.get("base") is None else Base(**found["base"])
        if base is None and meta.origin_id is not None and meta.origin_seal is not None:
            # An older version forgot it after a power failure, and would tell no source any more.
            base = Base(meta.origin_id, 0, meta.origin_seal)
        return replace(
            meta,
            format=FORMAT,
            void_seals=tuple(meta.void_seals),
            base=base,
            takeover=None if takeover is None else Takeover(**takeover),
        )
    except TypeError as error:
        raise ConfigError(f"store={directory}: meta.json lacks a field: {error}") from error


def write(directory: Path, meta: Meta) -> None:
    """Replace meta.json atomically; errors as of `replace_file`."""
    content = asdict(meta)
    if meta.takeover is not None and not meta.takeover.at_start:
        del content["takeover"]["at_start"]  # which the version before doesn't know
    whole = {**content, _CHECKSUM: _checksum(content)}
    text = json.dumps(whole, indent=1, sort_keys=True) + "\n"
    replace_file(directory / "meta.json", text.encode())


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file of a store, durably and at once: write, fsync, rename, fsync.

    Where there is no room for it, that of the spare file is taken; what was replaced leaves some
    for the next one.

    Raises:
        StoreError: the file system is full, or fails: nobody may rely on the new content.
    """
    try:
        try:
            _replace(path, content)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not _use_spare(path.parent):
                raise
            _replace(path, content)
            keep_spare(path.parent)
    except OSError as error:
        what = f"store={path.parent}: {path.name} can't be replaced: {error.strerror or error}"
        raise StoreError(what, error.errno or errno.EIO) from error


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    sync_directory(path.parent)


def keep_spare(directory: Path) -> None:
    """Keep some room back, as far as there is any.

    With it a disk whose file system is full can still be opened, sealed and moved away.
    """
    for size_bytes in _SPARE_BYTES:
        with suppress(OSError):
            fd = os.open(directory / _SPARE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, size_bytes)
                return
            finally:
                os.close(fd)


def _use_spare(directory: Path) -> bool:
    """Give the room back that was kept; whether there was a spare file."""
    try:
        (directory / _SPARE).unlink()
    except FileNotFoundError:
        return False
    return True


def _checksum(content: dict[str, Any]) -> str:
    """Over the fields, however they are laid out; 8 hexadecimal digits."""
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
