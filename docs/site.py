"""Build the documentation as a site (build/site): the pages of the repository, and a reference of the Python functions.

    python docs/site.py

MkDocs wants its pages in a folder of their own, so they are copied to build/pages, together with whatever they link to. A link that
leads nowhere fails the build.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import logitcache

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build/pages"
BEGIN = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/README.md"]
LINK = re.compile(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)")
FIRST = (
    "dump_logits",
    "plan_dump",
    "train_student",
    "Loader",
    "Batch",
    "wrap",
    "open_dataset",
    "TeacherRows",
    "get_loss",
)
REFERENCE = """# Python reference

The functions and classes of `import logitcache`. They raise the errors of `logitcache.errors`, which are all `LogitCacheError`.
"""


def linked_files(begin: list[str]) -> Iterator[Path]:
    """Yield these files and, in turn, the files that they link to, relative to the repository."""
    waiting, seen = [Path(name) for name in begin], set[Path]()
    while waiting:
        file = waiting.pop()
        if file in seen or not (ROOT / file).is_file():
            continue
        seen.add(file)
        yield file
        if file.suffix == ".md":
            targets = ((ROOT / file).parent / link for link in LINK.findall((ROOT / file).read_text()))
            waiting += [one.resolve().relative_to(ROOT) for one in targets if one.resolve().is_relative_to(ROOT)]


def reference() -> str:
    """Return the page that mkdocstrings fills from docstrings."""
    names = [*FIRST, *sorted({*logitcache.__all__} - {*FIRST, "METHODS", "open"}, key=str.lower)]
    found = [getattr(logitcache, name) for name in names]
    return "\n\n".join([REFERENCE, *(f"::: {one.__module__}.{one.__qualname__}" for one in found)])


def main() -> None:
    """Copy the pages, and build the site."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for file in linked_files(BEGIN):
        (PAGES / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, PAGES / file)
    (PAGES / "docs/reference.md").write_text(reference())
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
