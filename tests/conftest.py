"""What every test may rely on."""

import compileall
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

PROJECT = Path(__file__).parent.parent

# A job that a shell starts in the background ignores SIGINT, and so would all that is started here:
# then nothing that a test interrupts would end.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None, derandomize=True)
settings.load_profile("untimed")

# The command `relocator` is found; last, so that `python3` stays what it is.
os.environ["PATH"] += f"{os.pathsep}{Path(sys.executable).parent}"

# `make test` runs three modules at a time. The lab's tests keep two cores busy, those of servers
# and guests mostly wait: these go together. What computes, on one core, is left for the end, and
# the many short modules last of all, so that all workers end together.
ORDER = (
    *("lab", "nbd", "migrate", "vm", "hosts", "docs", "crash", "wan"),
    *("packages", "explore", "fuzz", "unit"),
)

# In the lab a test may take both cores; the packages are built, and installed, once for all.
TOGETHER = {"lab", "packages"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of the directories; others come first."""
    order = {name: number for number, name in enumerate(ORDER)}
    items.sort(key=lambda item: order.get(item.path.parent.name, -1))


class AtOnce:
    """What fails is told at once: who ends a long run, or loses it, knows it all the same."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The name of the test, and the last line of what it says."""
        if report.failed:
            reason = (report.longreprtext.strip() or "?").splitlines()[-1]
            self._terminal.write_line(f"\n{report.when}: {report.nodeid}: {reason}")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Once, and only where there is a terminal: workers have none that is seen.

    The thousands of servers and commands that are started need not compile what they import, each
    anew: where PYTHONDONTWRITEBYTECODE is set, none would keep it.
    """
    plugins = session.config.pluginmanager
    terminal = plugins.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(session.config, "workerinput"):
        plugins.register(AtOnce(terminal))
        for package in ("relocator", "testbed", "experiments", "tests"):
            compileall.compile_dir(PROJECT / package, quiet=1)


class ByModule(LoadScopeScheduling):
    """A worker takes a module, in order, or all of a directory of `TOGETHER`."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return str(Path(path).parent) if Path(path).parent.name in TOGETHER else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByModule:
    """How `pytest -n 3` divides the tests."""
    config.option.loadscopereorder = False
    return ByModule(config, log)
