"""The shape of the house: arrows point one way, torch stays out of what does not need it."""

import ast
import functools
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import logitcache

ROOT = Path(logitcache.__file__).parent
CLI = Path(__file__).parents[1] / "cli"

# Room: what it may import of ours, floor by floor from the ground up. Nothing points upwards.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "runtime": {"errors"},
    # what the verbs are made of
    "methods": {"errors", "runtime"},
    "encoding": {"errors"},
    "store": {"errors", "runtime"},
    "models": {"errors", "runtime"},
    "data": {"errors", "models", "runtime", "store"},
    "teachers": {"data", "encoding", "errors", "models", "runtime", "store"},
    # the verbs
    "dump": {"data", "encoding", "errors", "models", "runtime", "store", "teachers"},
    "runs": {"errors", "runtime", "store"},
    "generate": {"data", "errors", "models", "runs", "runtime"},
    "train": {"data", "encoding", "errors", "generate", "methods", "models", "runs", "runtime", "store", "teachers"},
    "caches": {"data", "encoding", "errors", "methods", "runtime", "store", "teachers"},
    "imports": {"caches", "data", "dump", "errors", "models", "runtime", "store", "teachers"},
    "stats": {"errors", "runtime", "store"},
    "report": {"caches", "data", "errors", "runs", "runtime", "stats", "store"},
    # the command line
    "cli": {
        "caches",
        "dump",
        "errors",
        "generate",
        "imports",
        "methods",
        "models",
        "report",
        "runs",
        "runtime",
        "stats",
        "store",
        "train",
    },
    "__main__": {"cli"},
}
OUTSIDE = {  # packages that only these rooms, or files, may import
    "typer": {"cli"},
    "rich": {"cli"},
    "zarr": {"store"},
    "torch": {
        *("caches", "data", "dump", "encoding", "generate", "methods", "models", "teachers", "train"),
        *(
            "runtime/determinism.py",
            "runtime/device.py",
            "runtime/graphs.py",
            "runtime/processes.py",
            "runtime/tensors.py",
            "runtime/workers.py",
        ),
    },
}
FILES = [*sorted(ROOT.rglob("*.py")), *sorted(CLI.rglob("*.py"))]


def room(path: Path) -> str:
    inside = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path("cli") / path.relative_to(CLI)
    return inside.parts[0].removesuffix(".py")


@functools.cache
def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module))
    return found


def test_arrows_point_one_way():
    """Report every import that is not allowed: the file, and what it imports."""
    found = []
    for path in FILES:
        if path == ROOT / "__init__.py":
            continue
        here, names = room(path), imports(path)
        rooms = {name.split(".")[1] for name in names if name.startswith("logitcache.")} - {here}
        packages = {name.split(".")[0] for name in names} & OUTSIDE.keys()
        found += [f"{here}/{path.name} imports {name}" for name in sorted(rooms - ARROWS[here])]
        found += [
            f"{here}/{path.name} imports {name}"
            for name in sorted(packages)
            if not OUTSIDE[name] & {here, f"{here}/{path.name}"}
        ]
    assert len(FILES) > 100
    assert not found, "\n".join(found)


def test_no_modules_import_each_other_in_a_circle():
    modules = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
    graph = {name.removesuffix(".__init__"): imports(path) & modules.keys() for name, path in modules.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_name_of_the_front_door_opens():
    for name in logitcache.__all__:
        assert getattr(logitcache, name) is not None
    assert logitcache.open is logitcache.open_dataset
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = logitcache.nothing


WITHOUT_TORCH = {  # typed one after another in one process; and whether zarr has been imported then
    "--help": False,
    "--version": False,
    "dump --help": False,
    "train --help": False,
    "compare nothing": False,
    "stats nothing": True,
    "verify no": True,
}


def test_what_needs_no_torch_does_not_import_it(tmp_path):
    code = (
        "import contextlib, sys\n"
        "from logitcache.cli.app import app\n"
        "for line in sys.argv[1:]:\n"
        "    with contextlib.suppress(BaseException):\n"
        "        app(line.split(), standalone_mode=False)\n"
        "    print(f'\\nimported: {line}:', 'torch' in sys.modules, 'zarr' in sys.modules)\n"
    )
    words = [sys.executable, "-c", code, *WITHOUT_TORCH]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=True)
    found = [line.removeprefix("imported: ") for line in done.stdout.splitlines() if line.startswith("imported: ")]
    assert found == [f"{line}: False {zarr}" for line, zarr in WITHOUT_TORCH.items()]


def test_every_public_function_says_what_it_is_for():
    for name in logitcache.__all__:
        thing = getattr(logitcache, name)
        assert isinstance(thing, dict) or (thing.__doc__ or "").strip()
