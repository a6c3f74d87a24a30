"""The Debian package installed, used and removed in a root of its own: nothing else was ever there.

The root is made of a Debian release's packages, those that ours depends on; then the network is not
needed any more. `make package-test` runs these; they take minutes.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.lab.debian import apt_proxies
from tests.support import packages

pytestmark = [pytest.mark.clean_root, pytest.mark.timeout(1500)]

SUITES = ("bookworm", "trixie")
BESIDES = ("libnbd-bin", "bash-completion", "man-db")  # what the test uses there
USE = """
set -eux
[ "$(relocator plugin-path)" = /usr/lib/python3/dist-packages/relocator/plugin.py ]
work=$(mktemp -d); cd "$work"
head -c 8M /dev/urandom >disk.img
nbdkit --unix source --pidfile source.pid relocator disk=disk.img control=$work/source.control
nbdkit --unix copy --pidfile copy.pid relocator store=store control=$work/copy.control \
    source="nbd+unix:///?socket=$work/source"
relocator wait copy.control
relocator status copy.control --json | grep -q '"role": *"target"'
relocator verify copy.control
nbdcopy 'nbd+unix:///?socket=copy' read.img
cmp disk.img read.img
kill "$(cat copy.pid)" "$(cat source.pid)"
if nbdkit --unix wrong relocator disk=/nowhere 2>wrong.txt; then exit 1; fi
grep -q 'disk=/nowhere' wrong.txt
man relocator nbdkit-relocator-plugin | grep -q 'OPTIONS .relocator proxy'
bash -c '. /usr/share/bash-completion/bash_completion
    . /usr/share/bash-completion/completions/relocator
    COMP_WORDS=(relocator plug) COMP_CWORD=1
    "$(complete -p relocator | sed "s/.*-F \\([^ ]*\\).*/\\1/")"
    [ "${COMPREPLY[*]}" = plugin-path ]'
cd /; rm -rf "$work"
"""


class Root:
    """A root directory, entered with processes and mounts of its own, and no network."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, script: str) -> str:
        own = ("--mount", "--pid", "--net", "--fork", "--kill-child=KILL")
        inside = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev"'
        inside += ' && exec chroot "$0" sh -c "$1"'
        argv = ("unshare", *own, "sh", "-c", inside, self.path, script)
        return packages.run(*argv, cwd=self.path)

    def files(self) -> set[str]:
        """What is in it, but for what dpkg and others keep of what was done."""
        kept = ("./var/lib/dpkg/", "./var/log/", "./var/cache/", "./tmp/", "./var/lib/systemd/")
        found = self("find . -xdev -path ./proc -prune -o -path ./dev -prune -o -print").split("\n")
        return {name for name in found if not name.startswith(kept)}


@pytest.fixture(params=SUITES)
def root(request: pytest.FixtureRequest, built: dict[str, Path], tmp_path: Path) -> Iterator[Root]:
    depends = packages.run("dpkg-deb", "-f", built[".deb"], "Depends", cwd=tmp_path)
    names = {one.split()[0].partition(":")[0] for one in depends.split(",")}
    path = tmp_path / "root"
    options = ["--mode=root", "--variant=minbase", "--skip=check/empty"]
    options += [f"--aptopt={option}" for option in apt_proxies()]
    options += ["--include=" + ",".join(sorted({*names, *BESIDES})), "--dpkgopt=force-unsafe-io"]
    packages.run("mmdebstrap", *options, request.param, path, cwd=tmp_path)
    shutil.copy(built[".deb"], path / "relocator.deb")
    yield Root(path)
    shutil.rmtree(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="a root of one's own needs root")
def test_the_package_is_installed_used_and_removed(root: Root) -> None:
    before = root.files()
    root("dpkg --install /relocator.deb")
    assert "install ok installed" in root("dpkg --status relocator")
    assert root("dpkg --verify relocator") == ""
    root(USE)
    root("dpkg --remove relocator && dpkg --purge relocator")
    assert root.files() == before
    root("! nbdkit relocator --dump-plugin 2>/dev/null && ! command -v relocator")
