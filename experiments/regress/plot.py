"""What moved, as a picture: a row a figure, grey what it may move by, red what is worse.

The axis counts in a figure's limits, so that figures that may move by a half per cent and by five
stand side by side; the change itself is written beside its mark.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure as Drawing

from experiments.publishing import plots
from experiments.regress import report
from experiments.regress.judge import Verdict

MOST = 4.0  # limits that the axis shows; what moved further stands at its end as an arrow
COLOURS = {"worse": "#c0504d", "more": "#c98a1b", "less": "#2a9d6f", "": "#8a8f98"}


def figure(verdicts: Sequence[Verdict], of: str) -> bytes:
    """A PNG."""
    with plots.style():
        drawing = Drawing(figsize=(9.6, 1.4 + 0.235 * len(verdicts)), layout="constrained")
        axes = drawing.subplots()
        axes.axvspan(-1, 1, color="#e9e7e1", zorder=0)
        axes.axvline(0, color=plots.FAINT, linewidth=0.8, zorder=1)
        for row, one in enumerate(verdicts):
            colour = COLOURS[one.word]
            limits = one.change / one.limit
            at = max(-MOST, min(MOST, limits))
            mark = "o" if at == limits else ">" if at > 0 else "<"
            axes.plot([0, at], [row, row], color=colour, linewidth=1.6)
            axes.plot([at], [row], mark, color=colour, markersize=6)
            right = (at > 0) == (abs(at) < MOST * 0.7)  # towards the outside, where there is room
            if one.word:
                axes.annotate(
                    report.moved(one),
                    (at, row),
                    (8 if right else -8, 0),
                    textcoords="offset points",
                    ha="left" if right else "right",
                    va="center",
                    color=colour,
                    fontweight="bold",
                    bbox={"facecolor": plots.PAPER, "edgecolor": "none", "pad": 1},
                )
        axes.set_yticks(range(len(verdicts)), [one.figure.name for one in verdicts], fontsize=8.5)
        for label, one in zip(axes.get_yticklabels(), verdicts, strict=True):
            if one.word:
                label.set_color(COLOURS[one.word])
                label.set_fontweight("bold")
        axes.set_ylim(len(verdicts) - 0.5, -0.5)
        axes.set_xlim(-MOST - 0.3, MOST + 0.3)
        axes.set_xlabel("moved, in limits of each figure   (left: better, right: worse)")
        axes.grid(visible=False, axis="y")
        axes.set_title(report.headline(verdicts), loc="left", fontweight="bold", fontsize=10)
        drawing.suptitle(f"baseline {of[:12]}", x=0.995, ha="right", fontsize=8, color=plots.FAINT)
        return plots.png(drawing)
