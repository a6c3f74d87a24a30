"""A libvirt daemon on a machine of the test's own, and a guest in its hands."""

import time
from dataclasses import dataclass
from pathlib import Path

from testbed.guest import build, disks
from testbed.guest.vm import KERNEL_COMMAND_LINE, MACHINE, PROCESSOR, Vm
from tests.support.servers import wait_for
from tests.support.site import Site

#: where a guest's kernel, its console, its report and its control socket are
FILES = "/srv/guest"
_DAEMON = """\
listen_tls = 0
listen_tcp = 1
auth_tcp = "none"
host_uuid_source = "machine-id"
"""
# The machine has no control groups for QEMU's own use, no AppArmor, and no virtlogd.
_QEMU = """\
user = "root"
group = "root"
security_driver = "none"
remember_owner = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
_UNIT = """\
[Service]
ExecStart=/usr/sbin/libvirtd --listen
KillMode=process
"""
_DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>3f9b2c5e-7a41-4f0e-9d57-5c1d0a1e8b22</uuid>
  <memory unit='MiB'>128</memory>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    <kernel>{files}/vmlinux</kernel>
    <initrd>{files}/initramfs</initrd>
    <cmdline>{words}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom'><model>{processor}</model></cpu>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
{disk}
    <serial type='file'><source path='{files}/console'/></serial>
    <channel type='file'>
      <source path='{files}/report'/><target type='virtio' name='report'/>
    </channel>
    <channel type='unix'>
      <source mode='bind' path='{files}/control'/><target type='virtio' name='control'/>
    </channel>
    <memballoon model='none'/>
  </devices>
</domain>
"""


@dataclass(frozen=True)
class _Domain:
    """Stands for QEMU's process, which belongs to libvirt."""

    name: str

    def check(self) -> None:
        """libvirt looks after it."""


def start_daemon(machine: Site) -> None:
    """A libvirtd as Debian's, which listens on TCP too."""
    machine.run("useradd", "--system", "--user-group", "libvirt-qemu")
    machine.path("/etc/libvirt/libvirtd.conf").write_text(_DAEMON)
    machine.path("/etc/libvirt/qemu.conf").write_text(_QEMU)
    machine.path("/etc/systemd/system/libvirtd.service").write_text(_UNIT)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "libvirtd")
    wait_for(lambda: machine.ask("virsh", "list").returncode == 0, f"libvirtd at {machine.name}")


def put_guest(*machines: Site) -> None:
    """The guest's kernel and first stage, at each machine."""
    image = build.ensure()
    for machine in machines:
        machine.path(FILES).mkdir()
        machine.path(f"{FILES}/vmlinux").write_bytes(image.kernel.read_bytes())
        machine.path(f"{FILES}/initramfs").write_bytes(image.first_boot())


def make_disk(path: Path, contents: disks.Contents | None = None) -> None:
    """A disk of the guest, never booted from."""
    disks.make(path, contents or disks.Contents(), build.ensure())


def domain(name: str, disk: str) -> str:
    """The guest as libvirt wants it described, with a disk as it is documented."""
    return _DOMAIN.format(
        name=name,
        machine=MACHINE,
        processor=PROCESSOR,
        files=FILES,
        words=KERNEL_COMMAND_LINE,
        disk=disk,
    )


def guest_at(machine: Site) -> Vm:
    """The guest while it runs there."""
    process = _Domain(f"the guest at {machine.name}")
    return Vm(process, machine.path(FILES), None, None)  # type: ignore[arg-type]


def shut_down(machine: Site, name: str) -> None:
    """The guest makes its disk clean and powers off."""
    guest_at(machine).tell("stop")
    give_up_s = time.monotonic() + 120.0
    while "shut off" not in machine.run("virsh", "domstate", name):
        assert time.monotonic() < give_up_s, "the guest doesn't shut down"
        time.sleep(0.1)
