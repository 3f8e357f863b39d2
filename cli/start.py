"""Entry point of the command; handles Ctrl-C during imports, without a traceback."""

import os
import signal

__all__ = ["main"]


def main() -> None:
    """Import the command line and run it."""
    before = signal.signal(signal.SIGINT, _end)
    from logitcache.cli.app import main as run

    signal.signal(signal.SIGINT, before)
    run()


def _end(_number: int, _frame: object) -> None:
    """Exit at once, because raising from half-imported modules is unsafe."""
    os.write(2, b"\nstopped before starting\n")
    os._exit(130)
