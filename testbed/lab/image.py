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

from __future__ import annotations

import fcntl
import hashlib
import io
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from relocator.cli import host

RECIPE_VERSION = 1
SUITE = "bookworm"
IMAGES_KEPT = 2
GUEST = Path(__file__).parent / "guest"
CONSTRAINTS = Path(__file__).parent.parent / "scripts" / "constraints.txt"
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
    *("fio", "tcc", "git"),  # workloads
    *("qemu-system-x86", "qemu-utils", "qemu-block-extra"),  # live migration, and peers
    *("openssh-client", "openssh-server", "socat", "zstd"),  # tunnels and transports
)
PYTHON_PACKAGES = ("pyroute2", "rich", "pytest", "pytest-timeout")


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


def recipe_hash() -> str:
    parts = [
        str(RECIPE_VERSION),
        SUITE,
        " ".join(mirror()),
        " ".join(PACKAGES),
        " ".join(PYTHON_PACKAGES),
        CONSTRAINTS.read_text(),
        (GUEST / "customize").read_text(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def current() -> Image:
    """The image that this state of the project uses, built or not."""
    return Image(cache_directory() / recipe_hash())


def ensure(force: bool = False, log: TextIO | None = None) -> Image:
    """The current image, built now if it isn't there (or `force`); progress goes to `log`."""
    log = log or sys.stderr
    image = current()
    if image.exists() and not force:
        os.utime(image.directory)  # the newest are the ones last used
        return image
    obstacles = host.build_obstacles()
    if obstacles:
        raise LabError("the lab's image can't be built here: " + "; ".join(obstacles))
    cache = image.directory.parent
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "build.lock", log):
        if image.exists() and not force:
            return image
        for left_over in cache.glob(".build-*"):
            _remove(left_over)
        work = Path(tempfile.mkdtemp(prefix=".build-", dir=cache))
        try:
            _build(work, log)
            if image.directory.exists():
                image.directory.rename(work / "replaced")
            (work / "image").rename(image.directory)
        finally:
            _remove(work)
        _remove_old(cache, keep=image)
    return image


@contextmanager
def _locked(path: Path, log: TextIO) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("lab: another run is building the image; waiting for it", file=log, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_old(cache: Path, keep: Image) -> None:
    images = [path for path in cache.iterdir() if Image(path).exists() and path != keep.directory]
    images.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in images[IMAGES_KEPT - 1 :]:
        shutil.rmtree(path)


class _Steps:
    """Progress: one line a step with its duration, the current one live on a terminal."""

    def __init__(self, log: TextIO) -> None:
        self._log = log
        self._name: str | None = None
        self._started_s = 0.0

    def begin(self, name: str) -> None:
        self.end()
        self._name, self._started_s = name, time.monotonic()
        self.tick()

    def tick(self) -> None:
        if self._name is not None and self._log.isatty():
            self._write(f"\r  {self._name} … {self._elapsed_s():3.0f} s", end="")

    def end(self) -> None:
        if self._name is not None:
            lead = "\r" if self._log.isatty() else ""
            self._write(f"{lead}  {self._name}: {self._elapsed_s():.0f} s".ljust(50))
            self._name = None

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def _write(self, text: str, end: str = "\n") -> None:
        print(text, end=end, file=self._log, flush=True)


def _build(work: Path, log: TextIO) -> None:
    """Leaves a whole image in `work`/image."""
    print("lab: building the image (once; about two minutes)", file=log, flush=True)
    steps = _Steps(log)
    image = Image(work / "image")
    image.directory.mkdir()
    steps.begin("Python packages")
    site = _python_packages(work)
    steps.begin("Debian packages: lists")
    _mmdebstrap(work, site, image, steps)
    steps.begin("kernel and first stage")
    _boot_files(work / "boot.tar", image)
    size = image.root.stat().st_size
    os.truncate(image.root, -(-size // NVDIMM_ALIGNMENT_BYTES) * NVDIMM_ALIGNMENT_BYTES)
    steps.end()
    print(f"lab: image {recipe_hash()} built, {size / 1e6:.0f} MB", file=log, flush=True)


def _python_packages(work: Path) -> Path:
    """A tar archive of the PYTHON_PACKAGES, as pure Python and owned by root."""
    target = work / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--target", str(target), "--no-compile", "--constraint", str(CONSTRAINTS)]
    command += ["--only-binary=:all:", "--platform=any", "--python-version=3.11"]
    command += ["--implementation=py", "--abi=none", *PYTHON_PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"pip failed ({done.returncode}): {_tail(done.stderr)}")
    archive = work / "site.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted(target.rglob("*")):
            name = path.relative_to(target)
            # RECORD lists what pip made for this machine; scripts in bin/ name its interpreter.
            if (
                name.parts[0] != "bin"
                and path.is_file()
                and name.name not in ("RECORD", "REQUESTED")
            ):
                entry = tarfile.TarInfo(str(name))
                entry.size, entry.mode = path.stat().st_size, 0o644
                tar.addfile(entry, io.BytesIO(path.read_bytes()))
    return archive


def _mmdebstrap(work: Path, site: Path, image: Image, steps: _Steps) -> None:
    if host.is_root():
        # Name spaces of its own, so that its end, however it comes, ends every process and takes
        # every mount away: no /proc or /dev stays mounted in a tree that we then remove.
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork"]
        command += ["--kill-child=KILL", "--mount-proc", "mmdebstrap", "--mode=root"]
    else:
        command = ["setpriv", "--pdeathsig", "TERM", "mmdebstrap", "--mode=unshare"]
    command += [
        "--variant=minbase",
        "--format=null",
        "--skip=cleanup",
        "--include=" + ",".join(PACKAGES),
    ]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
    command += ["--dpkgopt=force-unsafe-io"]  # the tree is thrown away if the machine fails
    command += [f"--aptopt={option}" for option in _apt_proxies()]
    command += [f"--customize-hook=tar-in {site} /usr/lib/python3/dist-packages"]
    command += [f"--customize-hook={GUEST / 'customize'}"]
    command += [f"--customize-hook=download /lab-boot.tar {work / 'boot.tar'}"]
    command += [f"--customize-hook=download /lab.erofs {image.root}"]
    command += [SUITE, "-", *mirror()]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH), "LC_ALL": "C.UTF-8"}
    environment["INITRD"] = "No"  # the kernel package need not make one
    if host.is_root():  # another user's id could not enter our cache
        environment["TMPDIR"] = str(work)
    log_path = work / "mmdebstrap.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        try:
            _follow_mmdebstrap(process, log_path, steps)
        finally:
            _stop(process)
    if process.returncode != 0:
        tail = _tail(log_path.read_text(errors="replace"))
        raise LabError(f"mmdebstrap failed ({process.returncode}):{tail}")


def _apt_proxies() -> list[str]:
    """The host's APT proxy settings, which mmdebstrap's own APT would not read."""
    done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    return re.findall(r"^Acquire::https?::Proxy .*$", done.stdout, flags=re.MULTILINE)


# What mmdebstrap announces, and how it is shown.
_STAGES = (
    ("downloading", "Debian packages: download"),
    ("extracting", "Debian packages: base system"),
    ("installing remaining", "Debian packages: the rest"),
    ("tar-in", "trim and pack"),
    ("download ", "take away"),
)


def _follow_mmdebstrap(process: subprocess.Popen[bytes], log: Path, steps: _Steps) -> None:
    seen = 0
    reached = -1
    while True:
        ended = process.poll() is not None
        lines = log.read_text(errors="replace").splitlines()
        for line in lines[seen:]:
            for stage, (words, name) in enumerate(_STAGES):
                if line.startswith("I: ") and words in line and stage > reached:
                    steps.begin(name)
                    reached = stage
        seen = len(lines)
        if ended:
            return
        steps.tick()
        time.sleep(0.2)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends an mmdebstrap that was interrupted; an ordinary user's takes its own tree away."""
    if process.poll() is None and not host.is_root():
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
    if process.poll() is None:
        process.kill()
        process.wait()


def _remove(directory: Path) -> None:
    """Removes a build's directory, into which its last processes may be writing as they die."""
    deadline_s = time.monotonic() + 10
    while directory.exists() and time.monotonic() < deadline_s:
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.1 if directory.exists() else 0)


def _boot_files(archive: Path, image: Image) -> None:
    (image.first_stage / "modules").mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.isfile():
                continue
            content = tar.extractfile(member)
            assert content is not None
            name = member.name.removeprefix("./")
            if name == "vmlinuz":
                image.kernel.write_bytes(_uncompressed(content.read()))
            elif name == "packages.txt":
                image.packages.write_bytes(content.read())
            else:
                (image.first_stage / name).write_bytes(content.read())


def _uncompressed(vmlinuz: bytes) -> bytes:
    """The ELF kernel inside Debian's bzImage: booting it saves seconds of decompression."""
    start = vmlinuz.find(b"\xfd7zXZ\0")
    if start < 0:
        raise LabError(
            "the kernel package's vmlinuz holds no xz stream; has Debian changed its format?"
        )
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(vmlinuz[start:])


def _tail(text: str, lines: int = 8) -> str:
    return "\n  " + "\n  ".join(text.strip().splitlines()[-lines:])
