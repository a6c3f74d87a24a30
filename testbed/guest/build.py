"""Builds the guest's image: Debian's packages are unpacked, none is installed, few files kept.

mmdebstrap finds the packages and what they need, verifies and downloads them, into one tar archive;
from it come the kernel, some modules, busybox, Python, fio and qemu-ga, with the libraries that the
dynamic linker says they need.
"""

import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from testbed.guest.image import MODULES, PACKAGES, GuestImage, current
from testbed.lab import build, debian
from testbed.lab.image import LabError

_STDLIB = "usr/lib/python3.11"
_KEPT = re.compile(
    r"boot/vmlinuz-.*|bin/busybox|usr/bin/(python3\.11|fio)|usr/sbin/qemu-ga|(usr/)?lib/x86_64-linux-gnu/.*"
    r"|lib/modules/[^/]+/(kernel/(drivers/(virtio|block|char)|fs|lib|crypto"
    r"|arch/x86/crypto|mm|net/core)/.*|modules\.(order|builtin.*))"
    r"|usr/lib/python3\.11/(encodings/.*|[^/]+\.py|lib-dynload/mmap\..*)"
)


def ensure(log: TextIO | None = None) -> GuestImage:
    """The current image, built now if it isn't there; LabError if it can't be."""
    wanted = current()
    build.ensure(log=log, wanted=wanted, build=_build)
    return wanted


def _build(work: Path, log: TextIO) -> None:
    """Leaves a whole image in `work`/image."""
    print("guest: building its image (once; about a minute)", file=log, flush=True)
    steps = debian.Steps(log)
    image = GuestImage(work / "image")
    image.directory.mkdir()
    steps.begin("Debian packages: lists")
    archive = work / "packages.tar"
    listing = 'ls "$1/var/cache/apt/archives" >&2'
    options = ["--variant=extract", "--format=tar", f"--extract-hook={listing}"]
    debian.mmdebstrap(work, options, PACKAGES, str(archive), steps)
    steps.begin("kernel, modules, programs")
    tree = work / "tree"
    _unpack(archive, tree)
    image.kernel.write_bytes(debian.uncompressed(_only(tree, "boot/vmlinuz-*").read_bytes()))
    _first_stage(tree, image)
    _copy(tree / "bin/busybox", image.system / "bin/busybox")
    _program(tree, image.system, "usr/bin/python3.11")
    shutil.copytree(tree / _STDLIB, image.system / _STDLIB)
    (image.system / "usr/bin/python3").symlink_to("python3.11")
    _program(tree, image.fio, "usr/bin/fio")
    _program(tree, image.agent, "usr/sbin/qemu-ga")
    names = _packages((work / "mmdebstrap.log").read_text(errors="replace"))
    image.packages.write_text("".join(f"{name}\n" for name in names))
    steps.end()


def _unpack(archive: Path, tree: Path) -> None:
    """Unpacks what is kept."""
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if (member.isreg() or member.issym()) and _KEPT.fullmatch(name):
                _unpack_one(tar, member, tree / name)


def _unpack_one(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        path.symlink_to(member.linkname)
        return
    content = tar.extractfile(member)
    assert content is not None
    with path.open("wb") as file:
        shutil.copyfileobj(content, file)
    path.chmod(0o755 if member.mode & 0o100 else 0o644)


def _packages(log: str) -> list[str]:
    """Name and version of each package, from the listing that the hook left in the log."""
    found = re.findall(r"^([^_\s]+)_([^_\s]+)_[^_\s]+\.deb$", log, re.MULTILINE)
    return sorted(f"{name} {version.replace('%3a', ':')}" for name, version in found)


def _only(tree: Path, pattern: str) -> Path:
    found = sorted(tree.glob(pattern))
    if len(found) != 1:
        raise LabError(f"guest: {len(found)} files match {pattern} in Debian's packages, not one")
    return found[0]


def _command(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)} failed: {debian.tail(done.stderr or done.stdout)}")
    return done.stdout


def _first_stage(tree: Path, image: GuestImage) -> None:
    """busybox, and the modules, numbered in the order in which to load them."""
    (image.first_stage / "modules").mkdir(parents=True)
    shutil.copyfile(tree / "bin/busybox", image.first_stage / "busybox")
    kernel = _only(tree, "lib/modules/*").name
    _command(["depmod", "--basedir", str(tree), kernel])
    order: list[Path] = []
    for module in MODULES:
        where = ["--dirname", str(tree), "--set-version", kernel]
        shown = _command(["modprobe", *where, "--show-depends", module])
        for line in shown.splitlines():
            kind, _, rest = line.partition(" ")
            path = Path(rest.strip())
            if kind == "insmod" and path not in order and "intel" not in path.name:
                order.append(path)
    for number, path in enumerate(order, start=100):
        shutil.copyfile(path, image.first_stage / "modules" / f"{number}-{path.name}")


def _program(tree: Path, target: Path, name: str) -> None:
    """Copies a program, the libraries that it needs, and the linker that finds them."""
    _copy(tree / name, target / name)
    for library in _libraries(tree, tree / name):
        _copy(library, target / "lib/x86_64-linux-gnu" / library.name)
    _copy(_linker(tree), target / "lib64" / _linker(tree).name)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _linker(tree: Path) -> Path:
    return (tree / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2").resolve()


def _libraries(tree: Path, program: Path) -> list[Path]:
    """What the tree's own dynamic linker would load for a program of the tree."""
    places = [tree / place / "x86_64-linux-gnu" for place in ("lib", "usr/lib")]
    places.append(places[1] / "ceph")
    path = ":".join(str(place) for place in places)
    argv = [str(_linker(tree)), "--library-path", path, "--list", str(program)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    missing = re.findall(r"^\s*(\S+) => not found", done.stdout, re.MULTILINE)
    if done.returncode != 0 or missing:
        raise LabError(f"guest: {program.name} needs {missing or done.stderr.strip()}")
    found = re.findall(r"^\s*\S+ => (/\S+) \(", done.stdout, re.MULTILINE)
    return [Path(one) for one in found if Path(one).is_relative_to(tree)]
