"""Where the command begins: Ctrl-C while modules are still imported ends it without a page of traceback."""

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
    """End the process: nothing has begun, and half-imported modules are no place to raise from."""
    os.write(2, b"\nstopped; nothing had begun\n")
    os._exit(130)
