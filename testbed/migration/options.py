"""Everything that decides a run: the command line of `testbed.migration`, checked."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from testbed import systems
from testbed.migration import disk
from testbed.network import link_events
from testbed.network.wan import (
    LinkProfile,
    ProfileError,
    parse_fraction,
    parse_rate_bits_per_s,
    parse_size_bytes,
    parse_time_s,
)
from testbed.workloads import suite


@dataclass(frozen=True, slots=True)
class Parameters:
    """A run's parameters in base units; they are written to run.json as they stand here."""

    rtt_s: float
    rate_bits_per_s: int
    loss: float
    jitter_s: float
    queue_bytes: int | None
    congestion: str
    offload: str
    events: tuple[link_events.LinkEvent, ...]
    disk_bytes: int
    fill_bytes: int
    deleted_bytes: int
    file_system: str
    partition: str
    guest: str
    workloads: str
    memory_bytes: int
    system: str
    settings: dict[str, str]
    background: str
    ceiling: str
    background_delay_s: float
    switch_at_s: float
    duration_s: float
    tail_s: float
    read_iops: int
    write_iops: int
    ledger_iops: int
    compile_period_s: float
    tolerance: float
    seed: int

    def __post_init__(self) -> None:
        if self.switch_at_s >= self.duration_s:
            right = f"the switch comes before the end, --duration {self.duration_s:g}s"
            raise ProfileError("switch-at", f"{self.switch_at_s:g}s", right)
        for name in ("read_iops", "write_iops", "ledger_iops"):
            if getattr(self, name) < 1:
                right = "at least one a second"
                raise ProfileError(name.replace("_", "-"), getattr(self, name), right)
        if self.guest == "qemu":
            self._check_real()
        if not 0 < self.tolerance < 1:
            raise ProfileError("tolerance", self.tolerance, "a fraction of the rate, such as 2%")

    def _check_real(self) -> None:
        """What a guest of QEMU doesn't have."""
        only = {"partition": "none", "deleted_bytes": 0, "workloads": "mixed"}
        for name, value in only.items():
            if getattr(self, name) != value:
                parameter = name.removesuffix("_bytes")
                right = f"a guest of QEMU has only {value} (--guest qemu)"
                raise ProfileError(parameter, getattr(self, name), right)
        if self.file_system == "ext2":
            raise ProfileError("file-system", "ext2", "a guest of QEMU has ext3 or ext4")

    @property
    def profile(self) -> LinkProfile:
        return LinkProfile(
            rtt_s=self.rtt_s,
            rate_bits_per_s=self.rate_bits_per_s,
            loss=self.loss,
            jitter_s=self.jitter_s,
            queue_bytes=self.queue_bytes,
            offload=self.offload,
            congestion=self.congestion,
        )

    @property
    def steps(self) -> list[link_events.Step]:
        """What happens to the link, counted from the switch."""
        return link_events.steps(self.events, self.profile)

    @property
    def load(self) -> list[suite.Workload]:
        """What the guest does, in the order to start it."""
        rates = suite.Settings(
            self.read_iops, self.write_iops, self.ledger_iops, self.compile_period_s
        )
        return suite.parse(self.workloads, rates)

    @property
    def memory_copy_s(self) -> float:
        """How long the memory copy should take, so that it can end at the switch."""
        return self.memory_bytes * 8 * 1.05 / self.rate_bits_per_s + 2 * self.rtt_s

    def results(self) -> dict[str, Any]:
        """The `parameters` object of run.json."""
        return asdict(self)


GUESTS = ("dm", "qemu")
_Parse = Callable[[str, str], Any]


def _parse_queue(parameter: str, text: str) -> int | None:
    return None if text == "auto" else parse_size_bytes(parameter, text)


# option -> (how to read it, default, help)
_QUANTITIES: dict[str, tuple[_Parse, str, str]] = {
    "rtt": (parse_time_s, "20ms", "round-trip time of the WAN"),
    "rate": (parse_rate_bits_per_s, "100mbit", "rate of the WAN, each way"),
    "loss": (parse_fraction, "0", "loss of the WAN, each way, such as 0.1%%"),
    "jitter": (parse_time_s, "0", "extra delay each way, uniform in plus or minus this"),
    "queue": (
        _parse_queue,
        "auto",
        "standing queue of the WAN's routers; auto: as long as the RTT",
    ),
    "disk": (parse_size_bytes, "128M", "size of the guest's disk"),
    "fill": (parse_size_bytes, "96M", "bytes of files on it"),
    "deleted": (parse_size_bytes, "0", "bytes of files that were on it: free, but not holes"),
    "memory": (parse_size_bytes, "32M", "memory copied over the WAN before the switch (0: none)"),
    "background-delay": (parse_time_s, "8s", "from the switch to the background copy's start"),
    "switch-at": (parse_time_s, "10s", "when the guest moves (the memory copy ends about then)"),
    "duration": (parse_time_s, "30s", "what is observed, at least, from the workloads' start"),
    "tail": (parse_time_s, "4s", "how long the workloads go on once the source is off"),
    "compile-period": (parse_time_s, "4s", "compile cycles start this far apart"),
    "tolerance": (parse_fraction, "2%", "how far the link's rate may be off; its RTT: half of it"),
}
_COUNTS = {
    "read-iops": (25, "random reads of the guest, a second"),
    "write-iops": (10, "small synchronous writes of the guest, a second"),
    "ledger-iops": (10, "ledger writes of the guest, a second"),
    "seed": (1, "seed of data and workloads"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m testbed.migration",
        description="Moves a guest and its disk between two emulated sites, and proves the copy. "
        "Results go to the directory in LAB_OUT (see results/FORMAT.md).",
    )
    for name, (_, default, text) in _QUANTITIES.items():
        shown = default.replace("%", "%%")
        parser.add_argument(f"--{name}", default=default, help=f"{text} (default {shown})")
    for name, (count, text) in _COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"{text} (default {count})")
    text = "whether hosts send bursts as one packet (auto: unless there is loss or jitter)"
    parser.add_argument("--offload", choices=("auto", "on", "off"), default="auto", help=text)
    text = "TCP's congestion control on every host"
    parser.add_argument("--congestion", default="cubic", help=f"{text} (default cubic)")
    text = "AT:cut:FOR, AT:rate:RATE, AT:rtt:RTT or AT:loss:LOSS; AT counts from the switch"
    parser.add_argument("--event", action="append", default=[], help=f"{text} (repeatable)")
    text = "the guest's file system (default ext3)"
    parser.add_argument("--file-system", choices=disk.FILE_SYSTEMS, default="ext3", help=text)
    text = "what the file system stands in (default: the whole disk)"
    parser.add_argument("--partition", choices=disk.PARTITIONS, default="none", help=text)
    text = "dm: a file system whose device is exchanged; qemu: a VM, by testbed.migration.lab"
    parser.add_argument("--guest", choices=GUESTS, default="dm", help=f"{text} (default dm)")
    text = f"what the guest does: {suite.KNOWN} (default mixed,compile; of qemu mixed)"
    parser.add_argument("--workloads", help=text)
    known = ", ".join(systems.SYSTEMS)
    text = f"what becomes of the disk: {known} (default relocator)"
    parser.add_argument("--system", default="relocator", help=text)
    text = "KEY=VALUE, a setting of the system, such as order=hot (repeatable)"
    parser.add_argument("--set", action="append", default=[], dest="settings", help=text)
    text = "whether the rest is copied after the switch, or only to prove the copy at the end"
    parser.add_argument("--background", choices=("on", "off"), default="on", help=text)
    text = "whether nbdcopy's speed is measured before (default off)"
    parser.add_argument("--ceiling", choices=("on", "off"), default="off", help=text)
    return parser


def parse(arguments: Sequence[str]) -> Parameters:
    """The parameters of a command line; a wrong one ends the program with a line that says why."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    values: dict[str, Any] = {}
    units = {"rate": "_bits_per_s", "loss": "", "tolerance": "", "queue": "_bytes"}
    try:
        for name, (read, _, _) in _QUANTITIES.items():
            suffix = units.get(name, "_bytes" if read is parse_size_bytes else "_s")
            key = name.replace("-", "_")
            values[key + suffix] = read(name, given.pop(key))
        if given["workloads"] is None:
            given["workloads"] = "mixed" if given["guest"] == "qemu" else "mixed,compile"
        values["settings"] = systems.parse_settings(given.pop("settings"))
        values["events"] = tuple(link_events.parse(text) for text in given.pop("event"))
        parameters = Parameters(**values, **given)
        systems.check(parameters.system, parameters.settings)
        parameters.steps, parameters.load  # noqa: B018  # checks the link and the load
    except ProfileError as error:
        parser.error(str(error))
    return parameters
