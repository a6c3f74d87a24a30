"""The packages: built twice alike, and with everything in them."""

import argparse
import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from relocator import __version__
from relocator.cli.libvirt import hook_text
from relocator.cli.parser import COMMANDS, build_parser
from relocator.cli.units import FOLDER
from testbed.lab import image
from tests.support import packages
from tests.support.model import source_bytes
from tests.support.packages import PROJECT, Installed
from tests.support.servers import nbdkit, proxy

SIZE_BYTES = 4 << 20
PLUGIN = "usr/lib/x86_64-linux-gnu/nbdkit/plugins/nbdkit-relocator-plugin.so"


def test_the_same_sources_give_the_same_packages(built: dict[str, Path], tmp_path: Path) -> None:
    again = packages.build(tmp_path)
    for kind in (".whl", ".deb"):
        first, second = (hashlib.sha256(one[kind].read_bytes()) for one in (built, again))
        assert first.digest() == second.digest(), kind


def test_the_wheel_s_plugin_brings_a_disk(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    plugin = Path(installed("relocator", "plugin-path").strip())
    assert plugin.is_relative_to(installed.bin.parent)
    with (
        nbdkit(tmp_path, "source", ["file", str(tmp_path / "disk.img")]) as source,
        proxy(tmp_path, source, file=plugin) as copy,
    ):
        assert copy.wait()["state"] == "complete"
        assert copy.connect().pread(SIZE_BYTES, 0) == source_bytes(SIZE_BYTES)


def test_the_wheel_s_command_has_its_files(installed: Installed) -> None:
    assert installed("relocator", "--version") == f"relocator {__version__}\n"
    written = installed("relocator", "units", ".").split()
    assert len(written) == 3
    for name in written:
        assert f"{installed.bin}/relocator" in (installed.elsewhere / name).read_text()


def test_the_wheel_s_lab_is_that_of_a_checkout(installed: Installed) -> None:
    """What names the image, and what builds it, came along."""
    code = "from testbed.lab import image; print(image.current().name, image.GUEST)"
    name, guest = installed("python", "-c", code).split()
    assert name == image.current().name
    for path in image.GUEST.iterdir():
        copy = Path(guest) / path.name
        assert copy.read_bytes() == path.read_bytes()
        assert os.access(copy, os.X_OK) == os.access(path, os.X_OK)


@pytest.fixture(scope="module")
def unpacked(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("unpacked")
    packages.run("dpkg-deb", "-x", built[".deb"], place, cwd=place)
    return place


def test_the_debian_package_has_what_the_checkout_has(unpacked: Path) -> None:
    python = unpacked / "usr/lib/python3/dist-packages"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "relocator"]
    names = subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True)
    wanted = {name for name in names.stdout.split() if (PROJECT / name).is_file()}
    found = {str(path.relative_to(python)) for path in python.rglob("*") if path.is_file()}
    assert found == wanted
    assert (unpacked / PLUGIN).is_file()
    assert os.access(unpacked / "usr/bin/relocator", os.X_OK)


def test_the_debian_package_has_the_version_of_the_code(built: dict[str, Path]) -> None:
    said = packages.run("dpkg-deb", "-f", built[".deb"], "Version", cwd=PROJECT)
    assert said.strip() == __version__


def test_the_debian_package_has_the_pages_that_its_operators_guide_leads_to(unpacked: Path) -> None:
    docs = unpacked / "usr/share/doc/relocator"
    names = {path.name.removesuffix(".gz") for path in docs.iterdir()}
    assert {"operators.md", "sources.md", "monitoring.md", "migrate.md", "hypervisors.md"} <= names


def test_the_units_are_those_of_the_command(unpacked: Path) -> None:
    units = unpacked / "usr/lib/systemd/system"
    assert {path.name for path in units.iterdir()} == {p.name for p in FOLDER.glob("*.service")}
    for path in units.iterdir():
        text = path.read_text()
        assert "ExecStart=/usr/bin/relocator " in text
        assert re.findall(r"@[A-Z_]+@", text) == []


@pytest.mark.parametrize("of_the_package", [True, False])
def test_a_hook_for_libvirt_goes_with_the_command_that_it_calls(
    built: dict[str, Path], tmp_path: Path, of_the_package: bool
) -> None:
    packages.run("dpkg-deb", "-e", built[".deb"], tmp_path / "control", cwd=tmp_path)
    hook = tmp_path / "etc/libvirt/hooks/qemu.d/relocator"
    hook.parent.mkdir(parents=True)
    hook.write_text(hook_text("/usr/bin/relocator" if of_the_package else "/opt/bin/relocator"))
    script = ("env", f"DPKG_ROOT={tmp_path}", tmp_path / "control/postrm")
    packages.run(*script, "upgrade", "2", cwd=tmp_path)
    assert hook.exists()
    packages.run(*script, "remove", cwd=tmp_path)
    assert hook.exists() is not of_the_package
    packages.run(*script, "purge", cwd=tmp_path)


def test_the_manual_page_has_every_command_and_option(unpacked: Path) -> None:
    page = unpacked / "usr/share/man/man1/relocator.1.gz"
    text = packages.run("man", "--local-file", "--encoding=ascii", page, cwd=unpacked)
    words = set(re.findall(r"--[\w-]+|[\w-]+", re.sub(r"-\n\s*", "-", text)))
    assert set(COMMANDS) - words == set()
    assert "relocator - moves the disk" in packages.run("lexgrog", page, cwd=unpacked)
    (commands,) = (one for one in build_parser()._actions if one.choices and not one.option_strings)
    for parser in commands.choices.values():
        for action in parser._actions:
            if action.help != argparse.SUPPRESS:
                assert set(action.option_strings) <= words | {"-h", "--help"}, parser.prog


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_shells_complete_every_command(unpacked: Path, shell: str) -> None:
    share = unpacked / "usr/share"
    names = {
        "bash": "bash-completion/completions/relocator",
        "zsh": "zsh/vendor-completions/_relocator",
    }
    text = (share / names[shell]).read_text()
    assert [command for command in COMMANDS if command not in text] == []


def test_bash_completes_a_command_and_its_option(unpacked: Path) -> None:
    script = unpacked / "usr/share/bash-completion/completions/relocator"
    words = "COMP_WORDS=(relocator {}) COMP_CWORD={}; _shtab_relocator; echo ${{COMPREPLY[*]}}"
    tried = [words.format("plug", 1), words.format("proxy --activ", 2)]
    said = packages.run("bash", "-c", "; ".join([f". {script}", *tried]), cwd=unpacked)
    assert said.split() == ["plugin-path", "--activate-on-write"]
