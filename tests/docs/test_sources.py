"""docs/sources.md does what it says where it has commands for both sites."""

import json
import random
from pathlib import Path

import pytest

from tests.docs.page import Page
from tests.support.model import source_bytes
from tests.support.site import Site, site

pytestmark = pytest.mark.timeout(300)
PAGE = Path(__file__).parents[2] / "docs" / "sources.md"
SIZE_BYTES = 32 << 20
CERTIFICATES = "The way to the source"
_DEVICE = "/machine/peripheral/vda/virtio-backend"


def ask(machine: Site, *commands: dict[str, object]) -> list[str]:
    """What the VM's QEMU answers by QMP."""
    lines = [json.dumps({"execute": "qmp_capabilities"}), *map(json.dumps, commands)]
    machine.path("/srv/ask.qmp").write_text("\n".join(lines) + "\n")
    said = machine.run("sh", "-c", "socat -t 2 - UNIX-CONNECT:/run/vm1.qmp < /srv/ask.qmp")
    assert "error" not in said.lower(), said
    return said.splitlines()


def write(machine: Site, model: bytearray, offset: int, salt: int) -> None:
    """The VM's device writes 4 KiB."""
    line = f'qemu-io -d {_DEVICE} "write -P {salt} {offset} 4096"'
    ask(machine, {"execute": "human-monitor-command", "arguments": {"command-line": line}})
    model[offset : offset + 4096] = bytes([salt]) * 4096


def test_a_vm_of_qemu_is_copied_ahead_by_its_bitmap(tmp_path: Path) -> None:
    """Both sites are one machine, which has the addresses of both; what the VM writes is told."""
    page, choose = Page(PAGE), random.Random(3)
    with site(tmp_path, "both") as machine:
        sites = {"source": machine, "destination": machine}
        for address in ("10.1.0.1/32", "10.1.0.2/32"):
            machine.run("ip", "address", "add", address, "dev", "lo")
        machine.run("ip", "link", "set", "lo", "up")
        machine.run("mkdir", "-p", "/srv", "/run/relocator")
        model = source_bytes(SIZE_BYTES)
        machine.path("/srv/vm1.img").write_bytes(model)
        qemu = "qemu-system-x86_64 -S -nodefaults -display none -m 64"
        qemu += " -blockdev driver=file,filename=/srv/vm1.img,node-name=disk"
        qemu += " -device virtio-blk-pci,drive=disk,id=vda"
        qemu += " -qmp unix:/run/vm1.qmp,server=on,wait=off"
        machine.run("systemd-run", "sh", "-c", f"exec {qemu}")
        machine.run("sh", "-c", "until [ -S /run/vm1.qmp ]; do sleep 0.1; done")
        page.run("A source with a dirty bitmap", sites)
        for salt in range(1, 6):
            write(machine, model, choose.randrange(SIZE_BYTES // 4096) * 4096, salt)
        ask(machine, {"execute": "stop"})
        page.run("The switch from a bitmap", sites)
        assert {block.section for block in page.not_run} == {CERTIFICATES}
        assert machine.path("/srv/copy/disk.img").read_bytes() == model


def test_the_certificates_that_are_made_will_do_at_both_ends(tmp_path: Path) -> None:
    serve = "relocator target /srv/disk.img --listen 10.1.0.1:10809 --detach /srv/target.pid"
    options = "--tls=require --tls-certificates=/etc/pki/relocator --tls-verify-peer"
    copy = "relocator proxy /srv/copy nbds://10.1.0.1 --detach /srv/copy.pid --control /srv/sock"
    with site(tmp_path, "both") as machine:
        for address in ("10.1.0.1/32", "10.1.0.2/32"):
            machine.run("ip", "address", "add", address, "dev", "lo")
        machine.run("mkdir", "-p", "/srv")
        machine.path("/srv/disk.img").write_bytes(source_bytes(SIZE_BYTES))
        Page(PAGE).run(CERTIFICATES, {"source": machine})
        machine.run("relocator", "keygen", "/srv/key")
        machine.run("sh", "-c", f"{serve} --key /srv/key --nbdkit-options '{options}'")
        theirs = "--key /srv/key --tls-certificates /etc/pki/relocator --listen 10.1.0.2:10809"
        machine.run("sh", "-c", f"{copy} {theirs}")
        machine.run("relocator", "wait", "/srv/sock")
        assert machine.path("/srv/copy/disk.img").read_bytes() == source_bytes(SIZE_BYTES)
