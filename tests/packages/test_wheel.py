"""The wheel: built twice alike, installed where nothing of the project is, and used there."""

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from relocator import __version__
from tests.support import checkout
from tests.support.model import source_bytes
from tests.support.servers import nbdkit, proxy

CONSTRAINTS = checkout.PROJECT / "scripts" / "constraints.txt"
SIZE_BYTES = 4 << 20


def run(*argv: object, cwd: Path) -> str:
    words = [str(word) for word in argv]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(checkout.DAY)}
    done = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}: {(done.stdout + done.stderr)[-3000:]}"
    return done.stdout


def build(directory: Path) -> Path:
    """The sdist of a fresh clone, and the wheel made from it."""
    place = checkout.copy_to(directory)
    run(sys.executable, "-m", "build", "--outdir", directory / "dist", place, cwd=directory)
    (wheel,) = (directory / "dist").glob("*.whl")
    return wheel


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel and what the extra `testbed` brings."""

    wheel: Path
    bin: Path
    elsewhere: Path

    def __call__(self, command: str, *arguments: object) -> str:
        return run(self.bin / command, *arguments, cwd=self.elsewhere)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("installed")
    wheel = build(place)
    (place / "elsewhere").mkdir()
    here = Installed(wheel, place / "venv" / "bin", place / "elsewhere")
    run("/usr/bin/python3", "-m", "venv", place / "venv", cwd=place)
    options = ("install", "--quiet", "--disable-pip-version-check", "--constraint", CONSTRAINTS)
    here("pip", *options, f"relocator[testbed] @ {wheel.as_uri()}")
    return here


def test_the_same_sources_give_the_same_wheel(installed: Installed, tmp_path: Path) -> None:
    again = build(tmp_path)
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in (installed.wheel, again)]
    assert digests[0] == digests[1]


def test_the_installed_plugin_brings_a_disk(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    plugin = Path(installed("relocator", "plugin-path").strip())
    assert plugin.is_relative_to(installed.bin.parent)
    with (
        nbdkit(tmp_path, "source", ["file", str(tmp_path / "disk.img")]) as source,
        proxy(tmp_path, source, file=plugin) as copy,
    ):
        assert copy.wait()["state"] == "complete"
        assert copy.connect().pread(SIZE_BYTES, 0) == source_bytes(SIZE_BYTES)


def test_the_installed_command_has_its_files(installed: Installed) -> None:
    assert installed("relocator", "--version") == f"relocator {__version__}\n"
    written = installed("relocator", "units", ".").split()
    assert len(written) == 3
    assert all(
        f"{installed.bin}/relocator" in (installed.elsewhere / name).read_text() for name in written
    )


def test_the_lab_s_image_is_that_of_a_checkout(installed: Installed) -> None:
    """What names the image, and what builds it, came along."""
    from testbed.lab import image

    code = "from testbed.lab import image; print(image.current().name, image.GUEST)"
    name, guest = installed("python", "-c", code).split()
    assert name == image.current().name
    for path in image.GUEST.iterdir():
        copy = Path(guest) / path.name
        assert copy.read_bytes() == path.read_bytes()
        assert os.access(copy, os.X_OK) == os.access(path, os.X_OK)
