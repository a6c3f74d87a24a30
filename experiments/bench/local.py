"""The local path: requests for data that is here, natively and in real time.

All systems run throughout; a round measures each load on each system in turn (A B C, A B C), so
that a busy moment of the machine hits all of them alike. Many short rounds tell more than a few
long ones. Ratios are medians of the rounds' ratios to `nbdkit file`, and to QEMU's copy-on-read.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.bench import load, systems, tables
from experiments.bench.load import LOADS, Figure, Load
from testbed.hosts.supervise import Supervisor


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how often, and which systems."""

    seconds: float = 0.5
    rounds: int = 9
    loads: tuple[Load, ...] = LOADS
    start: Callable[[systems.Bench], None] = systems.start_all


Figures = dict[str, dict[str, list[Figure]]]


def measure(bench: systems.Bench, plan: Plan, console: Console) -> Figures:
    """{system: {load: [a figure a round]}}."""
    figures: Figures = {one.name: defaultdict(list) for one in bench.systems}
    for number in range(plan.rounds):
        for one_load in plan.loads:
            console.print(f"round {number + 1}/{plan.rounds}: {one_load.name}", style="dim")
            for system in bench.systems:
                bench.supervisor.check()
                system.before()
                try:
                    figure = load.measure(one_load, system.uri, plan.seconds, seed=number + 1)
                finally:
                    system.after()
                figures[system.name][one_load.name].append(figure)
    return figures


def run(plan: Plan, work: Path, console: Console) -> dict[str, Any]:
    """The whole local part; returns what local.json holds."""
    load_before = os.getloadavg()[0]
    start_s = time.monotonic()
    (work / "logs").mkdir()
    with Supervisor(work / "logs") as supervisor:
        bench = systems.Bench(supervisor, work)
        plan.start(bench)
        figures = measure(bench, plan, console)
    return {
        "clock": "real",
        "seconds": plan.seconds,
        "rounds": plan.rounds,
        "cpus": os.cpu_count(),
        "load_before": round(load_before, 2),
        "took_s": round(time.monotonic() - start_s, 1),
        "reference": systems.REFERENCE,
        "peer": systems.PEER,
        "systems": {name: _results(row) for name, row in figures.items()},
    }


def _results(row: dict[str, list[Figure]]) -> dict[str, Any]:
    return {
        name: {
            "iops": tables.summarise([one.iops for one in rounds]),
            "p50_s": tables.summarise([one.p50_s for one in rounds]),
            "p99_s": tables.summarise([one.p99_s for one in rounds]),
            "rounds": [asdict(one) for one in rounds],
        }
        for name, rounds in row.items()
    }


def rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: IOPS and, in brackets, the ratios to reference and peer."""
    table = results["systems"]
    names = list(table[results["reference"]])
    bases = [one for one in (results["reference"], results["peer"]) if one in table]
    body = [[system, *(_cell(table, system, name, bases) for name in names)] for system in table]
    body.append(["*spread of the reference*", *_noise(results, names)])
    return ["IOPS (ratios)", *names], body


def _cell(table: dict[str, Any], system: str, name: str, bases: list[str]) -> str:
    rounds = {one: [figure["iops"] for figure in table[one][name]["rounds"]] for one in table}
    found = " ".join(f"{tables.ratio(rounds[system], rounds[base]):.2f}" for base in bases)
    return f"{table[system][name]['iops']['median']:,.0f} ({found})"


def _noise(results: dict[str, Any], names: list[str]) -> list[str]:
    reference = results["systems"][results["reference"]]
    return [f"±{reference[name]['iops']['spread']:.0%}" for name in names]
