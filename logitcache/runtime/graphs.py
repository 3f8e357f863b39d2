"""Capture a function of static tensors as a CUDA graph and replay it.

Not yet tried on a GPU. A replay launches all kernels of the function at once, on the tensors that were used in the capture.
"""

import logging
from collections.abc import Callable, Hashable

import torch

from logitcache.errors import InputError, first_line

__all__ = ["Replay"]

_WARM_UP = 3  # eager calls before a capture, for libraries to allocate memory and torch.compile to compile
_LOG = logging.getLogger(__name__)


class Replay:
    """Calls a function of static tensors, or replays its captured graph."""

    def __init__(self, device: torch.device, recover: Callable[[], None], *, captures: bool) -> None:
        """Create a replay without capturing anything.

        Args:
            device: Device of the function's tensors.
            recover: Function that discards the partial results of the function after a failed capture.
            captures: Whether to capture; if False, every run is an eager call.
        """
        self._captures, self._recover = captures, recover
        self._stream = torch.cuda.Stream(device) if captures else None  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._key: Hashable = None
        self._calls_left = 0

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Call the function, or replay it.

        Args:
            key: Values on the host that the function depends on. If they change, the function is captured again.
            function: Function that reads and writes static tensors and, after its first calls, does not synchronize with the host.
        """
        if self._graph is not None and key == self._key:
            self._graph.replay()
        elif self._captures:
            self._prepare(key, function)
        else:
            function()

    def _prepare(self, key: Hashable, function: Callable[[], None]) -> None:
        """Call the function in the capture stream, or capture it after the warm-up calls."""
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
        """Capture the function and replay it once. If the capture fails, call it eagerly from now on."""
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, which read ahead, may use the GPU during the capture.
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
