"""What a test may ask for: `lab`, `sites`, `wan`.

`wan` is the link of the marker `link(NAME, rtt=..., rate=..., ...)`, a name of the library's
(`relocator-lab list`) and values in place of its own; without the marker, that of the setting
`lab_link`. `sites` and `wan` stand for one test.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from relocator.cli import host
from testbed.hosts import supervise
from testbed.lab.entry import DEFAULT_SEED
from testbed.network import links
from testbed.network.wan import LinkProfile, ProfileError
from testbed.testing import network

FIGURES = "figures.json"


@dataclass
class Lab:
    """Where the test runs: its seed, its clock ("virtual", "real", or "native": no lab at all).

    What it leaves in `out` is found beside its results; `files` has copies of the setting
    `lab_files`.
    """

    seed: int
    clock: str
    out: Path
    files: Path
    _request: pytest.FixtureRequest
    random: Random = field(init=False)  # of the seed

    def __post_init__(self) -> None:
        self.random = Random(self.seed)

    def record(self, **figures: float | int | str) -> None:
        """Keeps figures with the test's report (`user_properties`), in a file, and shows them."""
        properties = self._request.node.user_properties
        properties += [(f"lab:{name}", value) for name, value in figures.items()]
        known = {name: value for name, value in properties if name.startswith("lab:")}
        text = json.dumps({name.removeprefix("lab:"): value for name, value in known.items()})
        (self.out / FIGURES).write_text(text + "\n")

    def wait_until(self, ready: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        """Waits for a condition; `what` completes "still waiting for ..."."""
        supervise.wait_until(ready, what, timeout_s)


@pytest.fixture
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Lab:
    """The lab that the test runs in."""
    given = os.environ.get
    return Lab(
        seed=int(given("LAB_SEED", str(DEFAULT_SEED))),
        clock=given("LAB_CLOCK", "native"),
        out=Path(given("LAB_OUT", tmp_path)),
        files=Path(given("LAB_FILES", tmp_path)),
        _request=request,
    )


@pytest.fixture
def _standing(
    request: pytest.FixtureRequest, lab: Lab, tmp_path: Path
) -> Iterator[tuple[network.Sites, network.Wan]]:
    if obstacles := host.native_obstacles():
        pytest.fail(
            f"sites can't be built here ({'; '.join(obstacles)}): "
            "mark the test to run in the lab, @pytest.mark.in_lab",
            pytrace=False,
        )
    with network.standing(link_of(request.node), lab.out, tmp_path) as found:
        yield found


def link_of(item: pytest.Item) -> LinkProfile:
    """The link of a test.

    Raises:
        ProfileError: its marker, or the setting `lab_link`, names none that can be.
    """
    marker, usual = item.get_closest_marker("link"), item.config.getini("lab_link")
    if marker is None:
        return links.link(usual)
    if len(marker.args) > 1:
        raise ProfileError("link", repr(marker.args[1]), "give one name, and values by name")
    for key, value in marker.kwargs.items():
        if not isinstance(value, str):
            raise ProfileError(key, repr(value), "write it as a text, with its unit")
    return links.link(marker.args[0] if marker.args else usual, **marker.kwargs)


@pytest.fixture
def sites(_standing: tuple[network.Sites, network.Wan]) -> network.Sites:
    """Two sites, `source` and `destination`, with a WAN between them."""
    return _standing[0]


@pytest.fixture
def wan(_standing: tuple[network.Sites, network.Wan]) -> network.Wan:
    """The WAN between the sites."""
    return _standing[1]
