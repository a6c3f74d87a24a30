"""Imports go one way: edges -> engine -> I/O -> pure. Read from the source, not from memory."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS = (
    {"errors", "bitmap", "geometry", "states", "config", "pacing", "ordering", "latency", "heat"}
    | {"runs", "readahead", "gate", "partitions", "extfs", "checksums", "ext_layout"}
    | {"ext_groups", "ext_inode", "ext_journal", "rounds", "inuse", "endpoint"},
    {"image", "maps", "meta", "opening", "store", "connection", "upstream", "control", "host"}
    | {"exports", "source", "verify", "handles", "tunnel", "graduation", "threadstate"}
    | {"identity"},
    {"hydration", "holes", "disk", "copier", "status", "learning", "handover", "engine"},
    {"plugin", "cli"},
)
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
#: module -> the only files that may import it
OWNERS = {
    "nbdkit": {"relocator/plugin.py"},
    "nbd": {"relocator/connection.py", "relocator/handles.py"},
    "pyroute2": {"testbed/wan.py"},
}


def imports(path: Path) -> set[str]:
    """Everything a file imports at run time, as dotted names."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def files(*packages: str) -> list[Path]:
    return sorted(path for name in packages for path in (ROOT / name).rglob("*.py"))


def module_of(path: Path) -> str:
    return path.relative_to(ROOT / "relocator").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", files("relocator"), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_imports_from_a_layer_above_its_own(path: Path) -> None:
    own = module_of(path)
    if own == "__init__":
        return
    assert own in LEVEL, f"{own} has no layer: add it to LAYERS"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "relocator" and len(parts) > 1 and parts[1] in LEVEL:
            assert LEVEL[parts[1]] <= LEVEL[own], f"{own} imports {name} from above"


def test_each_foreign_module_has_one_owner() -> None:
    for path in files("relocator", "testbed", "experiments"):
        here = str(path.relative_to(ROOT))
        for name in imports(path):
            owners = OWNERS.get(name.split(".")[0])
            if owners is not None and here.startswith(("relocator/", "testbed/wan")):
                assert here in owners, f"{here} imports {name}"


def test_packages_depend_on_each_other_in_one_direction() -> None:
    forbidden = {
        "relocator": {"testbed", "experiments", "pandas", "seaborn", "matplotlib", "pyroute2"},
        "testbed": {"experiments", "pandas", "seaborn", "matplotlib"},
    }
    for package, names in forbidden.items():
        for path in files(package):
            used = {name.split(".")[0] for name in imports(path)}
            assert not used & names, f"{path.relative_to(ROOT)} imports {used & names}"


def test_the_io_path_needs_only_the_standard_library_and_nbd() -> None:
    for path in files("relocator"):
        if module_of(path) in ("cli", "host"):
            continue
        for name in imports(path):
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names | {"relocator", "nbd", "nbdkit"}, (
                f"{path.relative_to(ROOT)} imports {name}"
            )
