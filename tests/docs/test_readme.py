"""What README.md begins with ("Using it") moves a disk between two machines, line by line."""

import re
from pathlib import Path

from tests.support.model import source_bytes
from tests.support.site import join, share_key, site

README = Path(__file__).parents[2] / "README.md"
SIZE_BYTES = 16 << 20


def test_a_disk_moves_between_two_sites(tmp_path: Path) -> None:
    (block,) = re.findall(r"## Using it\n\n((?:    .*\n)+)", README.read_text())
    prepare, keygen, target, proxy, watch, activate, finish = block.splitlines()
    with site(tmp_path, "source") as source, site(tmp_path, "destination") as destination:
        join(source, "10.1.0.1/24", destination, "10.1.0.2/24")
        original = source_bytes(SIZE_BYTES)
        source.path("/srv/disk.img").write_bytes(original)
        for machine in (source, destination):
            machine.run("sh", "-ec", prepare.rpartition(";")[2])
        source.run("sh", "-ec", keygen)
        share_key(source, destination)
        source.stay(target.strip())
        destination.stay(proxy.strip())
        for line in (activate, finish, watch):
            said = destination.run("sh", "-ec", line)
        assert "complete" in said
        assert destination.path("/srv/copy/disk.img").read_bytes() == original
        source.run("sh", "-ec", "kill $(pgrep nbdkit); while pgrep nbdkit; do sleep 0.1; done")
        source.stay(target.strip())
        assert "sealed" in source.run("relocator", "status", "/run/relocator/disk.sock")
        done = source.ask("qemu-io", "-f", "raw", "-c", "write 0 4k", "nbd://10.1.0.1")
        assert (done.returncode, "write failed" in done.stdout) == (1, True)
