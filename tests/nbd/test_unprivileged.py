"""A whole move by a user who has no rights; and what nobody may see of its secrets."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.model import source_bytes
from tests.support.servers import Server, plugin, wait_for

SIZE_BYTES = 2 << 20
NOBODY = pwd.getpwnam("nobody")


def as_nobody() -> list[str]:
    """What runs a command as the user who has no rights; we are without some already, or root."""
    if os.geteuid() != 0:
        return []
    ids = [f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups"]
    return ["setpriv", *ids, "--no-new-privs", "--"]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of that user's; pytest's own lie in one of ours."""
    path = Path(tempfile.mkdtemp(prefix="relocator-nobody-"))
    if os.geteuid() == 0:
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    yield path
    shutil.rmtree(path)


def relocator(*words: str) -> str:
    """The command, as that user; what it prints."""
    argv = [*as_nobody(), sys.executable, "-m", "relocator.cli.main", *words]
    root = Path(__file__).parents[2]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def command_lines() -> bytes:
    """Those of all processes that run now, and their environments."""
    found = b""
    for name in ("cmdline", "environ"):
        for path in Path("/proc").glob(f"[0-9]*/{name}"):
            try:
                found += path.read_bytes()
            except OSError:
                continue  # it has ended, or is somebody else's
    return found


def owner(server: Server) -> int:
    return Path(f"/proc/{server.process.pid}").stat().st_uid


def test_a_disk_moves_without_any_right_and_without_showing_the_key(directory: Path) -> None:
    key, image = directory / "key", directory / "disk.img"
    relocator("keygen", str(key))
    secret = key.read_bytes().strip()
    image.write_bytes(source_bytes(SIZE_BYTES))
    image.chmod(0o666)
    within = as_nobody()
    target = (f"disk={image}", f"store={directory / 'maps'}", f"key={key}")
    with plugin(directory, "target", *target, flags=("-t", "1"), within=within) as there:
        source = f"source={there.uri}"
        proxy = (f"store={directory / 'store'}", source, "mode=standby", f"key={key}")
        with plugin(directory, "proxy", *proxy, within=within) as here:
            if os.geteuid() == 0:
                assert owner(there) == owner(here) == NOBODY.pw_uid
            there.connect().pwrite(b"at home", 4096)
            relocator("activate", "--wait", str(here.control_path))
            here.connect().pwrite(b"moved", 8192)
            relocator("wait", str(here.control_path))
            relocator("verify", str(here.control_path))
            wait_for(lambda: there.control.call("identify")["moved"], "the source to be told")
            said = command_lines()
            assert str(key).encode() in said and secret not in said
            shown = [str(server.control.call("identify")) for server in (there, here)]
            shown += [server.log.read_text() for server in (there, here)]
            assert secret.decode() not in "".join(shown)
    for kept in [*directory.glob("maps/*.json"), *directory.glob("store/*.json")]:
        assert secret not in kept.read_bytes()
