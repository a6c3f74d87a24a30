"""The kernel's target is left alone where it isn't ours to take down."""

from pathlib import Path

import pytest

from relocator.errors import RelocatorError
from relocator.iscsi import kernel
from relocator.iscsi.lun import Lun

LUN = Lun("nbd://127.0.0.1", "iqn.2024-01.org.example:disk", "127.0.0.1", 3260)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks and the kernel's targets are directories of the test's, and modules are loaded."""
    monkeypatch.setattr(kernel, "_LOCKS", tmp_path)
    monkeypatch.setattr(kernel, "_TARGETS", tmp_path / "target")
    monkeypatch.setattr(kernel, "_load", lambda: None)


def test_a_name_that_is_served_is_refused() -> None:
    with (
        kernel._alone(LUN),
        pytest.raises(RelocatorError, match="disk: is served by the kernel here"),
        kernel.served(LUN),
    ):
        pass
    with kernel._alone(LUN):  # and is free again
        pass


def test_somebody_else_s_target_stays(tmp_path: Path) -> None:
    portal = tmp_path / "target/iscsi" / LUN.name / "tpgt_1"
    portal.mkdir(parents=True)
    with (
        pytest.raises(RelocatorError, match="of that name, which is none of ours"),
        kernel.served(LUN),
    ):
        pass
    assert portal.exists()
