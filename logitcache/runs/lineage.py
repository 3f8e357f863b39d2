"""Which teacher the student of a run learned from, by the hash of its weights (no torch)."""

from pathlib import Path
from typing import Any

from logitcache.runs.directory import read_run

__all__ = ["run_of", "teachers_of_run"]


def run_of(model: str | Path) -> Path | None:
    """Return the run that a student belongs to, or None.

    Args:
        model: A run, a folder in one (`RUN/student-hf`), or either with `hf:` before it.
    """
    folder = Path(str(model).removeprefix("hf:").partition("?")[0]).expanduser()
    return next((one for one in (folder, folder.parent) if (one / "run.json").is_file()), None)


def teachers_of_run(run: Path) -> list[dict[str, Any]] | None:
    """Return the teachers that the student of a run learned from, name and `weights_sha256` of each; None where the run does not say.

    Raises:
        InputError: The run is damaged.
    """
    found = read_run(run).get("taught_by")
    return list(found) if isinstance(found, list) else None
