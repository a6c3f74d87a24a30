"""Measure the link before trusting it.

Three things are measured between the storage hosts, over the WAN, before every run:

- **Round-trip time**: the mean of pings after the first. Expected: the profile's, plus the time to
  put an echo of 98 bytes on the link each way. Within 1 % or 0.1 ms, whichever is more.
- **Rate**, each way: trains of full datagrams sent faster than the link drains them, timed by the
  kernel at their arrival. Bytes after a train's first datagram over the time from its first to
  its last arrival. A datagram carries 1472 bytes in a frame of 1514, so the rate expected is
  rate x 1472 / 1514. A train fits the standing queue; there is no congestion control in it, so it
  shows the link and nothing else, at any round-trip time and also with loss. Within 2 %.
- **Loss**: what is missing from the trains, within four standard deviations of the profile's
  (n datagrams lose n p, give or take sqrt(n p (1 - p))); this is a weak check for small p.

Jitter widens what is honest to ask: the mean of n pings moves by (jitter x sqrt(2/3)) / sqrt(n),
of which three are allowed, and it only adds to the delay (netem does not reorder); a train's
length moves by up to twice the jitter.

`nbdcopy` then shows what the best existing copier gets out of the same link: the ceiling that the
background copy is held against.
"""

import math
import re
import socket
import statistics
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from testbed.hosts.supervise import in_namespace, run
from testbed.network.topology import ADDRESS, Sites
from testbed.network.wan import (
    FRAME_BYTES,
    OFFLOAD_ABOVE_BITS_PER_S,
    UDP_HEADER_FACTOR,
    LinkProfile,
)

_PORT = 7
_PAYLOAD_BYTES = 1472
_ECHO_FRAME_BYTES = 98
_PINGS = 20
_TRAINS = 4
_RTT_FLOOR_S = 1e-4
_SO_TIMESTAMPNS = 35
_SO_RCVBUFFORCE = 33
_SO_SNDBUFFORCE = 32
_UDP_SEGMENT = 103
_SEGMENTS = 40  # datagrams a call on links so fast that one at a time would not fill them


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Fractions of the profile's values that a measured link may be off."""

    rtt: float = 0.01
    rate: float = 0.02


@dataclass(frozen=True, slots=True)
class Train:
    """One train of datagrams as it arrived: payload rate, datagrams sent and received."""

    bits_per_s: float
    sent: int
    received: int


@dataclass(slots=True)
class Calibration:
    """What was measured and what that means; `problems` is empty for a link that may be used."""

    rtt_s: float
    rtt_expected_s: float
    rates: dict[str, float]
    rate_expected_bits_per_s: float
    loss: float
    tolerance: Tolerance
    problems: list[str] = field(default_factory=list)
    nbdcopy: dict[str, float | int] | None = None

    def results(self) -> dict[str, object]:
        """The `calibration` object of run.json."""

        def rate(name: str) -> dict[str, float]:
            return {
                "bits_per_s": round(self.rates[name]),
                "expected_bits_per_s": round(self.rate_expected_bits_per_s),
                "error": round(self.rates[name] / self.rate_expected_bits_per_s - 1, 6),
            }

        off_s = self.rtt_s - self.rtt_expected_s
        return {
            "rtt_s": round(self.rtt_s, 6),
            "rtt_expected_s": round(self.rtt_expected_s, 6),
            "rtt_error": round(off_s / self.rtt_expected_s, 6),
            "rtt_samples": _PINGS,
            "to_destination": rate("to_destination"),
            "to_source": rate("to_source"),
            "loss": round(self.loss, 6),
            "tolerance": {"rtt": self.tolerance.rtt, "rate": self.tolerance.rate},
            "within": not self.problems,
            "nbdcopy": self.nbdcopy,
        }


def parse_ping(output: str) -> float:
    """The mean round-trip time in seconds from ping's summary."""
    match = re.search(r"= [\d.]+/([\d.]+)/[\d.]+/[\d.]+ ms", output)
    if match is None:
        raise ValueError(f"ping got no answer over the WAN: {output.strip()[-200:]}")
    return float(match[1]) / 1000


def judge(
    profile: LinkProfile, calibration: Calibration, trains: dict[str, list[Train]]
) -> list[str]:
    """Every way in which the measured link is off, in words with figures."""
    problems = []
    tolerance = calibration.tolerance
    jitter_mean_s = 3 * profile.jitter_s * math.sqrt(2 / 3 / _PINGS)
    allowed_s = max(tolerance.rtt * calibration.rtt_expected_s, _RTT_FLOOR_S)
    off_s = calibration.rtt_s - calibration.rtt_expected_s
    if abs(off_s) > allowed_s + jitter_mean_s:
        problems.append(
            f"RTT is {calibration.rtt_s * 1e3:.3f} ms, {off_s * 1e3:+.3f} ms off the expected "
            f"{calibration.rtt_expected_s * 1e3:.3f} ms (allowed {allowed_s * 1e3:.3f} ms)"
        )
    for name, measured in calibration.rates.items():
        seconds = _train_frames(profile) * FRAME_BYTES * 8 / profile.rate_bits_per_s
        allowed = tolerance.rate + 2 * profile.jitter_s / seconds
        error = measured / calibration.rate_expected_bits_per_s - 1
        if abs(error) > allowed:
            problems.append(
                f"rate {name.replace('_', ' ')} is {measured / 1e6:.2f} Mbit/s of payload, "
                f"{error:+.2%} off the expected "
                f"{calibration.rate_expected_bits_per_s / 1e6:.2f} (allowed {allowed:.2%})"
            )
    sent = sum(train.sent for each in trains.values() for train in each)
    draws = sent / _together(profile)
    spread = 4 * math.sqrt(profile.loss * (1 - profile.loss) / draws)
    if abs(calibration.loss - profile.loss) > spread:
        problems.append(
            f"loss is {calibration.loss:.3%} of {sent} datagrams, expected {profile.loss:.3%} "
            f"give or take {spread:.3%}"
        )
    return problems


def _train_frames(profile: LinkProfile) -> int:
    """Datagrams a train: what the standing queue holds, at most 1000."""
    return max(20, min(1000, profile.standing_queue_bytes // FRAME_BYTES))


def _together(profile: LinkProfile) -> int:
    """Datagrams that travel, and are lost, as one packet."""
    return _SEGMENTS if profile.rate_bits_per_s > OFFLOAD_ABOVE_BITS_PER_S else 1


def _datagram_socket(address: str) -> socket.socket:
    """A socket whose arrivals the kernel stamps and whose buffers hold a whole train."""
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    one.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 * 2**20)
    one.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 8 * 2**20)
    one.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, _PAYLOAD_BYTES)
    one.bind((address, _PORT))
    return one


def _arrivals(receiver: socket.socket, count: int, silence_s: float) -> list[float]:
    """Arrival times of up to `count` datagrams; ends early after a silence."""
    receiver.settimeout(silence_s)
    times = []
    while len(times) < count:
        try:
            _, ancillary, _, _ = receiver.recvmsg(_PAYLOAD_BYTES, 64)
        except TimeoutError:
            break
        seconds, nanoseconds = struct.unpack("qq", ancillary[0][2][:16])
        times.append(seconds + nanoseconds / 1e9)
    return times


def _send_train(profile: LinkProfile, sender: socket.socket, receiver: socket.socket) -> Train:
    together = _together(profile)
    payload = bytes(_PAYLOAD_BYTES * together)
    destination = receiver.getsockname()
    sends = math.ceil(_train_frames(profile) / together)
    for _ in range(sends):
        sender.sendto(payload, destination)
    frames = sends * together
    silence_s = profile.rtt_s + 2 * profile.jitter_s + 0.05
    silence_s += 100 * FRAME_BYTES * 8 / profile.rate_bits_per_s
    times = _arrivals(receiver, frames, silence_s)
    span_s = max(times, default=0.0) - min(times, default=0.0)
    if span_s <= 0:
        return Train(0.0, frames, len(times))
    # What arrived with the first one (a segmented send arrives at once) took no part of the span.
    after_first = sum(time_s > min(times) for time_s in times)
    return Train(after_first * _PAYLOAD_BYTES * 8 / span_s, frames, len(times))


def calibrate(profile: LinkProfile, sites: Sites, tolerance: Tolerance) -> Calibration:
    """Measures the link and judges it; the caller refuses one with `problems`."""
    source, destination = ADDRESS["st_src-wan"], ADDRESS["st_dst-wan"]

    def ping(count: int) -> str:
        wait_s = math.ceil(profile.rtt_s + profile.jitter_s * 2) + 1
        argv = ["ping", "-n", "-q", "-c", str(count), "-i", "0.05", "-W", str(wait_s), source]
        return run(argv, namespace_pid=sites.pids["st_dst"])

    ping(1 if not profile.loss else 5)  # the first one finds the way: bridges learn, caches fill
    rtt_s = parse_ping(ping(_PINGS))
    trains: dict[str, list[Train]] = {}
    sockets = {
        "source": in_namespace(sites.pids["st_src"], lambda: _datagram_socket(source)),
        "destination": in_namespace(sites.pids["st_dst"], lambda: _datagram_socket(destination)),
    }
    try:
        ways = {"to_destination": ("source", "destination"), "to_source": ("destination", "source")}
        for name, (start, end) in ways.items():
            trains[name] = [
                _send_train(profile, sockets[start], sockets[end]) for _ in range(_TRAINS)
            ]
    finally:
        for one in sockets.values():
            one.close()
    sent = sum(train.sent for each in trains.values() for train in each)
    received = sum(train.received for each in trains.values() for train in each)
    calibration = Calibration(
        rtt_s=rtt_s,
        rtt_expected_s=profile.rtt_s + 2 * _ECHO_FRAME_BYTES * 8 / profile.rate_bits_per_s,
        rates={
            name: statistics.median(train.bits_per_s for train in each)
            for name, each in trains.items()
        },
        rate_expected_bits_per_s=profile.rate_bits_per_s * UDP_HEADER_FACTOR,
        loss=1 - received / sent,
        tolerance=tolerance,
    )
    calibration.problems = judge(profile, calibration, trains)
    return calibration


def measure_nbdcopy(
    uri: str, namespace_pid: int, allocated_bytes: int, now: Callable[[], float] = time.monotonic
) -> dict[str, float | int]:
    """nbdcopy from `uri` to null: seconds, the allocated bytes it read, bits per second.

    With extents, nbdcopy's default: holes are not read, as the relocator does not read them.
    """
    start_s = now()
    run(["nbdcopy", uri, "null:"], namespace_pid=namespace_pid, timeout_s=3600)
    copy_s = now() - start_s
    return {
        "copy_s": round(copy_s, 6),
        "data_bytes": allocated_bytes,
        "bits_per_s": round(allocated_bytes * 8 / copy_s),
    }
