"""The evaluation's figures, one function each; `ALL` is their order on the page.

A figure is made of the runs that went well, and says which did not and which it lacks. Its words
are computed from what it shows.
"""

from collections.abc import Callable

from experiments.publishing.figures import ablations, conditions, guest, paper, programs, systems
from experiments.publishing.figures.evidence import Drawn, Evidence

ALL: dict[str, Callable[[Evidence], Drawn]] = {
    "compare": systems.compare,
    "e1": paper.e1,
    "e2": paper.e2,
    "e4": programs.e4,
    "e7": paper.e7,
    "e8": paper.e8,
    "ordering": ablations.ordering,
    "pacing": ablations.pacing,
    "outage": ablations.outage,
    "congestion": conditions.congestion,
    "size": conditions.size,
    "profiles": conditions.profiles,
    "loads": conditions.loads,
    "clocks": conditions.clocks,
    "real": programs.real,
    "guest": guest.guest,
}
