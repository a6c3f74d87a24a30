"""What every test may rely on."""

import os
import signal
import sys
from pathlib import Path

import pytest

# A job that a shell starts in the background ignores SIGINT, and so would all that is started here:
# then nothing that a test interrupts would end.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The command `relocator` is found; last, so that `python3` stays what it is.
os.environ["PATH"] += f"{os.pathsep}{Path(sys.executable).parent}"

# `make test` runs two modules at a time. Long ones begin first, so that both workers end together;
# those of directories that are not listed, before all others.
LONG_FIRST = ("lab", "migrate", "nbd", "crash", "docs", "hosts", "vm", "wan", "unit")


@pytest.hookimpl(tryfirst=True)  # before the name of the group becomes part of the test's
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What one worker runs: a module, or all of tests/lab, where each test takes both cores."""

    order = {name: number for number, name in enumerate(LONG_FIRST)}
    items.sort(key=lambda item: order.get(item.path.parent.name, -1))
    for item in items:
        directory = item.path.parent.name
        group = "lab" if directory == "lab" else f"{directory}/{item.path.stem}"
        item.add_marker(pytest.mark.xdist_group(group))
