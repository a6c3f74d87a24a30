"""A failing run as one file: all that it depends on, and what came of it.

    {"format": 1, "image": ..., "commit": ..., "worlds": [...], "result": digest, "wrong": [...]}

The last of the worlds is the one that failed; those before it ran in the same boot. On the same
image and commit the same file gives the same result, to the byte.
"""

import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from testbed.lab import image
from testbed.lab.payload import PROJECT
from tests.campaign.world import World

FORMAT = 1


def digest(result: dict[str, Any]) -> str:
    """What stands for all of a result."""
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:32]


def image_digest() -> str:
    """The lab's image, by its packages and their versions."""
    packages = image.current().packages
    content = packages.read_bytes() if packages.exists() else b""
    return hashlib.sha256(content).hexdigest()[:16]


def commit() -> str:
    """The project's commit, with a `+` if files differ from it; empty if that isn't known."""
    git = ["git", "-C", str(PROJECT)]
    try:
        name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name.stdout.decode().strip() + ("+" if dirty.stdout.strip() else "")


@dataclass(frozen=True, slots=True)
class RunFile:
    """A run that can be repeated."""

    worlds: tuple[World, ...]
    result: str
    wrong: tuple[str, ...]
    image: str
    commit: str

    @classmethod
    def of(cls, worlds: tuple[World, ...], result: dict[str, Any]) -> Self:
        """The run of these worlds here, now, whose last one had this result."""
        wrong = tuple(result["wrong"])
        return cls(worlds, digest(result), wrong, image_digest(), commit())

    def write(self, path: Path) -> None:
        """Write it down."""
        told = {
            "format": FORMAT,
            "image": self.image,
            "commit": self.commit,
            "result": self.result,
            "wrong": self.wrong,
            "worlds": [world.to_json() for world in self.worlds],
        }
        path.write_text(json.dumps(told, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """What was written down.

        Raises:
            ValueError: it is not such a file.
        """
        try:
            found = json.loads(path.read_text())
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']}; this version reads {FORMAT}")
            worlds = tuple(World.from_json(world) for world in found["worlds"])
            told = (found["result"], tuple(found["wrong"]), found["image"], found["commit"])
            return cls(worlds, *told)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"replay={path}: not a run of a campaign: {error}") from error

    def elsewhere(self) -> list[str]:
        """What is not as it was when the file was written."""
        now = {"image": image_digest(), "commit": commit()}
        return [
            f"{name} is {now[name] or 'not known'}, not {was}"
            for name, was in (("image", self.image), ("commit", self.commit))
            if was != now[name]
        ]
