"""pytest's hooks. A test marked `in_lab` is sent into the lab; all others run as ever.

    @pytest.mark.in_lab                     in a virtual machine, on the virtual clock
    @pytest.mark.in_lab(seed=3, clock="real", memory="2G", timeout=600)
    @pytest.mark.link("satellite")          what the link between the sites is
    @pytest.mark.link(rtt="80ms", rate="50mbit", loss="0.1%")

Settings, in pytest's ini file: `lab_link` (a name; national), `lab_packages` (Debian packages that
the lab has besides its own), `lab_python` (Python packages, installed here, that travel along),
`lab_files` (files that travel along). Options: `--lab-seed N`, for another repetition, and
`--lab-out DIR`, where each test's files are left.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from testbed.lab.image import LabError
from testbed.network.wan import ProfileError
from testbed.testing.fixtures import _standing, lab, link_of, sites, wan

__all__ = ["_standing", "lab", "sites", "wan"]

MARKER = "in_lab"
USUAL_LINK = "national"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lab", "the emulated WAN and its virtual machine")
    group.addoption("--lab-seed", type=int, metavar="N", help="in place of each test's own (42)")
    text = "where tests in the lab leave their files (.lab in the root directory)"
    group.addoption("--lab-out", metavar="DIR", help=text)
    parser.addini("lab_link", f"link of tests that name none ({USUAL_LINK})", default=USUAL_LINK)
    parser.addini("lab_packages", "Debian packages that the lab has besides its own", "args")
    parser.addini("lab_python", "Python packages, installed here, that travel along", "args")
    parser.addini("lab_files", "files that travel along", "args")


def pytest_configure(config: pytest.Config) -> None:
    text = "in_lab(seed, clock, memory, timeout): runs in the lab's machine, on its virtual clock"
    config.addinivalue_line("markers", text)
    text = "link(name, rtt, rate, loss, jitter, queue, congestion): the link between the sites"
    config.addinivalue_line("markers", text)


@pytest.hookimpl(hookwrapper=True)
def pytest_pycollect_makeitem(collector: pytest.Collector) -> Iterator[None]:
    """A marker that can't be is told before anything is run."""
    outcome: Any = yield
    found = outcome.get_result()
    for item in found if isinstance(found, list) else [found]:
        if isinstance(item, pytest.Item) and (wrong := _wrong(item)):
            outcome.force_exception(collector.CollectError(f"{item.name}: {wrong}"))
            return


def _wrong(item: pytest.Item) -> str:
    """What can't be of the item's markers; empty if all can."""
    try:
        if item.get_closest_marker(MARKER) is not None:
            from testbed.testing import remote

            remote.options(item)
            link_of(item)
        elif item.get_closest_marker("link") is not None:
            link_of(item)
    except (LabError, ProfileError) as error:
        return str(error)
    return ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Sends a marked test into the lab, unless this is the lab."""
    if item.get_closest_marker(MARKER) is None or item.config.pluginmanager.has_plugin("inside"):
        return None
    from testbed.testing import remote

    told: dict[str, Any] = {"nodeid": item.nodeid, "location": item.location}
    item.ihook.pytest_runtest_logstart(**told)
    for report in remote.run(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(**told)
    return True


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The figures that tests have recorded."""
    figures: dict[str, dict[str, Any]] = defaultdict(dict)
    for report in _calls(terminalreporter):
        for name, value in report.user_properties:
            if name.startswith("lab:"):
                figures[report.nodeid][name.removeprefix("lab:")] = value
    if figures:
        terminalreporter.section("figures from the lab")
    for nodeid, found in figures.items():
        shown = ", ".join(f"{name} {_text(value)}" for name, value in found.items())
        terminalreporter.line(f"{nodeid}: {shown}")


def _text(figure: Any) -> str:
    """A figure as it is shown: four digits of one that isn't whole."""
    return f"{figure:.4g}" if isinstance(figure, float) and abs(figure) < 1e4 else str(figure)


def _calls(terminalreporter: Any) -> Iterable[pytest.TestReport]:
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                yield report
