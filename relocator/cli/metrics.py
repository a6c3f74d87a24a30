"""`relocator metrics`: a sidecar that serves Prometheus text, read from control sockets.

Nothing of it runs inside nbdkit. Every scrape asks every plugin for its status and makes the
metrics from the answers alone: nothing is kept, so there is never a stale value. A plugin that
doesn't answer has `relocator_up 0` and no other metric.

Each series has the label `disk`, the stem of the control socket's name. Units are base units (bytes
and seconds); counters end in `_total` and begin at 0 when the plugin starts.
"""

import argparse
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf
from operator import itemgetter
from pathlib import Path
from typing import Any

from relocator.cli.common import Commands
from relocator.cli.listening import parse_address
from relocator.client import Client
from relocator.errors import ConfigError, RelocatorError
from relocator.running.states import Role, State

FOLDER = Path(__file__).resolve().parent.parent / "monitoring"
_FILES = {"alerts": "alerts.yml", "dashboard": "dashboard.json"}
DEFAULT_LISTEN = "127.0.0.1:9464"
PATIENCE_S = 5.0
Status = dict[str, Any]
#: prometheus_client's metric family; the package is optional and imported where it is used
Metric = Any
#: name of the counter (without _total) and field of the status, meaning
_COUNTERS = (
    ("on_demand_bytes", "Payload fetched because a request of the VM waited for it"),
    ("background_bytes", "Payload fetched by the background copy"),
    ("brought_bytes", "Payload that came with seals; it is counted above, too"),
    ("rounds", "Rounds in standby: epochs of the source that the copy has followed"),
    ("hole_bytes", "Holes of the source, made present without being transferred"),
    ("skipped_bytes", "Free blocks, made present as zeros"),
    ("seeded_bytes", "Taken from seeds, made present without being transferred"),
    ("digest_bytes", "Digests transferred to find that out"),
    ("digested_bytes", "What the source has read and hashed for them"),
)


def _cap(status: Status) -> float | None:
    cap: float | None = status["rate_cap_bits_per_s"]
    return cap and cap / 8


def _bytes(status: Status, field: str) -> int:
    """Blocks as bytes; the disk's last block may be a partial one."""
    return min(int(status["size_bytes"]), int(status[field] * status["block_bytes"]))


def _late(status: Status) -> float | None:
    """Without an end in sight it is late for ever."""
    ends = status["finish_by_s"] is None or status["late_s"] is not None
    return status["late_s"] if ends else inf


def _lost(status: Status) -> bool:
    """A disk that is all here needs its source no more."""
    return bool(status["role"] == Role.PROXY and not status["source_connected"])


def _ready(status: Status) -> bool:
    """All was copied ahead at least once, and is kept in step."""
    in_step = status["behind_bytes"] is not None and status["faults"]["handover"] is None
    return bool(status["state"] == State.STANDBY and in_step)


#: name, meaning, and what it is of a status if not the field of that name; None is left out
_GAUGES: tuple[tuple[str, str, Callable[[Status], Any] | None], ...] = (
    ("size_bytes", "Size of the disk", None),
    ("present_bytes", "What is valid here", lambda status: _bytes(status, "present_blocks")),
    ("dirty_bytes", "Written by the VM here", lambda status: _bytes(status, "dirty_blocks")),
    ("window_bytes", "Background bytes that may be asked for and not yet received", None),
    ("in_flight_bytes", "Background bytes that are asked for and not yet received", None),
    ("source_connected", "Whether a read of an absent block would be sent at once", None),
    ("source_lost", "Whether the source is still needed and can't be read", _lost),
    ("ready", "Whether all was copied ahead, and is kept in step; in standby", _ready),
    ("store_free_bytes", "Room on the image's file system", itemgetter("free_bytes")),
    (
        "store_unallocated_bytes",
        "How much of the image has no place there yet",
        itemgetter("unallocated_bytes"),
    ),
    ("rate_cap_bytes_per_second", "The operator's cap of the background copy, if any", _cap),
    ("behind_bytes", "What a switch now would leave at the source; in standby", None),
    ("behind_seconds", "How long that takes to copy", itemgetter("behind_s")),
    ("late_seconds", "By how much `finish-by` will be missed; 0: it holds", _late),
    ("time_left_seconds", "At the present rate; absent while nothing arrives", itemgetter("eta_s")),
    (
        "failing",
        "Whether something is wrong at present",
        lambda status: status["error"] is not None,
    ),
)
_ENUMS = (
    ("state", "Where the disk is in its life", tuple(State)),
    ("role", "What the plugin is", tuple(Role)),
    ("background", "The background copy", ("on", "paused", "off")),
)
_QUANTILES = (("0.5", "p50_s"), ("0.99", "p99_s"), ("0.999", "p999_s"))


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "metrics",
        help="serve Prometheus metrics of running plugins",
        description="Serve Prometheus metrics of running plugins over HTTP, at /metrics.",
    )
    parser.add_argument(
        "controls", metavar="CONTROL", nargs="*", help="control sockets of the plugins"
    )
    parser.add_argument(
        "--print",
        choices=sorted(_FILES),
        help="only print alert rules for Prometheus, or a dashboard for Grafana",
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
    from prometheus_client import core

    def family(kind: Any, name: str, text: str, found: Iterable[Any], *labels: str) -> Metric:
        """A family of `found`: the labels' values, and the value or None."""
        made = kind(f"relocator_{name}", text, labels=["disk", *labels])
        for values, value in found:
            if value is not None:
                made.add_metric(values, value)
        return made

    counter, gauge = core.CounterMetricFamily, core.GaugeMetricFamily
    up = [([disk], answer is not None) for disk, answer in answers.items()]
    yield family(gauge, "up", "Whether the plugin answered", up)
    alive = {disk: answer for disk, answer in answers.items() if answer is not None}
    for name, text in _COUNTERS:
        yield family(counter, name, text, [([disk], alive[disk][name]) for disk in alive])
    for name, text, of in _GAUGES:
        read = of or itemgetter(name)
        yield family(gauge, name, text, [([disk], read(alive[disk])) for disk in alive])
    for name, text, choices in _ENUMS:
        states = [
            ([disk], {str(one): status[name] == one for one in choices})
            for disk, status in alive.items()
        ]
        yield family(core.StateSetMetricFamily, name, text, states)
    faults = [
        ([disk, part], message is not None)
        for disk, status in alive.items()
        for part, message in status["faults"].items()
    ]
    yield family(gauge, "fault", "Whether a part fails at present", faults, "part")
    requests = [
        ([disk, kind], seen)
        for disk, status in alive.items()
        for kind, seen in status["requests"].items()
    ]
    counts = [(labels, seen["count"]) for labels, seen in requests]
    yield family(counter, "requests", "Requests of the VM", counts, "kind")
    quantiles = [
        ([*labels, name], seen[field] if seen["count"] else None)
        for labels, seen in requests
        for name, field in _QUANTILES
    ]
    text = "Quantiles of the time a request took, since the plugin's start"
    yield family(gauge, "request_seconds", text, quantiles, "kind", "quantile")


def _run(options: argparse.Namespace) -> int:
    if options.print is not None:
        print((FOLDER / _FILES[options.print]).read_text(), end="")
        return 0
    if not options.controls:
        raise ConfigError("CONTROL: is missing; give the control socket of each plugin")
    where = parse_address(options.listen, DEFAULT_LISTEN, least_port=0)
    collector = StatusCollector(options.controls)
    server, thread = _serve(collector, where.host, where.port)
    shown = f"[{where.host}]" if ":" in where.host else where.host
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
            "metrics needs the Python package prometheus-client: pip install prometheus-client"
        ) from error
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        return start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise RelocatorError(
            f"--listen={host}:{port}: can't be served on: {error.strerror or error}"
        ) from error
