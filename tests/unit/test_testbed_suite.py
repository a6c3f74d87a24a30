"""The workloads by name."""

from pathlib import Path

import pytest

from testbed.network.wan import ProfileError
from testbed.workloads.base import Io, Log, Work, io_line, parse_ios, parse_work, work_line
from testbed.workloads.suite import Settings, parse, room


def names(text: str) -> list[str]:
    return [one.name for one in parse(text, Settings())]


def test_the_ledger_is_always_there_and_only_once() -> None:
    assert names("") == ["ledger"]
    assert names("compile") == ["ledger", "compile"]
    assert names("ledger, compile") == ["ledger", "compile"]


def test_fio_starts_before_all_others(tmp_path: Path) -> None:
    (tmp_path / "zipf.fio").write_text("# disk: 2M in 1 file\n[reads]\nrw=randread\n")
    assert names(f"compile,mixed,fio:{tmp_path}/zipf.fio") == [
        "mixed",
        "fio-zipf",
        "ledger",
        "compile",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "mail",
        "mixed,,compile",
        "fio:",
        "fio",
        "mixed:3",
        "fio:/nowhere.fio",
        "mixed,mixed",
        "sqlite:",
        "sqlite:off",
    ],
)
def test_a_wrong_name_is_refused_by_parameter_and_value(text: str) -> None:
    with pytest.raises(ProfileError, match=r"^workloads='"):
        parse(text, Settings())


def test_a_job_files_head_says_what_it_takes_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "mail.fio").write_text("# mail\n# disk: 24M in 300 files\n[reads]\n")
    (workload, ledger) = parse(f"fio:{tmp_path}/mail.fio", Settings())
    assert workload.room == (24 * 2**20, 300)
    assert room([workload, ledger]) == (26 * 2**20, 301)


def test_logs_add_up() -> None:
    one, two = Log([Io(1.0, "read", 0.1, 0)]), Log([], [Work("git", 1.0, 2.0)])
    assert one + two == Log(one.ios, two.work)


def test_lines_of_work_and_of_ios_are_read_as_they_were_written() -> None:
    work = Work("compile", 1.5, 2.25, (0.25, 0.5))
    assert parse_work([work_line(work), work_line(Work("git", 0, 1))]) == [work, ("git", 0, 1, ())]
    io = Io(1.5, "lookup", 0.25, 4096)
    assert parse_ios([io_line(io)]) == [io]
