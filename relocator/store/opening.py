"""Opening a store, or making one: what is checked before a byte of it is believed.

A missing or foreign image is never taken for an empty one; a store in use, of another disk or of
another format is refused. meta.json is written last when a store is made: where it is, the rest is.

An image that something else has written meanwhile (a VM was booted from the file itself, say) is
not what the maps say. What can be made true again is: of a disk that is all here everything counts
as written, a copy ahead is dropped. Where another site may rely on it, it is not served.
"""

import fcntl
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from relocator.errors import ConfigError
from relocator.store import formats, skipped
from relocator.store import meta as metadata
from relocator.store.geometry import MOST_BYTES, suited_block_bytes
from relocator.store.image import Image
from relocator.store.meta import Meta, new_token
from relocator.store.store import Store

_OUTSIDE = "the image was written by something else since it was closed"


def open_target(disk: Path, directory: Path | None, block_bytes: int | None) -> Store:
    """A disk that is all here: the image `disk`, its maps in `directory` or in memory.

    Without `block_bytes` its maps have the block that they were made with, or one that suits it.

    Raises:
        ConfigError: the image can't be used, or the directory belongs to another disk.
    """
    beside = metadata.read(disk.parent) if disk.name == "disk.img" else None
    if beside is not None and not beside.complete:
        raise ConfigError(f"disk={disk}: is the copy of a store that is not complete")
    found = None if directory is None else metadata.read(directory)
    image = _existing("disk", disk)
    check_size(f"disk={disk}", image.size_bytes)
    is_copy = any(one is not None and one.source is not None for one in (beside, found))
    notes = () if is_copy else _notes_of_format(image)
    if block_bytes is None:
        block_bytes = found.block_bytes if found else suited_block_bytes(image.size_bytes)
    fresh = Meta(
        id=new_token(),
        size_bytes=image.size_bytes,
        block_bytes=block_bytes,
        source=None,
        complete=True,
        disk=str(disk),
    )
    if directory is None:
        store = Store(fresh, image)
    else:
        image.close()
        store = open_store(directory, fresh)
    store.found += notes
    return store


def _notes_of_format(image: Image) -> tuple[str, ...]:
    """What is to be said of an image that isn't raw by its looks: its guest may have made them."""
    try:
        name = formats.looks_like(image.fileno())
    except OSError:  # as its clients will hear
        return ()
    if name is None:
        return ()
    return (
        f"disk={image.path}: looks like a {name} image, and is served as it is, byte by byte; if "
        "it is one, convert it (qemu-img convert -O raw), or let qemu-nbd serve it as the source",
    )


def open_store(directory: Path, fresh: Meta, *, returns: bool = False) -> Store:
    """Open the store at `directory`, or make the one that `fresh` describes.

    `returns`: the caller sees to an image that was written outside (`is_written_outside`).

    Raises:
        ConfigError: it is in use, was made for another disk, is damaged, or something else has
            written an image that another site may rely on.
    """
    if fresh.disk is None:
        _check_no_others(directory)
    with ExitStack() as undo:
        lock_fd = take_lock(directory)
        undo.callback(os.close, lock_fd)
        found = metadata.read(directory)
        if found is None or found.creating:
            return _create(directory, fresh, lock_fd, undo)
        check_same(directory, found, fresh)
        if not (directory / "map.durable").exists():
            raise ConfigError(
                f"store={directory}: map.durable is missing, so nothing says which blocks are valid"
            )
        image = open_image(directory, found)
        undo.callback(image.close)
        mends = not returns and is_written_outside(found, image)
        if mends:
            _check_mends(found, image)
        metadata.keep_spare(directory)
        store = _made(Store(found, image, directory, lock_fd), undo)
        if found.graduated:
            store.mark_all_written()
        elif mends:
            _make_true(store)
        opened = replace(store.meta, clean=False, graduated=False)
        if not opened.settled:
            opened = replace(opened, written_ns=None)
        if opened != found:
            store.update(clean=False, graduated=False)
        else:  # killed: perhaps when it had replaced meta.json, and that was not durable yet
            metadata.sync_directory(directory)
        undo.pop_all()
        return store


def _made(store: Store, undo: ExitStack) -> Store:
    """The store, which from now on lets go of all that it was made from."""
    undo.pop_all()
    undo.callback(store.abandon)
    return store


def is_written_outside(meta: Meta, image: Image) -> bool:
    """Whether something that is not ours has written the image since it was settled."""
    return meta.written_ns not in (None, image.modified_ns)


def _check_mends(meta: Meta, image: Image) -> None:
    """Refuse an image that something else has written, and of which nothing true can be said."""
    if meta.standby or (meta.complete and meta.seal is None):
        return
    assert meta.written_ns is not None
    seconds, ns = divmod(meta.written_ns, 10**9)
    if meta.seal is None:
        why = "closed, with blocks still absent: which of its bytes are the disk's is not known"
    else:
        why = "sealed: what another site still fetches from it would be wrong"
    back = " To bring the disk back here, give that site as source=: all of it is copied then."
    raise ConfigError(
        f"disk={image.path}: was written by something else since it was {why}. Put it back from a "
        "backup of then. If its bytes are the same (because it was copied, say): "
        f"touch -d @{seconds}.{ns:09} {image.path}.{back if meta.complete else ''}"
    )


def _make_true(store: Store) -> None:
    """Let the maps say what is known of an image that something else has written."""
    if store.meta.standby:
        store.drop([(0, store.geometry.total_blocks)])
        store.found = (f"{_OUTSIDE}: all that was copied ahead was dropped",)
    else:
        store.mark_all_written()
        store.found = (f"{_OUTSIDE}: all of it counts as written",)


def _check_no_others(directory: Path) -> None:
    """Refuse a directory with an image that is no store's, before anything is left there."""
    if (directory / "disk.img").exists() and metadata.read(directory) is None:
        raise ConfigError(
            f"store={directory}: is not a store (it has no meta.json), and its disk.img may be "
            "somebody's disk; give another directory"
        )


def _create(directory: Path, fresh: Meta, lock_fd: int, undo: ExitStack) -> Store:
    """Make a store: meta.json says so first and last, so a crash on the way is made good."""
    metadata.keep_spare(directory)
    making = replace(fresh, clean=True, creating=True)
    metadata.write(directory, making)
    image_too = ["disk.img"] if fresh.disk is None else []
    for name in ("map.live", "map.durable", skipped.NAME, *image_too):
        (directory / name).unlink(missing_ok=True)
    if fresh.disk is None:
        image = _new_image(directory, fresh.size_bytes)
    else:
        image = open_image(directory, fresh)
    undo.callback(image.close)
    store = _made(Store(making, image, directory, lock_fd), undo)
    store.update(clean=False, creating=False)
    undo.pop_all()
    return store


def _new_image(directory: Path, size_bytes: int) -> Image:
    try:
        return Image(directory / "disk.img", create_bytes=size_bytes)
    except OSError as error:
        raise ConfigError(
            f"store={directory}: disk.img can't be made with {size_bytes} bytes: {error.strerror}; "
            "give a directory on another file system, or a place for the image by disk=PATH"
        ) from error


def check_size(what: str, size_bytes: int) -> None:
    """Refuse a disk that is larger than any map.

    Raises:
        ConfigError: it is; `what` is the parameter and its value.
    """
    if size_bytes > MOST_BYTES:
        most = f"{MOST_BYTES} bytes (512 TiB)"
        raise ConfigError(f"{what}: is a disk of {size_bytes} bytes; there can be at most {most}")


def check_same(directory: Path, meta: Meta, fresh: Meta) -> None:
    """Refuse a store that was made for another disk than `fresh` describes."""
    for key in ("size_bytes", "block_bytes"):
        has, wanted = getattr(meta, key), getattr(fresh, key)
        if has != wanted:
            raise ConfigError(
                f"store={directory}: holds a copy with {key}={has}, not {wanted}; "
                "give the source and block it was made with, or another directory"
            )
    if fresh.disk is not None:
        check_disk(directory, meta, Path(fresh.disk))


def check_disk(directory: Path, meta: Meta, disk: Path) -> None:
    """Refuse a store whose image is another one than `disk`, by whatever path.

    Raises:
        ConfigError: it is.
    """
    own = directory / "disk.img" if meta.disk is None else Path(meta.disk)
    if disk != own and not _is_one_file(disk, own):
        raise ConfigError(
            f"disk={disk}: the store {directory} is for {own}; give that, or leave disk= out, or "
            "give another store"
        )


def _is_one_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # one of them isn't there
        return False


def open_image(directory: Path, meta: Meta) -> Image:
    """The store's image, which must exist and have the right size."""
    if meta.disk is not None:
        image = _existing("disk", Path(meta.disk))
    else:
        image = _existing(f"store={directory}: disk.img", directory / "disk.img")
    found = image.size_bytes
    if found < meta.size_bytes or (meta.disk is None and found > meta.size_bytes):
        image.close()
        raise ConfigError(
            f"store={directory}: {image.path.name} is {found} bytes long, not {meta.size_bytes}"
        )
    return image


def _existing(key: str, path: Path) -> Image:
    try:
        return Image(path)
    except BlockingIOError as error:
        raise ConfigError(f"disk={path}: is in use by another process") from error
    except OSError as error:
        what = f"{key}={path}" if key == "disk" else key
        raise ConfigError(
            f"{what}: {error.strerror}; give an existing image file or block device"
        ) from error


def take_lock(directory: Path) -> int:
    """Take the store's lock, for as long as the file descriptor returned is open.

    Raises:
        ConfigError: another process uses the store, or it can't be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        what = "is a file" if directory.is_file() else error.strerror
        raise ConfigError(
            f"store={directory}: {what}; give a directory that can be written"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"store={directory}: is in use by another process") from error
    return fd
