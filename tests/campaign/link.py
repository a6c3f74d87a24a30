"""The WAN of a world: what holds now is the sum of the faults that have begun and not ended."""

from dataclasses import replace

from testbed.network import wan
from testbed.network.topology import WAN_PORTS
from testbed.network.wan import LinkProfile
from tests.campaign.world import Event, World

#: what the network is built with, before there is a world
FIRST = LinkProfile(rtt_s=0.02, rate_bits_per_s=50_000_000, offload="on")


class Link:
    """The link between the sites."""

    def __init__(self, world: World) -> None:
        rtt_s, rate = world.rtt_ms / 1000, world.rate_mbit * 1_000_000
        self._profile = replace(FIRST, rtt_s=rtt_s, rate_bits_per_s=rate)
        self._faults: list[Event] = []
        self._set()

    def begin(self, fault: Event) -> None:
        """The fault holds from now on."""
        self._faults.append(fault)
        self._set()

    def end(self, fault: Event) -> None:
        """It doesn't any more."""
        self._faults.remove(fault)
        self._set()

    def mend(self) -> None:
        """None does."""
        self._faults.clear()
        self._set()

    def _set(self) -> None:
        profile = self._profile
        for fault in self._faults:
            if fault.what == "rate":
                profile = replace(profile, rate_bits_per_s=fault.detail * 1000)
            elif fault.what == "loss":
                profile = replace(profile, loss=fault.detail)
        wan.set_link(profile, WAN_PORTS)
        for fault in self._faults:
            if fault.what == "cut":
                wan.cut(profile, WAN_PORTS)
            elif fault.what == "blackhole":
                wan.cut(profile, (WAN_PORTS[fault.detail],))
