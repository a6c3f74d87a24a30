"""A run as a picture: over time, each site's state, where the VM and the disk are, what failed."""

from pathlib import Path
from typing import Any

from tests.campaign.world import BETWEEN, LINK, STORE, Event, World

COLOURS = {
    "standby": "#c6d3e3",
    "activating": "#f2c14e",
    "active": "#4f86c6",
    "complete": "#2a9d6f",
    "sealed": "#8d8d8d",
    "relaying": "#9a7fc1",
    "no answer": "#ffffff",
}
_FAULT, _VM, _DISK = "#d1495b", "#444444", "#2a6fb0"
Span = tuple[float, float, str]


def spans(notes: list[list[Any]], kind: str, key: str, where: str, end_s: float) -> list[Span]:
    """From, to, and what `key` of the notes of this kind was; only those at `where`, if given."""
    found: list[Span] = []
    for at_s, what, more in notes:
        if what != kind or (where and more.get("at") != where):
            continue
        value = more.get(key)
        text = str(value["state"] if isinstance(value, dict) else value or "no answer")
        if found and found[-1][2] == text:
            continue
        if found:
            found[-1] = (found[-1][0], at_s, found[-1][2])
        found.append((at_s, end_s, text))
    return found


def draw(world: World, result: dict[str, Any], path: Path) -> None:
    """Write the picture as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted(set(world.route))
    lanes = [*(f"server {name}" for name in names), "VM at", "disk at", "link", "stores"]
    lanes += ["processes", "operator"]
    place = {lane: len(lanes) - number for number, lane in enumerate(lanes)}
    end_s = result["seconds"]
    figure, axes = plt.subplots(figsize=(12, 0.55 * len(lanes) + 1.6), layout="constrained")

    def bar(lane: str, begin_s: float, until_s: float, colour: str, text: str = "") -> None:
        width_s = max(until_s - begin_s, end_s / 250)
        axes.barh(place[lane], width_s, 0.62, begin_s, color=colour, edgecolor="#555", lw=0.4)
        if text and width_s > end_s * 0.012 * len(text):
            axes.text(
                begin_s + width_s / 2, place[lane], text, ha="center", va="center", fontsize=8
            )

    for name in names:
        for begin_s, until_s, state in spans(result["notes"], "status", "is_", name, end_s):
            if state != "no answer":
                bar(f"server {name}", begin_s, until_s, COLOURS.get(state, "#dddddd"), state)
    for lane, kind in (("VM at", "guest"), ("disk at", "authority")):
        shades = {"A": "#e8e2d4", "B": "#b9d7cf", "C": "#d8c4e2"}
        found = spans(result["notes"], kind, "at", "", end_s)
        if kind == "authority" and (not found or found[0][0] > 0):
            found.insert(0, (0.0, found[0][0] if found else end_s, "A"))
        for begin_s, until_s, site in found:
            bar(lane, begin_s, until_s, shades.get(site, "#eeeeee"), site)
    for event in world.events:
        lane, text = _lane(event)
        bar(lane, event.at_s, event.at_s + event.for_s, _FAULT if lane != "operator" else _DISK)
        axes.annotate(
            text,
            (event.at_s, place[lane] + 0.32),
            fontsize=7,
            rotation=20,
            ha="left",
            va="bottom",
            color="#333333",
        )
    for at_s, what, more in result["notes"]:
        if what in ("mended", "complete"):
            axes.axvline(at_s, color="#2a9d6f", lw=1, ls=":")
            axes.text(at_s, len(lanes) + 0.75, what, fontsize=8, color="#2a9d6f", ha="center")
        elif what == "wrong":
            axes.axvline(at_s, color=_FAULT, lw=1.5)
            axes.text(at_s, 0.25, "broken promise", fontsize=8, color=_FAULT, ha="right")
        elif what == "ended":
            axes.plot(at_s, place[f"server {more['who']}"], "x", color=_FAULT, ms=9)
    axes.set_yticks([place[lane] for lane in lanes], lanes)
    axes.set_ylim(0, len(lanes) + 1.1)
    axes.set_xlim(0, end_s)
    axes.set_xlabel("seconds on the virtual clock")
    axes.spines[["top", "right"]].set_visible(False)
    verdict = "passed" if result["ok"] else "failed: " + result["wrong"][0][:140]
    axes.set_title(
        f"seed {world.seed}: {world.route}, {world.size_kib} KiB, {world.rate_mbit} Mbit/s, "
        f"{world.rtt_ms} ms\n{verdict}",
        fontsize=10,
        loc="left",
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _lane(event: Event) -> tuple[str, str]:
    """Where an event is drawn, and its name."""
    if event.what in LINK:
        return "link", event.what
    if event.what in STORE:
        return "stores", f"{event.what} {event.who}"
    if event.what in ("kill", *BETWEEN):
        return "processes", f"{event.what} {event.who}"
    return "operator", event.what
