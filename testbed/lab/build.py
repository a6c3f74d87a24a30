"""Builds the lab's image: a root from Debian's packages, its kernel and its first boot stage.

The same packages give the same bytes on every host: times, identifiers and order are fixed, and
nothing of the host goes in. Progress goes to the log, a line a step.
"""

import fcntl
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from relocator.cli import host
from testbed.lab import debian
from testbed.lab.image import (
    CONSTRAINTS,
    GUEST,
    IMAGES_KEPT,
    NVDIMM_ALIGNMENT_BYTES,
    PACKAGES,
    PYTHON_PACKAGES,
    Image,
    LabError,
    current,
    recipe_hash,
)

#: makes an image below a work directory, in `image`, telling its progress to a log
Build = Callable[[Path, TextIO], None]


def ensure(
    force: bool = False,
    log: TextIO | None = None,
    *,
    further: Sequence[str] = (),
    wanted: Image | None = None,
    obstacles: Callable[[], list[str]] = host.build_obstacles,
    build: Build | None = None,
) -> Image:
    """The image `wanted` (the current one), built now if it isn't there (or `force`).

    `further` are names of Debian packages that it has besides the lab's own. Progress goes to
    `log`; `obstacles` tells what forbids building here.

    Raises:
        LabError: it can't be built here.
    """
    log = log or sys.stderr
    image = wanted or current(further)
    if image.exists() and not force:
        os.utime(image.directory)  # the newest are the ones last used
        return image
    if found := obstacles():
        raise LabError("the lab's image can't be built here: " + "; ".join(found))
    cache = image.directory.parent
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "build.lock", log):
        if image.exists() and not force:
            return image
        for left_over in cache.glob(".build-*"):
            _remove(left_over)
        work = Path(tempfile.mkdtemp(prefix=".build-", dir=cache))
        try:
            (build or partial(_build, further))(work, log)
            if image.directory.exists():
                image.directory.rename(work / "replaced")
            (work / "image").rename(image.directory)
        finally:
            _remove(work)
        _remove_old(cache, keep=image)
    return image


@contextmanager
def locked(path: Path, log: TextIO) -> Iterator[None]:
    """One builder at a time, on this machine; who waits says so."""
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


def _build(further: Sequence[str], work: Path, log: TextIO) -> None:
    """Leaves a whole image in `work`/image."""
    packages = (*PACKAGES, *sorted(set(further)))
    print("lab: building the image (once; about two minutes)", file=log, flush=True)
    steps = debian.Steps(log)
    image = Image(work / "image")
    image.directory.mkdir()
    steps.begin("Python packages")
    site = _python_packages(work)
    steps.begin("Debian packages: lists")
    debian.mmdebstrap(work, _options(work, site, image), packages, "-", steps)
    steps.begin("kernel and first stage")
    _boot_files(work / "boot.tar", image)
    size = image.root.stat().st_size
    os.truncate(image.root, -(-size // NVDIMM_ALIGNMENT_BYTES) * NVDIMM_ALIGNMENT_BYTES)
    steps.end()
    print(f"lab: image {recipe_hash(packages)} built, {size / 1e6:.0f} MB", file=log, flush=True)


def _python_packages(work: Path) -> Path:
    """A tar archive of the PYTHON_PACKAGES, as pure Python and owned by root."""
    target = work / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--target", str(target), "--no-compile", "--constraint", str(CONSTRAINTS)]
    command += ["--only-binary=:all:", "--platform=any", "--python-version=3.11"]
    command += ["--implementation=py", "--abi=none", *PYTHON_PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"pip failed ({done.returncode}): {debian.tail(done.stderr)}")
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


def _options(work: Path, site: Path, image: Image) -> list[str]:
    """The lab's root: a whole system, trimmed and packed by guest/customize."""
    options = ["--variant=minbase", "--format=null", "--skip=cleanup"]
    options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
    options += ["--dpkgopt=force-unsafe-io"]  # the tree is thrown away if the machine fails
    options += [f"--customize-hook=tar-in {site} /usr/lib/python3/dist-packages"]
    options += [f"--customize-hook={GUEST / 'customize'}"]
    options += [f"--customize-hook=download /lab-boot.tar {work / 'boot.tar'}"]
    options += [f"--customize-hook=download /lab.erofs {image.root}"]
    return options


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
                image.kernel.write_bytes(debian.uncompressed(content.read()))
            elif name == "packages.txt":
                image.packages.write_bytes(content.read())
            else:
                (image.first_stage / name).write_bytes(content.read())
