"""Images at this site that may hold what the source holds: a template, an older copy, a backup.

Nothing is believed of a seed: what is read from it is compared by its digest, and those very bytes
are kept. So it may be written meanwhile, be of any size, and be anything; only its format is looked
at, for the sake of who gives a qcow2 image and wonders why nothing in it is found.
"""

import os
from pathlib import Path

from relocator.errors import ConfigError

#: (offset, bytes) -> what an image is that has them; a raw disk begins with a boot sector
_FORMATS = {
    (0, b"QFI\xfb"): "qcow2",
    (0, b"KDMV"): "vmdk",
    (0, b"vhdxfile"): "vhdx",
    (0, b"conectix"): "vpc",
    (64, b"\x7f\x10\xda\xbe"): "vdi",
}
_HEADER_BYTES = 512


class Seed:
    """The raw image at `path`, a file or a block device, read only. Beyond its end it is zeros.

    Raises:
        ConfigError: it can't be read, or is another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        #: why it is not used any more
        self.failure: str | None = None
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            header = os.pread(self._fd, _HEADER_BYTES, 0)
        except OSError as error:
            raise ConfigError(f"seed={path}: can't be read: {error.strerror}") from error
        for (at, magic), name in _FORMATS.items():
            if header.startswith(magic, at):
                raise ConfigError(
                    f"seed={path}: is a {name} image; give a raw one, "
                    f"as `qemu-img convert -O raw` makes it"
                )

    def read(self, offset: int, length: int) -> memoryview | None:
        """The bytes at `offset`, as of now; None if it can't be read, from then on."""
        if self.failure is not None:
            return None
        data = memoryview(bytearray(length))
        done = 0
        try:
            while done < length and (more := os.preadv(self._fd, [data[done:]], offset + done)):
                done += more
        except OSError as error:
            self.failure = f"seed={self.path}: is not used any more: {error.strerror}"
            return None
        return data

    def close(self) -> None:
        """Close the file; the seed must not be used afterwards."""
        os.close(self._fd)
