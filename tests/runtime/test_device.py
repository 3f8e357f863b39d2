"""What a run takes from the machine: devices, worker processes, the precision of float32 products."""

import os

import pytest
import torch

from logitcache.errors import InputError
from logitcache.runtime import device as machine
from logitcache.runtime.device import decoding_workers, float32_precision, float32_settings, pick_device


@pytest.mark.parametrize(("cpus", "ranks", "workers"), [(2, 1, 2), (64, 1, 8), (64, 4, 8), (16, 8, 2), (4, 8, 1)])
def test_decoding_workers_go_by_the_cpus_of_a_process(monkeypatch, cpus, ranks, workers):
    """torchrun sets OMP_NUM_THREADS to 1, which says nothing about the CPUs there are."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    torch.set_num_threads(1)
    assert decoding_workers() == workers


def test_mps_is_refused_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    with pytest.raises(InputError, match="device 'mps' is not supported, because it has no float64"):
        pick_device("mps")


def test_the_rounding_of_float32_products_is_set_for_a_while_and_restored(monkeypatch):
    assert float32_settings(torch.device("cpu")) == {}
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    found = float32_settings(torch.device("cuda"))
    assert found == {"matmul_precision": before[0], "cudnn_tf32": before[1]}
    with float32_precision("high", not before[1]):
        assert float32_settings(torch.device("cuda")) == {"matmul_precision": "high", "cudnn_tf32": not before[1]}
    assert float32_settings(torch.device("cuda")) == found
    with pytest.raises(ZeroDivisionError), float32_precision("medium", None):
        raise ZeroDivisionError
    assert float32_settings(torch.device("cuda")) == found


def test_a_dump_on_a_gpu_records_how_float32_products_are_rounded(dump, monkeypatch):
    """Two dumps of one identity must not differ by 1e-3, and a replay rounds as the dump did."""
    recorded = {"matmul_precision": "high", "cudnn_tf32": False}
    monkeypatch.setattr("logitcache.dump.job.float32_settings", lambda _: recorded)  # as on a GPU
    seen = []
    original = machine.float32_precision

    def watched(*settings):
        seen.append(settings)
        return original(*settings)

    monkeypatch.setattr("logitcache.teachers.forward.float32_precision", watched)
    cache = dump()
    assert {name: cache.manifest.forward[name] for name in recorded} == recorded
    assert set(seen) == {("high", False)}
