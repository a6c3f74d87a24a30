"""Makes a run directory of format 2 out of a formula, for tests of what reads run directories.

The shapes are those a real run has (a memory copy that fills the link, a read of an absent block
that costs a round trip, a background copy at the link's rate), so that figures can be looked at;
the figures are nobody's measurement and must never be published.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.support.synthetic_document import Synthetic, document

BLOCK_BYTES = 4096


def grid(start_s: float, end_s: float, step_s: float) -> list[float]:
    return [
        round(start_s + i * step_s, 6) for i in range(int((end_s - start_s) / step_s + 1e-9) + 1)
    ]


def links(run: Synthetic) -> Iterable[Sequence[Any]]:
    a_rx = a_tx = b_rx = b_tx = c_rx = c_tx = mem = 0
    before = (0, 0)
    for t in grid(0, run.ended_s, 0.2):
        vm_rx = int(abs(run.random.gauss(260e3, 120e3)) * 0.2)
        vm_tx = int(abs(run.random.gauss(400e3, 300e3)) * 0.2)
        if t < run.switch_at_s or run.system == "stay":
            a_rx, a_tx = a_rx + vm_rx, a_tx + vm_tx
        else:
            b_rx, b_tx = b_rx + vm_rx, b_tx + vm_tx
        if run.memory_copy_at_s <= t < run.switch_at_s and run.system != "stay":
            mem += int(run.link_bytes_per_s * 0.2 * 0.98)
        now = run.fetched(t)
        c_rx += int((sum(now) - sum(before)) * 1.045)
        c_tx += (sum(now) - sum(before)) // 60
        before = now
        remote = (b_rx, b_tx) if run.system == "remote" else (0, 0)
        wan = (c_rx + mem + remote[0], c_tx + mem // 70 + remote[1])
        yield t, "A", a_rx, a_tx
        yield t, "B", b_rx, b_tx
        yield t, "C", c_rx, c_tx
        yield t, "memory", mem, mem // 70
        yield t, "wan", *wan


def presence(run: Synthetic) -> Iterable[Sequence[Any]]:
    if run.system != "relocator":
        return
    end = run.complete_s
    assert end is not None
    total = run.disk_bytes // BLOCK_BYTES
    for t in [*grid(run.switch_done_s, end, 0.5), end]:
        demand, background = run.fetched(t)
        share = min(1.0, (demand + background) / run.allocated_bytes)
        hole = int((run.disk_bytes - run.allocated_bytes) * share) if background else 0
        present = total if t == run.complete_s else (demand + background + hole) // BLOCK_BYTES
        yield round(t, 6), present, total, demand, background, hole


def latency_of(run: Synthetic, kind: str, t_s: float) -> float:
    local = (abs(run.random.gauss(0.0004, 0.0001)) + 1e-4) * run.slow
    phase = run.phase(t_s)
    trip = run.rtt_s + abs(run.random.gauss(0.002, 0.0015))
    if kind == "read" and phase == "memory-copy":
        return local * run.random.choice((1, 2, 8))
    if phase == "remote":
        return trip
    if kind == "read" and phase in ("on-demand", "background"):
        present = sum(run.fetched(t_s)) / run.allocated_bytes
        if run.cut and run.cut[0] <= t_s < run.cut[1]:
            return run.cut[1] - t_s + trip
        if run.random.random() >= present * run.hit:
            return trip * (1.3 if phase == "background" else 1)
    return local * (3 if kind != "read" else 1)


def latency(run: Synthetic) -> list[Sequence[Any]]:
    rows = []
    for kind, every_s in (("read", 0.02), ("write", 0.05), ("ledger", 0.5)):
        for t in grid(every_s, run.ended_s, every_s):
            if run.system != "stay" and run.switch_at_s <= t <= run.switch_done_s:
                continue
            offset = run.random.randrange(8192) * BLOCK_BYTES
            rows.append((round(t, 3), kind, f"{latency_of(run, kind, t):.6f}", offset))
    return sorted(rows)


def work(run: Synthetic) -> Iterable[Sequence[Any]]:
    t = 0.0
    while True:
        far = {"remote": 6.0, "on-demand": 2.2, "background": 1.5}.get(run.phase(t), 0.0)
        length = 1.8 + far + run.random.random() * 0.2
        if t + length > run.ended_s:
            return
        start, t = t, round(t + length, 6)
        parts = f"{0.5 + far * 0.3:.6f} {1.1 + far * 0.6:.6f} 0.200000"
        yield "compile", round(start, 6), t, parts, run.phase(t)


def requests(run: Synthetic) -> Iterable[Sequence[Any]]:
    """Reads all over the allocated half of the disk, every fourth request a write."""
    for number, t in enumerate(grid(0.01, run.ended_s, 0.05)):
        kind = "write" if number % 4 == 3 else "read"
        offset = run.random.randrange(run.allocated_bytes // BLOCK_BYTES) * BLOCK_BYTES
        yield t, kind, offset, BLOCK_BYTES


def moved(run: Synthetic) -> list[tuple[float | None, str, dict[str, Any]]]:
    """What happens up to the switch, and to the link after it."""
    if run.system == "stay":
        return []
    mirrors = run.system == "mirror"
    cut = run.cut or (None, None)
    return [
        (run.move_at_s, "move-started", {}),
        (run.move_at_s if mirrors else None, "copy-first-started", {}),
        (run.memory_copy_at_s if mirrors else None, "copy-first-done", {}),
        (run.memory_copy_at_s, "memory-copy-started", {"bytes": 90_000_000}),
        (run.switch_at_s, "memory-copy-done", {"copy_s": 8.0}),
        (run.switch_at_s, "switch-started", {}),
        (run.switch_done_s, "switch-done", {"downtime_s": run.switch_done_s - run.switch_at_s}),
        (cut[0], "link-changed", {"cut": True}),
        (cut[1], "link-changed", {"cut": False}),
    ]


def events(run: Synthetic) -> list[dict[str, Any]]:
    named: list[tuple[float | None, str, dict[str, Any]]] = [
        (-14.0, "sites-built", {}),
        (-9.0, "calibrated", {"rtt_s": run.rtt_s * 1.0005}),
        (0.0, "workloads-started", {}),
        *moved(run),
        (run.background_at_s, "background-started", {}),
        (run.complete_s, "relocation-complete", {}),
        (run.complete_s and run.complete_s + 1, "source-off", {}),
        (run.ended_s, "workloads-ended", {}),
        (run.ended_s + 3, "finished", {"outcome": run.outcome}),
    ]
    known = [{"t_s": t, "event": name, **more} for t, name, more in named if t is not None]
    return sorted(known, key=lambda event: event["t_s"])


def write_csv(path: Path, header: str, rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header.split(","))
        writer.writerows(rows)


def write_run(directory: Path, run: Synthetic) -> Path:
    """Writes the run directory `directory` and returns it."""
    directory.mkdir(parents=True)
    ios, cycles = latency(run), list(work(run))
    write_csv(directory / "links.csv", "t_s,link,rx_bytes,tx_bytes", links(run))
    fetched = "on_demand_bytes,background_bytes,hole_bytes"
    write_csv(
        directory / "presence.csv", f"t_s,present_blocks,total_blocks,{fetched}", presence(run)
    )
    write_csv(directory / "latency.csv", "t_s,kind,latency_s,offset_bytes", ios)
    write_csv(directory / "work.csv", "kind,start_s,end_s,parts_s,phase", cycles)
    header = "t_s,kind,offset_bytes,length_bytes"
    write_csv(directory / "requests.csv", header, requests(run))
    lines = (json.dumps(event, sort_keys=True) for event in events(run))
    (directory / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    written = json.dumps(document(run, ios, cycles), sort_keys=True, indent=1)
    (directory / "run.json").write_text(written + "\n", encoding="utf-8")
    return directory
