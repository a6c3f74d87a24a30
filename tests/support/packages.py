"""The packages of this checkout, and the wheel installed where nothing of the project is."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PATIENCE_S = 900.0


def run(*argv: object, cwd: Path, path: Path | None = None) -> str:
    """A command that must succeed, with the environment of nobody; `path` comes first in PATH."""
    usual = "/usr/sbin:/usr/bin:/sbin:/bin"
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "HOME"))}
    environment = kept | {"PATH": usual if path is None else f"{path}:{usual}", "LC_ALL": "C.UTF-8"}
    words = [str(word) for word in argv]
    done = subprocess.run(
        words,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, f"{words}: {(done.stdout + done.stderr)[-4000:]}"
    return done.stdout


def build(out: Path) -> dict[str, Path]:
    """The packages, by what their names end in: `.whl`, `.gz` and `.deb`."""
    run(PROJECT / "scripts" / "package", out, cwd=PROJECT)
    return {path.suffix: path for path in out.iterdir()}


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel and what the extra `testbed` brings."""

    bin: Path
    elsewhere: Path

    def __call__(self, *argv: object, cwd: Path | None = None) -> str:
        """A command, found there first; its directory is one where nothing of ours is."""
        return run("env", *argv, cwd=cwd or self.elsewhere, path=self.bin)

    def pip(self, *wanted: str) -> None:
        """Installs packages, of the versions that the project holds."""
        held = [
            f"--constraint={PROJECT / at / 'constraints.txt'}" for at in ("testbed/lab", "scripts")
        ]
        self("pip", "install", "--quiet", "--disable-pip-version-check", *held, *wanted)


def install(wheel: Path, place: Path) -> Installed:
    """The wheel in an environment of its own below `place`."""
    here = Installed(place / "venv" / "bin", place / "elsewhere")
    here.elsewhere.mkdir()
    run("/usr/bin/python3", "-m", "venv", place / "venv", cwd=place)
    here.pip(f"relocator[testbed] @ {wheel.as_uri()}")
    return here
