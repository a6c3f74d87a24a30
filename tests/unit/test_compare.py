"""experiments.analysis.compare: every difference between two trees is listed, and nothing else."""

from pathlib import Path

import pytest

from experiments.analysis import compare


def tree(root: Path, **files: str) -> str:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    root.mkdir(exist_ok=True)
    return str(root)


def test_equal_trees_are_identical(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"a_csv": "1", "runs__b_json": "2"}
    assert compare.main([tree(tmp_path / "1", **files), tree(tmp_path / "2", **files)]) == 0
    assert capsys.readouterr().out == "identical: 2 files\n"


def test_every_difference_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = tree(tmp_path / "1", a_csv="same", b_csv="12345", c_csv="only")
    other = tree(tmp_path / "2", a_csv="same", b_csv="12x45", d__e_csv="only", f_csv="")
    assert compare.main([one, other]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "differs from byte 2: b.csv",
        f"only in {one}: c.csv",
        f"only in {other}: d/e.csv",
        f"only in {other}: f.csv",
        "4 of the files differ",
    ]


def test_a_longer_file_differs_where_the_shorter_ends(tmp_path: Path) -> None:
    one, other = tree(tmp_path / "1", a="12"), tree(tmp_path / "2", a="123")
    assert list(compare.differences(Path(one), Path(other))) == ["differs from byte 2: a"]


def test_a_difference_beyond_the_first_chunk_is_found(tmp_path: Path) -> None:
    long = "x" * (compare.CHUNK_BYTES + 10)
    one, other = tree(tmp_path / "1", a=long + "1"), tree(tmp_path / "2", a=long + "2")
    found = list(compare.differences(Path(one), Path(other)))
    assert found == [f"differs from byte {len(long)}: a"]


def test_logs_are_left_out(tmp_path: Path) -> None:
    one, other = tree(tmp_path / "1", a="1", x_log="1"), tree(tmp_path / "2", a="1", y_log="2")
    assert compare.main([one, other]) == 0


def test_empty_or_missing_trees_are_not_called_identical(tmp_path: Path) -> None:
    one, other = tree(tmp_path / "1"), tree(tmp_path / "2")
    assert compare.main([one, other]) == 2
    assert compare.main([one, str(tmp_path / "3")]) == 2
