"""Builds the lab's image: a root from Debian's packages, its kernel and its first boot stage.

The same packages give the same bytes on every host: times, identifiers and order are fixed, and
nothing of the host goes in. Progress goes to the log, a line a step.
"""

import fcntl
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from relocator.cli import host
from testbed.lab.image import (
    CONSTRAINTS,
    GUEST,
    IMAGES_KEPT,
    NVDIMM_ALIGNMENT_BYTES,
    PACKAGES,
    PYTHON_PACKAGES,
    SOURCE_DATE_EPOCH,
    SUITE,
    Image,
    LabError,
    current,
    mirror,
    recipe_hash,
)

#: makes an image below a work directory, in `image`, telling its progress to a log
Build = Callable[[Path, TextIO], None]


def ensure(
    force: bool = False,
    log: TextIO | None = None,
    *,
    wanted: Image | None = None,
    obstacles: Callable[[], list[str]] = host.build_obstacles,
    build: Build | None = None,
) -> Image:
    """The image `wanted` (the current one), built now if it isn't there (or `force`).

    Progress goes to `log`; `obstacles` tells what forbids building here.

    Raises:
        LabError: it can't be built here.
    """
    log = log or sys.stderr
    image = wanted or current()
    if image.exists() and not force:
        os.utime(image.directory)  # the newest are the ones last used
        return image
    if found := obstacles():
        raise LabError("the lab's image can't be built here: " + "; ".join(found))
    cache = image.directory.parent
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "build.lock", log):
        if image.exists() and not force:
            return image
        for left_over in cache.glob(".build-*"):
            _remove(left_over)
        work = Path(tempfile.mkdtemp(prefix=".build-", dir=cache))
        try:
            (build or _build)(work, log)
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
