"""Images in memory that are cropped and hashed where the teacher is: the same pixels, digests and bytes as on the host."""

import numpy as np
import pytest
import sequences
import tiny
import torch

from logitcache.data import Renderer, preprocessing_for
from logitcache.data.exclusion import excluded_of, leave_out
from logitcache.data.images import rendering
from logitcache.data.images.views import make_views
from logitcache.data.images.views.digests import digests
from logitcache.data.protocol import joined_digests
from logitcache.dump.job import renderer_of
from logitcache.dump.settings import DumpSettings
from logitcache.errors import InputError, UnknownNameError

CPU, META = torch.device("cpu"), torch.device("meta")
RECIPES = ["none", "pad-crop-flip", "pad-crop-flip+mixup+cutmix"]


def on_a_gpu(pixels, kind):
    """Return digests as from pixels on a GPU: a tensor of the same bits."""
    return torch.from_numpy(digests(pixels, kind).view(np.int64))


@pytest.mark.parametrize("recipe", RECIPES)
def test_batches_are_the_same_on_a_device(images, recipe):
    part = leave_out(images, [5])
    inputs, (view, _) = [preprocessing_for(part, recipe)], make_views(recipe, 2, 0)
    batches = [np.arange(6, 40), np.array([9, 7, 299])]
    host, there = (
        list(Renderer(part, inputs, with_digests=True, device=CPU, on_device=on).batches(view, batches))
        for on in (False, True)
    )
    for one, other in zip(host, there, strict=True):
        assert torch.equal(one.inputs[0], other.inputs[0])
        assert (joined_digests([one.digests]) == joined_digests([other.digests])).all()


def test_a_device_is_only_asked_to_hash_where_that_is_said(images, monkeypatch):
    asked = []
    monkeypatch.setattr(rendering, "resident", lambda found, device: asked.append(device) or found)
    inputs = [preprocessing_for(images, "none")]
    for on, expected in ((False, []), (True, [CPU])):
        asked.clear()
        Renderer(images, inputs, with_digests=True, device=CPU, on_device=on)
        assert asked == expected


@pytest.mark.parametrize("recipe", RECIPES[1:])
def test_a_dump_leaves_the_same_bytes(dump, tmp_path, monkeypatch, recipe):
    host = dump(out=tmp_path / "host.zarr", augment=recipe)
    monkeypatch.setattr(rendering, "digests", on_a_gpu)
    there = dump(out=tmp_path / "there.zarr", augment=recipe, render_device="teacher")
    assert tiny.bytes_of(there.place.path) == tiny.bytes_of(host.place.path)


def test_images_on_a_device_leave_out_what_is_left_out_now(images):
    before = images.on(META)
    after = leave_out(images, [3]).on(META)
    assert excluded_of(before).tolist() == []
    assert excluded_of(after).tolist() == [3]
    assert after.images is before.images
    assert images.images.device == CPU


def test_other_data_and_other_devices_are_refused():
    with pytest.raises(InputError, match=r"(`render_device`|--render-device) is not supported by modality"):
        renderer_of(sequences.MODALITY, None, (), DumpSettings(render_device="teacher"), CPU)
    with pytest.raises(UnknownNameError, match="unknown render device 'gpu'"):
        DumpSettings(render_device="gpu")
