"""The WAN link: what was asked for, and the netem settings that make it so.

A profile is the link as a user thinks of it: round-trip time, rate, loss, jitter and how much its
routers queue. `netem_settings` turns it into what one end of the link needs; the same settings go
to both ends, each delaying by half the round-trip time.

netem keeps every packet that it delays in one queue, so `limit` must hold two things:

    delay line       rate x one-way delay     packets that are "in the fibre"
    standing queue   `queue_bytes`            what a router's buffer would hold

    limit = ceil((rate x rtt / 2 / 8 + queue_bytes) / 1514)

The default standing queue is one bandwidth-delay product, the classic size of a router's buffer
(Villamizar and Song, 1994), but never below 100 full frames. netem's own default of 1000 packets
drops within the delay line of any link beyond 12 Mbit x 1 s, silently.

netem charges a frame as the qdisc sees it: Ethernet header and payload, no checksum, preamble or
gap. A full TCP segment with time stamps carries 1448 bytes in 1514, a full datagram 1472. With a
rate set, netem never reorders: jitter delays what comes behind as well. Its loss and jitter draw
from the kernel's random numbers, which repeat on the virtual clock (the 6.1 kernel's netem takes
no seed of its own).

Segmentation offload (`offload`) decides what a packet is. Without it every frame goes through netem
by itself: loss, jitter and the queue's limit mean frames, as on a real link. With it, TCP hands
down bursts of about a millisecond: the rate stays exact (netem charges every frame's header), but
the queue holds several times `queue_bytes` of bulk data and byte counters see one header a burst.
It costs a third of the machine's time, and above 400 Mbit/s nothing else keeps up, so `auto` uses
it where there is neither loss nor jitter, or the link is that fast.

A link that stands can be changed (`set_link`) and cut (`cut`). Both use netem's `change`, which
keeps what is on its way: a new rate or delay loses nothing, and of a cut link nothing arrives that
is sent later. No interface goes down, as no host notices when a cable is cut far away.

This is the only module that imports pyroute2.
"""

import math
import re
from dataclasses import dataclass

MTU_BYTES = 1500
ETHERNET_BYTES = 14
IP_BYTES = 20
TCP_BYTES = 20 + 12  # with time stamps
UDP_BYTES = 8
FRAME_BYTES = MTU_BYTES + ETHERNET_BYTES
TCP_HEADER_FACTOR = (MTU_BYTES - IP_BYTES - TCP_BYTES) / FRAME_BYTES
UDP_HEADER_FACTOR = (MTU_BYTES - IP_BYTES - UDP_BYTES) / FRAME_BYTES
MINIMUM_QUEUE_BYTES = 100 * FRAME_BYTES
OFFLOAD_ABOVE_BITS_PER_S = 400_000_000
CONGESTION_CONTROLS = ("cubic", "reno", "bbr")

_TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_RATE_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_SIZE_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class ProfileError(ValueError):
    """A parameter of the link, or of a run, that can't be; says which, its value and what can."""

    def __init__(self, parameter: str, value: object, right: str) -> None:
        super().__init__(f"{parameter}={value}: {right}")


def _parse(parameter: str, text: str, units: dict[str, float], example: str) -> float:
    """A non-negative number with one of `units`, in the unit whose factor is 1."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z%]*)\s*", text)
    if match is None or match[2].lower() not in units:
        known = ", ".join(unit for unit in units if unit)
        raise ProfileError(parameter, repr(text), f"give a number and one of {known}: {example}")
    return float(match[1]) * units[match[2].lower()]


def parse_time_s(parameter: str, text: str) -> float:
    """`20ms`, `1.5s`, `150us`; a bare 0 needs no unit."""
    return 0.0 if text.strip() == "0" else _parse(parameter, text, _TIME_UNITS, "20ms")


def parse_rate_bits_per_s(parameter: str, text: str) -> int:
    """`100mbit`, `1gbit`, `512kbit`."""
    return round(_parse(parameter, text, _RATE_UNITS, "100mbit"))


def parse_fraction(parameter: str, text: str) -> float:
    """`0.1%` or a bare 0; the result is a fraction of one."""
    return 0.0 if text.strip() == "0" else _parse(parameter, text, {"%": 0.01}, "0.1%")


def parse_size_bytes(parameter: str, text: str) -> int:
    """`128M`, `4K`, `512`; binary units."""
    return round(_parse(parameter, text, _SIZE_UNITS, "128M"))


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """The link between the sites, the same in both directions.

    `loss` is a fraction, `jitter_s` the half-width of the uniform extra delay each way,
    `queue_bytes` the standing queue (None: one bandwidth-delay product, at least 100 frames),
    `congestion` what TCP does about a full queue, on all hosts.
    """

    rtt_s: float
    rate_bits_per_s: int
    loss: float = 0.0
    jitter_s: float = 0.0
    queue_bytes: int | None = None
    offload: str = "auto"
    congestion: str = "cubic"

    def __post_init__(self) -> None:
        if not 0 <= self.rtt_s <= 10:
            raise ProfileError("rtt", self.rtt_s, "a round-trip time is 0 to 10 s")
        if not 10_000 <= self.rate_bits_per_s <= 100 * 10**9:
            raise ProfileError("rate", self.rate_bits_per_s, "a rate is 10 kbit/s to 100 Gbit/s")
        if not 0 <= self.loss < 1:
            raise ProfileError("loss", self.loss, "a loss is at least 0 % and below 100 %")
        if not 0 <= self.jitter_s <= self.rtt_s / 2:
            raise ProfileError(
                "jitter", self.jitter_s, f"jitter is 0 to half the RTT, {self.rtt_s / 2:g} s here"
            )
        if self.queue_bytes is not None and self.queue_bytes < FRAME_BYTES:
            raise ProfileError("queue", self.queue_bytes, f"at least a frame, {FRAME_BYTES} bytes")
        if self.congestion not in CONGESTION_CONTROLS:
            known = ", ".join(CONGESTION_CONTROLS)
            raise ProfileError("congestion", repr(self.congestion), f"one of {known}")

    @property
    def bursts(self) -> bool:
        """Whether hosts may send several frames as one packet (see the module's head)."""
        if self.offload != "auto":
            return self.offload == "on"
        exact = self.loss > 0 or self.jitter_s > 0
        return not exact or self.rate_bits_per_s > OFFLOAD_ABOVE_BITS_PER_S

    @property
    def delay_s(self) -> float:
        """One way, the delay that each end adds."""
        return self.rtt_s / 2

    @property
    def bandwidth_delay_bytes(self) -> int:
        """What fills the link for one round trip."""
        return math.ceil(self.rate_bits_per_s / 8 * self.rtt_s)

    @property
    def standing_queue_bytes(self) -> int:
        if self.queue_bytes is not None:
            return self.queue_bytes
        return max(self.bandwidth_delay_bytes, MINIMUM_QUEUE_BYTES)

    @property
    def limit_packets(self) -> int:
        """netem's `limit`: the delay line (its jitter too) and the standing queue, in frames."""
        delay_line_bytes = self.rate_bits_per_s / 8 * (self.delay_s + self.jitter_s)
        return math.ceil((delay_line_bytes + self.standing_queue_bytes) / FRAME_BYTES)

    def derived(self) -> dict[str, float | int | bool]:
        """What stands under `link` in a run's results."""
        return {
            "delay_s": self.delay_s,
            "queue_bytes": self.standing_queue_bytes,
            "limit_packets": self.limit_packets,
            "header_factor": round(TCP_HEADER_FACTOR, 6),
            "offload": self.bursts,
        }


def netem_settings(profile: LinkProfile) -> dict[str, int | float]:
    """Keyword arguments of pyroute2's netem: microseconds, per cent, and *bytes* a second."""
    settings: dict[str, int | float] = {
        "delay": round(profile.delay_s * 1e6),
        "limit": profile.limit_packets,
        "rate": profile.rate_bits_per_s // 8,
    }
    if profile.jitter_s:
        settings["jitter"] = round(profile.jitter_s * 1e6)
    if profile.loss:
        settings["loss"] = profile.loss * 100
    return settings


def _netem(verb: str, interfaces: tuple[str, ...], settings: dict[str, int | float]) -> None:
    """Adds or changes both ends' netem; they lie in the caller's network namespace."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.rtnl.tcmsg import sched_netem, sched_tbf

    # Without this pyroute2 sends netem's rate in an attribute (TCA_RATE) that the kernel refuses.
    sched_netem.fix_request = sched_tbf.fix_request
    with IPRoute() as netlink:
        for name in interfaces:
            found = netlink.link_lookup(ifname=name)
            if not found:
                raise ProfileError("interface", name, "no such interface in this namespace")
            netlink.tc(verb, "netem", index=found[0], handle="1:", **settings)


def apply(profile: LinkProfile, interfaces: tuple[str, str]) -> None:
    """Puts netem on both ends of the WAN link, fresh interfaces without any."""
    _netem("add", interfaces, netem_settings(profile))


def set_link(profile: LinkProfile, interfaces: tuple[str, str]) -> None:
    """Makes a standing link, cut or not, the profile's. Offload stays as it was on the hosts."""
    # `change` keeps what is left out.
    _netem("change", interfaces, {"jitter": 0, "loss": 0} | netem_settings(profile))


def cut(profile: LinkProfile, interfaces: tuple[str, ...]) -> None:
    """Loses whatever these ends send from now on; `set_link` mends it."""
    _netem("change", interfaces, netem_settings(profile) | {"loss": 100})
