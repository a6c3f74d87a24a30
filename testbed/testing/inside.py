"""Runs one test in the lab: `python3 -m testbed.testing.inside ORDER`, an `Order` as JSON.

pytest runs with the project's own ini file, without what its `addopts` add. Reports go to LAB_OUT,
a line of JSON each, as pytest serialises them.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed.testing import covered

PROJECT = Path("/lab/project")
REPORTS = ".reports.jsonl"
COLLECTING = ".collecting.txt"


@dataclass(frozen=True)
class Order:
    """Which test: its file and the ini file, below the project's directory, and its id. `cover` is
    what is measured (`covered`), None for nothing."""

    test: str
    nodeid: str
    ini: str | None = None
    cover: dict[str, Any] | None = None

    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


class Inside:
    """A plugin that leaves one test, and writes down what pytest reports of it."""

    def __init__(self, nodeid: str, out: Path) -> None:
        self._nodeid, self._out = nodeid, out
        self._config: Any = None

    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid == self._nodeid]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            with (self._out / COLLECTING).open("a", encoding="utf-8") as file:
                file.write(f"{report.nodeid}: can't be collected there\n{report.longreprtext}\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with (self._out / REPORTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(data) + "\n")


def main(arguments: Sequence[str]) -> int:
    """Status 0 if the test was run, whatever came of it."""
    order = Order(**json.loads(arguments[0]))
    out = Path(os.environ["LAB_OUT"])
    options = ["--rootdir", ".", "-c", order.ini or os.devnull, "-o", "addopts=", "-q"]
    options += ["-p", "no:cacheprovider", "-p", "testbed.testing.plugin", order.test]
    with covered.measured(order.cover, out):
        # The name of the instance is how the plugin knows that this is the lab.
        status = _run(options, Inside(order.nodeid, out))
    ran = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    return 0 if status in ran and (out / REPORTS).exists() else 1


def _run(options: list[str], plugin: Inside) -> int:
    class Named:
        """Registers the plugin by its name."""

        def pytest_cmdline_main(self, config: pytest.Config) -> None:
            config.pluginmanager.register(plugin, "inside")

    return int(pytest.main(options, plugins=[Named()]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
