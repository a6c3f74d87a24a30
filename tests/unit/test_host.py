"""Facts about the host, on machines that the tests invent."""

from collections.abc import Sequence

from relocator.cli import host


class Machine(host.Probe):
    """Has these commands (name -> output), files, loadable modules and Python modules."""

    def __init__(
        self,
        commands: dict[str, str] | None = None,
        *,
        paths: Sequence[str] = (),
        loadable: Sequence[str] = (),
        python: Sequence[str] = (),
        uid: int = 0,
        netem_built_in: bool = False,
        texts: dict[str, str] | None = None,
        sysctl: dict[str, str] | None = None,
    ) -> None:
        self.commands = commands or {}
        self.paths, self.loadable, self.python = paths, loadable, python
        self.uid, self.netem_built_in = uid, netem_built_in
        self.texts, self.sysctl = texts or {}, sysctl or {}

    def euid(self) -> int:
        return self.uid

    def release(self) -> str:
        return "6.1.0-test"

    def exists(self, path: str) -> bool:
        return path in self.paths

    def text(self, path: str) -> str:
        return self.texts.get(path, "")

    def find(self, command: str) -> str | None:
        return f"/usr/bin/{command}" if command in self.commands else None

    def python_module(self, name: str) -> bool:
        return name in self.python

    def run(self, command: Sequence[str]) -> tuple[int, str]:
        if command[0] == "modprobe":
            return (0, "") if command[-1] in self.loadable else (1, "")
        if command[0] == "unshare":
            return (0, "") if self.netem_built_in else (2, "")
        if command[0] == "sysctl" and command[-1] in self.sysctl:
            return 0, self.sysctl[command[-1]]
        return 0, self.commands.get(command[0], "")


EVERY_TOOL = {tool.command: f"{tool.command} version 1.2.3" for tool in host.TOOLS}
DEBIAN = Machine(
    EVERY_TOOL,
    loadable=("sch_netem", "nbd", "dm_mod", "tcp_bbr"),
    python=("nbd", "mininet", "qemu.qmp", "prometheus_client"),
)


def test_debian_with_everything_can_run_natively() -> None:
    assert host.native_obstacles(DEBIAN) == []
    assert host.vm_obstacles(DEBIAN) == []
    assert host.build_obstacles(DEBIAN) == []
    assert all(fact.ok for fact in host.survey(DEBIAN))


def test_tcp_s_buffers_bear_a_long_fast_link_or_not() -> None:
    enough = host.buffers_fact(Machine({"sysctl": "4096 16384 4194304"}))
    assert enough.ok and enough.detail == "25 MB in flight, 2.0 Gbit/s at 100 ms"
    little = host.buffers_fact(Machine({"sysctl": "4096 16384 212992"}))
    assert not little.ok and "net.ipv4.tcp_rmem=" in str(little.remedy)
    assert host.buffers_fact(Machine({"sysctl": "unknown key"})).ok


def test_the_ports_of_arriving_guests_are_kept_from_connections_or_not() -> None:
    key = "net.ipv4.ip_local_reserved_ports"

    def fact(reserved: str, local: str = "32768\t60999", settings: str = "") -> host.Fact:
        sysctl = {key: reserved, "net.ipv4.ip_local_port_range": local}
        texts = {"etc/libvirt/qemu.conf": settings}
        return host.arrival_ports_fact(Machine(sysctl=sysctl, texts=texts))

    assert fact("\n").remedy == f"sysctl -w {key}=49152-49215"
    assert fact("8080,49152-49214").remedy == f"sysctl -w {key}=8080,49152-49214,49152-49215"
    assert fact("8080,49152-49215").ok and fact("49000-49200,49201-50000").ok
    assert fact("", local="32768 49151").ok and not fact("", local="32768 49152").ok
    moved = "#migration_port_min = 1\nmigration_port_min = 61000\nmigration_port_max=61009\n"
    assert fact("", settings=moved).ok
    assert "61000 to 61009" in fact("", "32768 65535", moved).detail
    assert host.arrival_ports_fact(Machine({"sysctl": ""})).ok


def test_where_there_is_no_libvirt_no_guest_of_its_arrives() -> None:
    name = host.arrival_ports_fact(DEBIAN).name
    for paths, told in ((("etc/libvirt",), True), ((), False)):
        facts = host.survey(Machine(EVERY_TOOL, paths=paths))
        assert (name in [fact.name for fact in facts]) == told


def test_bbr_is_there_if_the_kernel_lists_or_can_load_it() -> None:
    allowed = host.bbr_fact(Machine({"sysctl": "reno bbr cubic"}))
    assert allowed.ok and "sysctl" not in allowed.detail
    loadable = host.bbr_fact(Machine({"sysctl": "reno cubic"}, loadable=("tcp_bbr",)))
    assert loadable.ok and loadable.detail.endswith(
        "the units': modprobe tcp_bbr; sysctl -w "
        "net.ipv4.tcp_allowed_congestion_control='reno cubic bbr'"
    )
    assert not host.bbr_fact(Machine({"sysctl": "reno cubic"})).ok


def test_missing_kernel_features_are_named_in_one_line() -> None:
    machine = Machine(EVERY_TOOL, loadable=("nbd",), python=("nbd", "mininet"))
    assert host.native_obstacles(machine) == ["kernel 6.1.0-test has no netem, device-mapper"]


def test_features_built_into_the_kernel_are_found() -> None:
    signs = ("sys/block/nbd0", "sys/module/dm_mod")
    machine = Machine(
        EVERY_TOOL, paths=signs, python=("nbd", "mininet"), uid=0, netem_built_in=True
    )
    assert host.native_obstacles(machine) == []


def test_netem_is_not_tried_without_root() -> None:
    assert not host.kernel_fact("netem", Machine(uid=1000, netem_built_in=True)).ok


def test_an_ordinary_user_cannot_run_natively() -> None:
    machine = Machine(EVERY_TOOL, loadable=DEBIAN.loadable, python=DEBIAN.python, uid=1000)
    assert host.native_obstacles(machine) == ["not root"]
    assert "sudo" in (host.root_fact(machine).remedy or "")


def test_a_missing_command_comes_with_its_package() -> None:
    commands = EVERY_TOOL | {}
    del commands["qemu-system-x86_64"], commands["mkfs.erofs"]
    machine = Machine(commands, loadable=DEBIAN.loadable, python=("nbd",))
    assert host.vm_obstacles(machine) == [
        "qemu-system-x86_64 is missing (apt-get install qemu-system-x86)"
    ]
    assert host.build_obstacles(machine) == ["mkfs.erofs is missing (apt-get install erofs-utils)"]
    assert host.native_obstacles(machine) == [
        "Python can't import mininet (apt-get install mininet)"
    ]


def test_an_ordinary_user_builds_with_subordinate_ids() -> None:
    machine = Machine(EVERY_TOOL, uid=1000)
    assert host.build_obstacles(machine) == [
        "not root, and newuidmap is missing (apt-get install uidmap)"
    ]


def test_a_version_is_read_from_what_the_tool_prints() -> None:
    tool = next(tool for tool in host.TOOLS if tool.command == "nbdkit")
    machine = Machine({"nbdkit": "nbdkit 1.32.5 (nbdkit-1.32.5-1)"})
    assert host.tool_fact(tool, machine) == host.Fact("nbdkit", True, "1.32.5")


def test_what_a_verb_needs_is_named_with_the_verb() -> None:
    facts = {fact.name: fact for fact in host.survey(Machine(python=("prometheus_client",)))}
    assert facts["python module prometheus_client"].ok
    missing = host.Fact(
        "python module qemu.qmp", False, "missing: relocator migrate", "pip install qemu.qmp"
    )
    assert facts["python module qemu.qmp"] == missing
    assert facts["psktool"].remedy == "apt-get install gnutls-bin"
    assert not host.SYSTEM.python_module("no_such_package.part")


def test_this_machine_can_be_surveyed() -> None:
    facts = {fact.name: fact for fact in host.survey()}
    assert facts["nbdkit"].ok
    assert all(fact.ok or fact.remedy for fact in facts.values())
