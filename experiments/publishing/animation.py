"""A relocation as a moving picture: the map of the disk fills up while the VM reads and writes.

    python -m testbed.lab run --out DIR -- testbed.film
    python -m experiments.publishing.animation DIR/film.json FILE.gif

Exit status: 0 drawn; 1 a file can't be read or written; 2 a wrong argument.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

import experiments
from experiments.publishing import plots

EVERY = 2  # of the film's pictures one is drawn
LAST_MS = 3000  # how long the last one stays
COLUMNS = 60
ABSENT, PRESENT, WRITTEN = ((0.87, 0.87, 0.85), (0.18, 0.44, 0.70), (0.16, 0.62, 0.44))
CUT = "#c0392b"
PALETTE = 48  # colours of the GIF
MS = 1e3


def colours(picture: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Rows × COLUMNS × RGB of a map; absent fades into present, what was written stands out."""
    present, dirty = (np.array(picture[name])[:, None] for name in ("present", "dirty"))
    mixed = np.array(ABSENT) * (1 - present) + np.array(PRESENT) * present
    mixed = np.where(dirty > 0, np.array(WRITTEN), mixed)
    missing = -len(mixed) % COLUMNS
    return np.vstack([mixed, np.ones((missing, 3))]).reshape(-1, COLUMNS, 3)


def cuts(film: Mapping[str, Any]) -> list[tuple[float, float]]:
    """From when till when the link was cut, in seconds."""
    at_s = {one["cut"]: one["at_s"] for one in film["events"] if "cut" in one}
    return [(at_s[True], at_s[False])] if True in at_s and False in at_s else []


def caption(film: Mapping[str, Any], picture: Mapping[str, Any]) -> str:
    """What one sees in a picture."""
    share = float(np.mean(picture["present"]))
    if share >= 1:
        return "all of it is here: the source may be switched off"
    if any(start <= picture["at_s"] < end for start, end in cuts(film)):
        return f"the link is cut: what is here is served, {share:.0%} of the disk"
    return f"the VM runs here, and {share:.0%} of its disk is here"


def draw(film: Mapping[str, Any], path: Path) -> None:
    """Write the moving picture, as a GIF that plays at the film's own speed and begins again."""
    seen = film["pictures"]
    every_s = EVERY * (seen[1]["at_s"] - seen[0]["at_s"])
    with mpl.rc_context(plots.STYLE):
        screen = Screen(film)
        drawn = [*seen[:-1:EVERY], seen[-1]]
        frames = [screen.picture(one) for one in drawn]
    palette = frames[len(frames) // 2].quantize(PALETTE)
    flat = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in frames]
    shown_ms = [round(every_s * MS)] * (len(flat) - 1) + [LAST_MS]
    flat[0].save(path, save_all=True, append_images=flat[1:], duration=shown_ms, loop=0)


class Screen:
    """The figure, of which each picture changes what has moved."""

    def __init__(self, film: Mapping[str, Any]) -> None:
        self._film = film
        figure = Figure(figsize=(8, 4.6), dpi=90, layout="constrained")
        self._canvas = FigureCanvasAgg(figure)
        upper, lower = figure.subplots(2, 1, height_ratios=(2, 1.3))
        self._map = upper.imshow(
            colours(film["pictures"][0]), aspect="auto", interpolation="nearest"
        )
        upper.set(xticks=[], yticks=[], ylabel="the disk")
        kinds = {"still at the source": ABSENT, "here": PRESENT, "written by the VM here": WRITTEN}
        handles = [Patch(color=colour, label=label) for label, colour in kinds.items()]
        upper.legend(handles=handles, loc="upper right", bbox_to_anchor=(1, -0.02), ncols=3)
        self._title = figure.suptitle(" ", x=0.01, ha="left", fontweight="bold")
        self._dots = _latencies(lower, film)
        self._now = lower.axvline(0, color=plots.INK, linewidth=1)

    def picture(self, one: Mapping[str, Any]) -> Image.Image:
        """What was seen at one moment."""
        self._map.set_data(colours(one))
        self._title.set_text(f"{one['at_s']:4.1f} s: {caption(self._film, one)}")
        self._now.set_xdata([one["at_s"]] * 2)
        for kind, points in self._dots.items():
            answered = [
                (at, took * MS)
                for at, took in self._film["latencies_s"][kind]
                if at + took <= one["at_s"]
            ]
            points.set_data([at for at, _ in answered], [took for _, took in answered])
        self._canvas.draw()
        return Image.fromarray(np.asarray(self._canvas.buffer_rgba())).convert("RGB")


def _latencies(axes: Axes, film: Mapping[str, Any]) -> dict[str, Line2D]:
    """The lower part: each read and write, by when it was asked; their points, none drawn yet."""
    dots = {}
    for kind, colour in (("read", "read at the destination"), ("write", "write")):
        label = f"a {kind} of the VM"
        (dots[kind],) = axes.plot([], [], ".", ms=4, color=plots.KINDS[colour], label=label)
    took_ms = [took * MS for values in film["latencies_s"].values() for _, took in values]
    axes.set(yscale="log", xlabel="seconds after the switch", ylabel="latency (ms)")
    axes.set(xlim=(0, film["pictures"][-1]["at_s"]), ylim=(min(took_ms) / 2, max(took_ms) * 2))
    rtt_ms = film["link"]["rtt_s"] * MS
    axes.axhline(rtt_ms, color=plots.FAINT, linewidth=0.8, linestyle=":")
    text = f" a round trip, {rtt_ms:g} ms"
    axes.annotate(text, (0, rtt_ms), fontsize=7, va="bottom", color=plots.FAINT)
    for start_s, end_s in cuts(film):
        axes.axvspan(start_s, end_s, color=CUT, alpha=0.15, linewidth=0, label="the link is cut")
    axes.legend(loc="upper right")
    return dots


def main(argv: Sequence[str] | None = None) -> int:
    parser = experiments.parser("publishing.animation", __doc__)
    parser.add_argument("film", type=Path, metavar="FILM.JSON")
    parser.add_argument("file", type=Path, metavar="FILE.gif")
    args = parser.parse_args(argv)
    try:
        draw(json.loads(args.film.read_text(encoding="utf-8")), args.file)
    except (OSError, ValueError, KeyError) as error:
        print(f"animation: {args.film}: {error!r}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
