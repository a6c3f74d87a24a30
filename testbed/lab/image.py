"""The lab's root image: built from Debian's packages alone, kept in a cache.

One call of mmdebstrap makes the tree, guest/customize trims it and packs it with mkfs.erofs, and
this module keeps what comes out: the root image, the uncompressed kernel, and the few files of the
first boot stage. Nothing of the host goes in, so the image of a given state of Debian's archive is
the same wherever it was built, and with it virtual time.

An image is named by a hash over its recipe (package lists, the versions pip is held to, the
customize script, the mirror and RECIPE_VERSION), so a changed recipe is a new image and an old one
is never half right. It appears in the cache by a rename: it is whole or it isn't there. A lock lets
runs that start together build once; whoever holds it also removes what interrupted builds left.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RECIPE_VERSION = 1
SUITE = "bookworm"
IMAGES_KEPT = 2
GUEST = Path(__file__).parent / "guest"
CONSTRAINTS = Path(__file__).parent / "constraints.txt"
# A point in time for tools that would write today's date into the tree.
SOURCE_DATE_EPOCH = 1_700_000_000
NVDIMM_ALIGNMENT_BYTES = 2 << 20

# What each package is for stands beside it, as in scripts/install.
PACKAGES = (
    "linux-image-amd64",  # the kernel with netem, nbd and device-mapper
    "busybox-static",  # the first boot stage
    *("kmod", "procps", "util-linux", "mount", "fdisk", "e2fsprogs", "dmsetup"),  # the system
    *("iproute2", "iputils-ping", "ethtool", "iperf3", "net-tools"),  # the WAN and its calibration
    *("mininet", "bridge-utils", "openvswitch-switch"),  # sites
    *("python3", "python3-libnbd", "libnbd-bin", "nbdkit", "nbdkit-plugin-python"),  # the product
    *("nbd-client", "nbd-server"),  # the workload's device; an older source to be compared with
    *("fio", "tcc", "git", "postgresql-15"),  # workloads
    *("qemu-system-x86", "qemu-utils", "qemu-block-extra"),  # live migration, and peers
    *("openssh-client", "openssh-server", "socat", "zstd"),  # tunnels and transports
    "drbd-utils",  # a peer
)
PYTHON_PACKAGES = ("pyroute2", "rich", "pytest", "pytest-timeout", "qemu.qmp")


class LabError(Exception):
    """The lab can't do what was asked; the message says what would help."""


@dataclass(frozen=True)
class Image:
    """A built image in the cache."""

    directory: Path

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def root(self) -> Path:
        """The root file system, of a size that an NVDIMM can have."""
        return self.directory / "root.erofs"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinux"

    @property
    def first_stage(self) -> Path:
        """busybox and modules/*.ko: what the initramfs needs besides guest/init."""
        return self.directory / "first-stage"

    @property
    def packages(self) -> Path:
        """Name and version of every Debian package in the image, one a line."""
        return self.directory / "packages.txt"

    def exists(self) -> bool:
        return self.packages.exists()


def mirror() -> list[str]:
    """The user's APT mirror (RELOCATOR_MIRROR), such as a dated snapshot; empty: Debian's."""
    url = os.environ.get("RELOCATOR_MIRROR")
    return [url] if url else []


def cache_directory() -> Path:
    base = os.environ.get("RELOCATOR_CACHE")
    if base:
        return Path(base) / "lab"
    xdg = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(xdg).expanduser() / "relocator" / "lab"


def recipe_hash(packages: Sequence[str] = PACKAGES) -> str:
    """The name of the image with these Debian packages: 16 hexadecimal digits."""
    parts = [
        str(RECIPE_VERSION),
        SUITE,
        " ".join(mirror()),
        " ".join(packages),
        " ".join(PYTHON_PACKAGES),
        CONSTRAINTS.read_text(),
        (GUEST / "customize").read_text(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def current(further: Sequence[str] = ()) -> Image:
    """The image that this state of the project uses, built or not; with `further` Debian packages
    one of its own, in a cache of its own."""
    if not further:
        return Image(cache_directory() / recipe_hash())
    packages = (*PACKAGES, *sorted(set(further)))
    return Image(cache_directory().parent / "lab-further" / recipe_hash(packages))
