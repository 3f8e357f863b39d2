"""What a GPU would be given, on a machine that has none.

torch's fake tensors have shapes, types and a device, and refuse to meet one of another device or to be read by the host.
"""

import copy

import numpy as np
import pytest
import tiny
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from logitcache.data import ArrayImages, preprocessing_for
from logitcache.data.images.rendering import _Source
from logitcache.data.images.views import View, make_views, preprocessing
from logitcache.encoding import TopKRows, read_encoding
from logitcache.methods import METHODS, make_objective
from logitcache.runtime.device import to_device
from logitcache.train.targets import CachedTargets, HeldRows, Stretch, _bytes_of

CUDA = torch.device("cuda:0")


@pytest.fixture
def gpu(monkeypatch):
    """Tensors that say they lie on a GPU; page-locking is left out, which fake tensors do not know."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    yield FakeTensorMode(allow_non_fake_inputs=True)
    preprocessing._constant.cache_clear()


def on_gpu(tensor):
    return isinstance(tensor, FakeTensor) and tensor.device == CUDA


@pytest.mark.parametrize("recipe", ["none", "cifar", "cifar+mixup+cutmix"])
def test_pixels_are_cut_where_the_images_are(gpu, recipe):
    images = ArrayImages(*tiny.arrays())
    (view,) = make_views(recipe, 1, 0)
    eyes, there = preprocessing_for(images, recipe), copy.copy(images)
    with gpu:
        there.images = torch.empty(images.images.shape, dtype=torch.uint8, device=CUDA)
        batch = _Source(there, (eyes,), with_digests=False).rendered(view, np.arange(40))
        shown = eyes.normalize(batch.inputs[0])
    assert on_gpu(batch.inputs[0])
    assert batch.inputs[0].shape == (40, *images.images.shape[1:])
    assert on_gpu(shown)
    assert shown.dtype == torch.float32


@pytest.mark.parametrize(
    "stored", [{"precision": "f32"}, {"precision": "u8"}, {"top_k": 2}, {"top_k": 1, "precision": "u8"}]
)
def test_a_gpu_gathers_what_the_cpu_does(dump, stored):
    """Rows as bytes, taken apart after one gather; here by the CPU."""
    cache = dump(**stored)
    columns, rows = tiny.columns_of(cache), cache.view(0, "sequential")
    assert rows.dtype == cache.fields("sequential")
    assert 0 <= rows.dtype.itemsize - sum(rows.dtype[name].itemsize for name in columns) < 4  # no gaps but at the end
    samples = torch.randperm(len(rows))[:48]
    here, there = (HeldRows(rows, torch.device("cpu")) for _ in range(2))
    there._rows = _bytes_of(rows)
    for batch in (here.take(samples), there.take(samples)):
        assert batch.keys() == columns.keys()
        for name, column in columns.items():
            assert batch[name].dtype == torch.from_numpy(column[:0]).dtype
            assert np.array_equal(batch[name].numpy(), column[samples.numpy()])


@pytest.mark.parametrize(
    "stored",
    tiny.usual(
        [{"precision": "f16"}, {"precision": "u8"}, {"top_k": 2}, {"top_k": 2, "precision": "u8"}],
        [{"precision": "f16"}, {"top_k": 2, "precision": "u8"}],
    ),
)
def test_rows_are_gathered_and_decoded_on_the_device_and_every_method_takes_them(dump, gpu, stored):
    cache = dump(**stored)
    (view, *_) = [View.from_json(entry) for entry in cache.manifest.views]
    samples = np.random.default_rng(0).permutation(cache.manifest.samples)[:48]
    with gpu:
        targets = CachedTargets(cache, CUDA)
        targets.begin(Stretch((view,)), Stretch((view,)))
        rows = targets.held(0).of(samples)
        targets.close()
        assert on_gpu(rows.values if isinstance(rows, TopKRows) else rows)
        labels = to_device(torch.from_numpy(cache.labels()[samples]).long(), CUDA)
        for name in METHODS:
            objective = make_objective(name, {})
            if isinstance(rows, TopKRows) and objective.loss is not None and objective.loss.every_class:
                continue
            student = torch.empty(48, tiny.CLASSES, device=CUDA, requires_grad=True)
            assert on_gpu(objective(student, rows, labels, 0.5, None).total), name  # backward needs a driver
        encoded = read_encoding(cache.manifest.encoding).encode(torch.empty(48, tiny.CLASSES, device=CUDA), labels)
        assert all(on_gpu(column) for column in encoded.values())
