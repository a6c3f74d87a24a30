"""The test bed's pytest plugin, as far as it needs no lab."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.testing.plugin import _text

ROOT = Path(__file__).parents[2]
TEST = """
import pytest

@pytest.mark.in_lab{options}
@pytest.mark.parametrize("case", [1, 2])
@pytest.mark.link({link})
def test_that(sites, case):
    pass
"""


@pytest.mark.parametrize(
    ("options", "link", "said"),
    [
        ("", "'nosuchlink'", "link='nosuchlink': must be one of"),
        ("", "rtt='100'", "rtt='100': give a number and one of"),
        ("", "rtt=100", "rtt=100: write it as a text, with its unit"),
        ("", "delay='3ms'", "delay='3ms': a link has rtt, rate"),
        ("", "'mobile', 'lan'", "link='lan': give one name"),
        ("(sead=3)", "'mobile'", "in_lab(sead=...): it takes seed, clock"),
    ],
)
def test_a_wrong_marker_is_told_before_anything_is_run(
    options: str, link: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "test_that.py").write_text(TEST.format(options=options, link=link))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout + done.stderr
    assert said in done.stdout
    assert "During handling" not in done.stdout


def test_figures_are_shown_with_four_digits() -> None:
    shown = [_text(one) for one in (4.039811, 0.8670000000000001, 1234567.5, 4039811, "none")]
    assert shown == ["4.04", "0.867", "1234567.5", "4039811", "none"]
