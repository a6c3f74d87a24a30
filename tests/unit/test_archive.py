"""Runs in one file: packed, unpacked, gone on from."""

import io
import tarfile
from pathlib import Path

import pytest

from experiments import reproduce
from experiments.running import archive, runner
from experiments.running.archive import ArchiveError
from tests.unit.test_runner import A as CELL
from tests.unit.test_runner import ends


def contents(place: Path) -> dict[str, bytes]:
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """The archive of an evaluation of one run."""
    out = tmp_path / "out"
    assert runner.run(CELL, out, ends("ok")) == "ok"
    archive.pack(out, [CELL.id], tmp_path / archive.NAME)
    return tmp_path / archive.NAME


def test_runs_come_back_as_they_were_and_are_not_made_again(packed: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    assert archive.unpack(packed, elsewhere) == [CELL.id]
    assert contents(elsewhere / "runs") == contents(tmp_path / "out" / "runs")
    assert reproduce.prepare([CELL], elsewhere) == {CELL.id}
    assert not list(elsewhere.glob(".unpacking-*"))


def test_a_run_that_is_there_stays(packed: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    assert runner.run(CELL, elsewhere, ends("refused")) == "refused"
    assert archive.unpack(packed, elsewhere) == []
    assert runner.outcome(elsewhere, CELL.id) == "refused"


def test_the_same_runs_are_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    archive.unpack(packed, tmp_path / "elsewhere")
    archive.pack(tmp_path / "elsewhere", [CELL.id], tmp_path / "again.tar.xz")
    assert (tmp_path / "again.tar.xz").read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("lacks", ["half", "end"])
def test_a_damaged_archive_adds_nothing(packed: Path, tmp_path: Path, lacks: str) -> None:
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) // 2 if lacks == "half" else -1])
    with pytest.raises(ArchiveError, match="can't be read as an archive of runs"):
        archive.unpack(packed, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere/runs").exists()


@pytest.mark.parametrize("name", ["runs/../../../escaped", "/runs/absolute", "escaped"])
def test_nothing_is_written_outside(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        member = tarfile.TarInfo(name)
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    before = contents(tmp_path)
    with pytest.raises(ArchiveError, match="no file of a run"):
        archive.unpack(path, tmp_path / "elsewhere")
    assert contents(tmp_path) == before


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        member = tarfile.TarInfo("runs/some/run.json")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(ArchiveError, match="no file of a run"):
        archive.unpack(path, tmp_path / "elsewhere")


def test_an_archive_without_runs_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "empty.tar.xz", "w:xz"):
        pass
    with pytest.raises(ArchiveError, match=r"has no runs/CELL/run\.json"):
        archive.unpack(tmp_path / "empty.tar.xz", tmp_path / "elsewhere")


def test_the_command_names_an_archive_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tmp_path / "absent.tar.xz"
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--out", str(tmp_path / "out"), "--runs", str(absent)])
    assert ended.value.code == 2
    assert f"--runs: '{absent}': must be published runs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_goes_on_to_nothing_from_a_damaged_archive(
    packed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(reproduce, "make_all")  # runs are not wanted here, whatever happens
    packed.write_bytes(packed.read_bytes()[:-20])
    elsewhere = tmp_path / "elsewhere"
    assert reproduce.main(["--out", str(elsewhere), "--runs", str(packed)]) == 1
    assert f"reproduce: {packed}: can't be read" in capsys.readouterr().err
    assert not (elsewhere / "runs").exists()
