"""Commands in processes of their own that start warm: forked from a server, one a test process, that has imported torch already."""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_WARM = multiprocessing.get_context("forkserver")
_WARM.set_forkserver_preload(
    ["torch", "torchvision", "zarr", "safetensors.torch", "pytest", "hypothesis", "logitcache.cli.app"]
)


class Command:
    """A `logitcache` command, a `pytest` one, or a script in Python, that runs beside the test."""

    def __init__(
        self, program: str, words: Sequence[object], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it.

        Args:
            program: `logitcache`, `pytest` or `python`.
            words: Its arguments.
            folder: Where it runs.
            environment: Variables besides those of the test.
        """
        self._said = Path(tempfile.mkstemp(dir=folder, prefix=f"{program}-", suffix=".txt")[1])
        line = [program, *map(str, words)]
        self._process = _WARM.Process(target=_run, args=(line, folder, self._said, os.environ | (environment or {})))
        self._process.start()

    def wait_until(self, ready: Callable[[], object], seconds: float = 120, every: float = 0.005) -> None:
        """Wait for what the command does, looking every so many seconds; fail if it ends before."""
        deadline = time.monotonic() + seconds
        while not ready():
            assert self._process.is_alive(), f"the command has ended:\n{self._said.read_text()}"
            assert time.monotonic() < deadline
            time.sleep(every)

    def send_signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process, or to all of its group, as a terminal does."""
        (os.killpg if group else os.kill)(self._process.pid, number)

    def kill(self) -> None:
        """End it where it stands."""
        self.send_signal(signal.SIGKILL)
        self.end()

    def end(self, seconds: float = 120) -> tuple[int, str]:
        """Wait for the end; return its exit code and what it printed, to standard output and error together."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"the command goes on:\n{self._said.read_text()}"
        return self._process.exitcode, self._said.read_text()


def _run(line: list[str], folder: Path, said: Path, environment: Mapping[str, str]) -> None:
    os.setpgid(0, 0)  # as a shell starts it
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.argv = line
    out = os.open(said, os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if line[0] == "pytest":
        import pytest

        # This process has modules whose assertions pytest would rewrite.
        sys.exit(int(pytest.main([*line[1:], "-W", "ignore:Module already imported"])))
    if line[0] == "python":
        sys.argv = line[1:]
        runpy.run_path(line[1], run_name="__main__")
        return
    from logitcache.cli.start import main

    main()
