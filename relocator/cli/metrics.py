"""`relocator metrics`: a sidecar that serves Prometheus text, read from control sockets.

Nothing of it runs inside nbdkit. Every scrape asks every plugin for its status and makes the
metrics from the answers alone: nothing is kept, so there is never a stale value. A plugin that
doesn't answer has `relocator_up 0` and no other metric.

Each series has the label `disk`, the stem of the control socket's name. Units are base units (bytes
and seconds); counters end in `_total` and begin at 0 when the plugin starts.
"""

import argparse
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from relocator.cli.common import Commands
from relocator.client import Client
from relocator.errors import ConfigError, RelocatorError
from relocator.running.states import Role, State

DEFAULT_LISTEN = "127.0.0.1:9464"
PATIENCE_S = 5.0
Status = dict[str, Any]
#: prometheus_client's metric family; the package is optional and imported where it is used
Metric = Any
#: name of the counter (without _total), field of the status, meaning
_COUNTERS = (
    ("on_demand_bytes", "Payload fetched because a request of the VM waited for it"),
    ("background_bytes", "Payload fetched by the background copy"),
    ("hole_bytes", "Holes of the source, made present without being transferred"),
    ("skipped_bytes", "Free blocks, made present as zeros"),
)
_GAUGES = (
    ("size_bytes", "Size of the disk"),
    ("window_bytes", "Background bytes that may be asked for and not yet received"),
    ("in_flight_bytes", "Background bytes that are asked for and not yet received"),
)
_ENUMS = (
    ("state", "Where the disk is in its life", tuple(State)),
    ("role", "What the plugin is", tuple(Role)),
    ("background", "The background copy", ("on", "paused", "off")),
)


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "metrics",
        help="serve Prometheus metrics of running plugins",
        description="Serve Prometheus metrics of running plugins over HTTP, at /metrics.",
    )
    parser.add_argument(
        "controls", metavar="CONTROL", nargs="+", help="control sockets of the plugins"
    )
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default=DEFAULT_LISTEN,
        help=f"address to serve on ({DEFAULT_LISTEN}); port 0 takes any that is free",
    )
    parser.set_defaults(run=_run)


class StatusCollector:
    """Asks every plugin at every scrape."""

    def __init__(self, controls: Sequence[str]) -> None:
        self._controls = {Path(control).stem: control for control in controls}
        if len(self._controls) < len(controls):
            raise ConfigError(
                f"{' '.join(controls)}: two sockets have the same name, which tells disks apart"
            )

    def collect(self) -> Iterator[Metric]:
        """The metrics of now."""
        with ThreadPoolExecutor(max_workers=min(16, len(self._controls))) as pool:
            answers = dict(
                zip(self._controls, pool.map(_ask, self._controls.values()), strict=True)
            )
        return families(answers)

    def describe(self) -> list[Metric]:
        """Nothing: registering must not ask the plugins."""
        return []


def _ask(control: str) -> Status | None:
    """The plugin's status; None, which becomes `relocator_up 0`, if there is none to be had."""
    try:
        return Client(control).call("status", PATIENCE_S)
    except (RelocatorError, ValueError):  # ValueError: killed in the middle of its answer
        return None


def families(answers: dict[str, Status | None]) -> Iterator[Metric]:
    """Metric families of the disks' statuses; None for a disk that didn't answer."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    up = GaugeMetricFamily("relocator_up", "Whether the plugin answered", labels=["disk"])
    for disk, answer in answers.items():
        up.add_metric([disk], 0 if answer is None else 1)
    yield up
    alive = {disk: answer for disk, answer in answers.items() if answer is not None}
    for name, text in _COUNTERS:
        counter = CounterMetricFamily(f"relocator_{name}", text, labels=["disk"])
        for disk, status in alive.items():
            counter.add_metric([disk], status[name])
        yield counter
    for name, text, of in _gauges():
        gauge = GaugeMetricFamily(f"relocator_{name}", text, labels=["disk"])
        for disk, status in alive.items():
            if (value := of(status)) is not None:
                gauge.add_metric([disk], value)
        yield gauge
    yield from _enums(alive)
    yield from _requests(alive)


def _gauges() -> Iterator[tuple[str, str, Any]]:
    """Name, meaning, and how to read it off a status; None is left out."""
    for name, text in _GAUGES:
        yield name, text, lambda status, name=name: status[name]
    yield "present_bytes", "What is valid here", lambda status: _blocks(status, "present_blocks")
    yield "dirty_bytes", "Written by the VM here", lambda status: _blocks(status, "dirty_blocks")
    yield (
        "source_connected",
        "Whether a read of an absent block would be sent at once",
        lambda status: int(status["source_connected"]),
    )
    yield (
        "rate_cap_bytes_per_second",
        "The operator's cap of the background copy; absent if there is none",
        lambda status: status["rate_cap_bits_per_s"] and status["rate_cap_bits_per_s"] / 8,
    )
    yield (
        "time_left_seconds",
        "Time left at the present rate; absent while nothing arrives",
        lambda status: status["eta_s"],
    )
    yield (
        "failing",
        "Whether something went wrong that has not yet been put right",
        lambda status: int(status["error"] is not None),
    )


def _blocks(status: Status, field: str) -> int:
    """Blocks as bytes; the disk's last block may be a partial one."""
    return min(int(status["size_bytes"]), int(status[field] * status["block_bytes"]))


def _enums(alive: dict[str, Status]) -> Iterator[Metric]:
    from prometheus_client.core import StateSetMetricFamily

    for name, text, values in _ENUMS:
        family = StateSetMetricFamily(f"relocator_{name}", text, labels=["disk"])
        for disk, status in alive.items():
            family.add_metric([disk], {str(value): status[name] == value for value in values})
        yield family


def _requests(alive: dict[str, Status]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    count = CounterMetricFamily("relocator_requests", "Requests of the VM", labels=["disk", "kind"])
    quantile = GaugeMetricFamily(
        "relocator_request_seconds",
        "Quantiles of the time a request took, since the plugin's start",
        labels=["disk", "kind", "quantile"],
    )
    for disk, status in alive.items():
        for kind, seen in status["requests"].items():
            count.add_metric([disk, kind], seen["count"])
            for name, field in (("0.5", "p50_s"), ("0.99", "p99_s"), ("0.999", "p999_s")):
                if seen["count"]:
                    quantile.add_metric([disk, kind, name], seen[field])
    yield count
    yield quantile


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) >= 65536:
        raise ConfigError(f"--listen={text}: not HOST:PORT; write {DEFAULT_LISTEN}")
    return host.strip("[]"), int(port)


def _run(options: argparse.Namespace) -> int:
    host, port = _address(options.listen)
    collector = StatusCollector(options.controls)
    server, thread = _serve(collector, host, port)
    shown = f"[{host}]" if ":" in host else host
    print(f"serving http://{shown}:{server.server_port}/metrics", flush=True)
    try:
        thread.join()
    finally:
        server.shutdown()
        server.server_close()
    return 0


def _serve(collector: StatusCollector, host: str, port: int) -> tuple[Any, threading.Thread]:
    """prometheus_client's server with our metrics only."""
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise RelocatorError(
            "metrics needs the Python package prometheus-client: pip install 'relocator[metrics]'"
        ) from error
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        return start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise RelocatorError(
            f"--listen={host}:{port}: can't be served on: {error.strerror or error}"
        ) from error
