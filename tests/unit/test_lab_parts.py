"""Where the lab runs and what it takes along: decisions and parameters, without a boot."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.lab import build, entry, image, luggage, native, payload, vm
from testbed.lab.__main__ import main


@dataclass(frozen=True)
class Host:
    """A host with what stands in the way there."""

    natively: tuple[str, ...] = ()
    in_vm: tuple[str, ...] = ()

    def native_obstacles(self) -> list[str]:
        return list(self.natively)

    def vm_obstacles(self) -> list[str]:
        return list(self.in_vm)


ABLE = Host()
NO_NETEM = Host(natively=("kernel 6.18 has no netem",))


def test_a_kernel_with_netem_runs_natively() -> None:
    assert entry.choose(on=ABLE).where == "native"
    assert entry.choose("auto", "real", ABLE).where == "native"


def test_the_virtual_clock_asks_for_the_vm() -> None:
    choice = entry.choose("auto", "virtual", ABLE)
    assert choice == entry.Choice("vm", "the virtual clock was asked for")


def test_without_netem_it_is_the_vm_and_the_reason_is_said() -> None:
    assert entry.choose(on=NO_NETEM) == entry.Choice("vm", "kernel 6.18 has no netem")
    with pytest.raises(entry.LabError, match=r"can't run natively: kernel 6\.18 has no netem"):
        entry.choose("native", on=NO_NETEM)


def test_without_qemu_the_package_is_named() -> None:
    bare = Host(("not root",), ("qemu is missing (apt-get install q)",))
    with pytest.raises(entry.LabError, match=r"apt-get install q"):
        entry.choose(on=bare)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--where", "moon"], "argument --where: invalid choice: 'moon'"),
        (["--clock", "fast"], "argument --clock: invalid choice: 'fast'"),
        (["--where", "native", "--clock", "virtual"], "clock 'virtual': exists only in the VM"),
        (["--seed", "x"], "argument --seed: 'x': must be a whole number"),
        (["--seed", "-1"], "seed '-1': must be between 0 and"),
        (["--where", "vm", "--memory", "3"], "memory '3': must be a size such as 3G"),
        (
            ["--where", "vm", "--memory", "8M"],
            "memory '8M': must be a size such as 3G or 2048M, at",
        ),
        (["--where", "vm", "--cpus", "2"], "cpus '2': the virtual clock has 1 CPU"),
        (["--where", "vm", "--clock", "real", "--cpus", "0"], "cpus '0': must be 1 or more"),
        (["--timeout", "0"], "argument --timeout: '0': must be a number of seconds above 0"),
        (["--wat"], "unrecognized arguments: --wat"),
    ],
)
def test_a_wrong_parameter_is_refused(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["run", *options, "--", "this"])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("module", ["", "a b", "dir/file.py", "a.", "-m"])
def test_a_module_must_be_a_dotted_name(module: str, tmp_path: Path) -> None:
    with pytest.raises(entry.UsageError, match="must be a module's dotted name"):
        entry.run([module], out=tmp_path)


def test_memory_is_read_in_both_units() -> None:
    assert entry.memory_mib("3G") == entry.memory_mib("3072M") == 3072


# --- what travels into the machine


def a_project(directory: Path) -> Path:
    for name in ("testbed/b.py", "testbed/a.py", "tests/x.toml", "relocator/deep/run.sh"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    (directory / "relocator/deep/run.sh").chmod(0o755)
    (directory / "testbed/plot.png").write_text("not taken")
    (directory / "elsewhere").mkdir()
    (directory / "elsewhere/c.py").write_text("not taken")
    return directory


def test_the_tree_holds_the_projects_files_sorted(tmp_path: Path) -> None:
    files = payload.tree(a_project(tmp_path))
    assert list(files) == ["relocator/deep/run.sh", "testbed/a.py", "testbed/b.py", "tests/x.toml"]
    assert files["relocator/deep/run.sh"].executable
    assert not files["testbed/a.py"].executable


def test_a_checkout_gives_the_same_tree_without_ignored_files(tmp_path: Path) -> None:
    project = a_project(tmp_path)
    expected = payload.tree(project)
    subprocess.run(["git", "init", "-q", str(project)], check=True)
    (project / ".gitignore").write_text("ignored.py\n")
    (project / "testbed/ignored.py").write_text("")
    assert payload.tree(project) == expected


def test_only_what_decides_a_run_travels_with_it(tmp_path: Path) -> None:
    project, first_stage = a_project(tmp_path / "project"), tmp_path / "image/first-stage"
    (first_stage / "modules").mkdir(parents=True)
    (first_stage / "busybox").touch()

    def packed(module: str) -> bytes:
        return payload.initramfs(image.Image(tmp_path / "image"), [module], {}, project=project)

    run, test = packed("testbed.migration"), packed("tests.lab.inside")
    (project / "tests/x.toml").write_text("another test")
    assert packed("testbed.migration") == run
    assert packed("tests.lab.inside") != test
    (project / "testbed/a.py").write_text("another test bed")
    assert packed("testbed.migration") != run


def test_too_large_a_tree_is_refused_by_name(tmp_path: Path) -> None:
    (a_project(tmp_path) / "testbed/big.py").write_text("#" * 200)
    with pytest.raises(image.LabError, match=r"the largest file is testbed/big\.py"):
        payload.tree(tmp_path, limit_bytes=100)


def test_results_stay_inside_their_directory(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        link = tarfile.TarInfo("out/link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("out/link/escaped"))
    archive.seek(0)
    out = tmp_path / "results" / "out"
    out.mkdir(parents=True)
    with tarfile.open(fileobj=archive) as tar:
        with pytest.raises(image.LabError, match="leads outside: out/link/escaped"):
            for member in tar:
                vm.unpack(tar, member, out)
    assert not (tmp_path / "escaped").exists()


# --- the image's cache


@pytest.fixture
def wanted(tmp_path: Path) -> image.Image:
    """An image that is not there yet."""
    return image.Image(tmp_path / "lab" / "wanted")


class Builder:
    """Builds at once, or is interrupted; counts."""

    def __init__(self, *, interrupted: bool = False) -> None:
        self.interrupted = interrupted
        self.builds = 0

    def __call__(self, work: Path, _log: object) -> None:
        self.builds += 1
        (work / "image").mkdir()
        if self.interrupted:
            raise KeyboardInterrupt
        (work / "image" / "packages.txt").write_text("")

    def ensure(self, wanted: image.Image, *, force: bool = False) -> image.Image:
        return build.ensure(force, wanted=wanted, obstacles=list, build=self)


def test_an_image_is_built_once_and_found_again(wanted: image.Image) -> None:
    builder = Builder()
    assert builder.ensure(wanted) == builder.ensure(wanted)
    assert builder.builds == 1
    builder.ensure(wanted, force=True)
    assert builder.builds == 2
    found = {path.name for path in wanted.directory.parent.iterdir()}
    assert found == {"build.lock", wanted.name}


def test_an_interrupted_build_leaves_no_image_and_is_cleared_away(wanted: image.Image) -> None:
    cache = wanted.directory.parent
    with pytest.raises(KeyboardInterrupt):
        Builder(interrupted=True).ensure(wanted)
    assert [path.name for path in cache.iterdir()] == ["build.lock"]
    (cache / ".build-killed").mkdir()
    Builder().ensure(wanted)
    assert not (cache / ".build-killed").exists()


def test_only_the_images_last_used_are_kept(wanted: image.Image) -> None:
    cache = wanted.directory.parent
    for age_s, name in enumerate(("newest", "older", "oldest")):
        (cache / name).mkdir(parents=True)
        (cache / name / "packages.txt").write_text("")
        os.utime(cache / name, (time.time() - 1000 - age_s,) * 2)
    Builder().ensure(wanted)
    kept = {path.name for path in cache.iterdir() if path.is_dir()}
    assert kept == {wanted.name, "newest"}


def test_the_recipe_names_the_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RELOCATOR_CACHE", str(tmp_path))
    assert image.current().directory == tmp_path / "lab" / image.recipe_hash()
    assert image.recipe_hash((*image.PACKAGES, "another")) != image.recipe_hash()


def test_a_build_that_is_impossible_says_why(wanted: image.Image) -> None:
    with pytest.raises(image.LabError, match="can't be built here: mmdebstrap is missing"):
        build.ensure(wanted=wanted, obstacles=lambda: ["mmdebstrap is missing"])


# --- running natively (a program that needs no netem)


def run_natively(task: str, out: Path, timeout_s: float = 60) -> tuple[int, str]:
    shown = io.BytesIO()
    arguments = ["tests.lab.inside", task]
    status = native.run(arguments, seed=1, out=out, timeout_s=timeout_s, stdout=shown)
    return status, shown.getvalue().decode()


def test_a_native_program_sees_the_labs_environment(tmp_path: Path) -> None:
    status, shown = run_natively("clock", tmp_path)
    assert status == 0
    assert shown == f"native {os.cpu_count()} 0.5\n"


def test_a_native_program_finds_the_files_given(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("from the host")
    shown = io.BytesIO()
    status = native.run(
        ["tests.lab.inside", "files"],
        seed=1,
        out=tmp_path / "out",
        timeout_s=60,
        stdout=shown,
        files={"given": given},
    )
    assert status == 0
    assert shown.getvalue() == b"{'given': 'from the host'}\n"
    assert given.exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["missing"], "file 'missing': there is no such file"),
        (["a/x", "b/x"], "file 'b/x': a/x has the same name in the lab"),
    ],
)
def test_files_that_cannot_travel_are_refused(
    names: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/x", "b/x"):
        Path(name).parent.mkdir()
        Path(name).touch()
    with pytest.raises(entry.UsageError, match=message):
        entry.run(["tests.lab.inside"], out=tmp_path, files=[Path(name) for name in names])


def test_a_native_programs_own_failure_is_its_status(tmp_path: Path) -> None:
    status, shown = run_natively("no such task", tmp_path)
    assert status == 1
    assert "KeyError: 'no such task'" in shown


def test_a_native_program_is_ended_at_its_timeout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, shown = run_natively("wait", tmp_path, timeout_s=5)
    assert status == 124
    assert shown.startswith("started\n")
    assert "ended after 5 s" in capsys.readouterr().err


def test_an_interrupt_lets_a_native_program_clean_up(tmp_path: Path) -> None:
    program = (
        "import io, sys; from pathlib import Path; from testbed.lab import native; "
        "native.run(['tests.lab.inside', 'wait'], seed=1, out=Path(sys.argv[1]), timeout_s=60,"
        " stdout=sys.stdout.buffer)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=payload.PROJECT,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        process.send_signal(signal.SIGINT)
        process.wait(timeout=10)
    assert (tmp_path / "cleaned up").exists()


def test_a_package_that_is_installed_in_place_needs_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "zonal-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: zonal\nVersion: 1\n")
    (tmp_path / "__editable__.zonal-1.pth").write_text("/nowhere\n")
    (about / "RECORD").write_text(
        "__editable__.zonal-1.pth,,\nzonal-1.dist-info/METADATA,,\nzonal-1.dist-info/RECORD,,\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    project = tmp_path / "project"
    project.mkdir()
    with pytest.raises(image.LabError, match=r"'zonal': is installed in place.*--project"):
        luggage.Luggage(None, ("zonal",)).files()
    found = luggage.Luggage(project, ("zonal",)).files()
    assert "packages/zonal-1.dist-info/METADATA" in found
