"""What an image is that is not raw: by how it begins, where a raw disk has a boot sector.

A guest may write the same to its raw disk. So nothing rests on it but what somebody is told.
"""

import os

_HEADER_BYTES = 512
#: (offset, bytes) -> the name that QEMU has for it
_FORMATS = {
    (0, b"QFI\xfb"): "qcow2",
    (0, b"KDMV"): "vmdk",
    (0, b"vhdxfile"): "vhdx",
    (0, b"conectix"): "vpc",
    (64, b"\x7f\x10\xda\xbe"): "vdi",
}


def looks_like(fd: int) -> str | None:
    """The format that an image's first bytes are of; None: it can be raw only.

    Raises:
        OSError: it can't be read.
    """
    header = os.pread(fd, _HEADER_BYTES, 0)
    for (at, magic), name in _FORMATS.items():
        if header.startswith(magic, at):
            return name
    return None
