"""The proof that the check finds something: changes for the worse, and what each must be called.

Each is a patch beside this file, applied to a copy of the product. `figure` must be among what got
worse.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.regress import judge, measure, noise, tree
from experiments.regress.figures import values
from experiments.regress.judge import Verdict
from experiments.regress.tree import RegressError


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A patch, what it does, and the figure that must tell."""

    name: str
    what: str
    figure: str
    parts: tuple[str, ...]

    @property
    def patch(self) -> Path:
        return Path(__file__).parent / f"{self.name}.patch"

    def apply(self, product: Path) -> None:
        """Patch a directory `relocator`.

        Raises:
            RegressError: the patch doesn't fit this product any more.
        """
        command = ["git", "apply", "-C1", "--recount", str(self.patch)]
        done = subprocess.run(command, cwd=product.parent, capture_output=True, check=False)
        if done.returncode != 0:
            raise RegressError(f"{self.patch.name} doesn't fit: {done.stderr.decode().strip()}")


_COPIES, _SHORT = measure.BOOTS
SLOWDOWNS = (
    Slowdown("hydration", "5 % more work to hydrate a block", "instructions: a miss", _SHORT),
    Slowdown("round-trip", "one more round trip in a miss", "round trips: a miss", _SHORT),
    Slowdown("batching", "requests a fourth as large", "20 ms: instructions a MiB, proxy", _COPIES),
    Slowdown("window", "a window 20 % too small", "100 ms: copy", _COPIES),
)


def found(
    slowdown: Slowdown, allowed: dict[str, float], console: Console, **how: Any
) -> list[Verdict]:
    """What the check says of this product with the slowdown, in the boot that must tell."""
    with tree.with_product(noise.PRODUCT) as code:
        before = values(measure.measure(code, console, parts=slowdown.parts, **how))
    with noise.changed(slowdown.apply) as code:
        after = values(measure.measure(code, console, parts=slowdown.parts, **how))
    return judge.judge(before, after, allowed)
