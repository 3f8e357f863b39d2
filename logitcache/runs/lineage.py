"""Teachers of the student of a run, identified by hashes of their weights (no torch)."""

from pathlib import Path
from typing import Any

from logitcache.runs.directory import read_run

__all__ = ["run_of", "teachers_of_run"]


def run_of(model: str | Path) -> Path | None:
    """Return the run directory of a student, or None if there is none.

    Args:
        model: Run directory or a folder in it (`RUN/student-hf`), optionally prefixed with `hf:`.
    """
    folder = Path(str(model).removeprefix("hf:").partition("?")[0]).expanduser()
    return next((one for one in (folder, folder.parent) if (one / "run.json").is_file()), None)


def teachers_of_run(run: Path) -> list[dict[str, Any]] | None:
    """Return the name and `weights_sha256` of each teacher of the student of a run, or None if the run does not record them.

    Raises:
        InputError: If the run is damaged.
    """
    found = read_run(run).get("taught_by")
    return list(found) if isinstance(found, list) else None
