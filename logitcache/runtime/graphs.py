"""A function of static tensors, called a few times and then captured as a CUDA graph and replayed.

Not yet seen on a GPU. A replay launches all kernels of the function at once; what they read and write is where it was in the capture.
"""

import logging
from collections.abc import Callable, Hashable

import torch

from logitcache.errors import InputError, first_line

__all__ = ["Replay"]

_WARM_UP = 3  # calls before a capture, in which libraries allocate and torch.compile compiles
_LOG = logging.getLogger(__name__)


class Replay:
    """Runs a function of static tensors."""

    def __init__(self, device: torch.device, recover: Callable[[], None], *, captures: bool) -> None:
        """Capture nothing yet.

        Args:
            device: Where the function computes.
            recover: Called after a capture that failed: what the function has begun is not to go on.
            captures: Whether to capture at all; else every run is a call.
        """
        self._captures, self._recover = captures, recover
        self._stream = torch.cuda.Stream(device) if captures else None  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._key: Hashable = None
        self._calls_left = 0

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Call the function, or replay it.

        Args:
            key: Numbers of the host that the function depends on. With others it is captured again.
            function: Reads and writes static tensors, and asks the host for nothing but in its first calls.
        """
        if self._graph is not None and key == self._key:
            self._graph.replay()
        elif self._captures:
            self._prepare(key, function)
        else:
            function()

    def _prepare(self, key: Hashable, function: Callable[[], None]) -> None:
        """Call the function in the stream of captures, or when it has been called often enough capture it."""
        assert self._stream is not None
        if key != self._key:
            self._graph, self._key, self._calls_left = None, key, _WARM_UP
        if not self._calls_left:
            self._capture(function)
            return
        self._calls_left -= 1
        here = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            function()
        here.wait_stream(self._stream)

    def _capture(self, function: Callable[[], None]) -> None:
        """Capture the function and replay it once; call it from now on where it cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads that read ahead may use the GPU meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                function()
        except (RuntimeError, InputError) as error:
            self._captures = False
            _LOG.warning("steps are called, not replayed: they cannot be captured (%s)", first_line(error))
            self._recover()
            function()
        else:
            self._graph = graph
            graph.replay()
