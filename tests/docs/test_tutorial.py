"""docs/tutorial.md does what it says, from first command to last, on a machine of its own."""

from pathlib import Path

from tests.docs.page import Page
from tests.support.site import site

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"


def test_a_disk_moves_loses_its_link_and_is_a_verified_copy(tmp_path: Path) -> None:
    page = Page(PAGE)
    with site(tmp_path, "machine") as machine:
        said = {
            section: page.run(section, {"here": machine})
            for section in dict.fromkeys(block.section for block in page.blocks)
        }
        assert "connected, silent for" in said["The link fails"]
        assert page.not_run == []
        assert not machine.path("/srv/tutorial").exists()
        assert machine.run("ip", "netns", "list") == ""
