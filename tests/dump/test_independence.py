"""Batch size, workers, order, a stop and what was there before change no pixel, and no logit beyond the arithmetic of a batch's shape.

How workers start, and several processes, are in test_processes.py.
"""

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import logitcache
from logitcache.data import ArrayImages, Renderer, preprocessing_for
from logitcache.data.images.views import make_views
from logitcache.errors import CacheIncompleteError

RECIPE = "cifar-strong+erasing+mixup(alpha=1)+cutmix"
IMAGES = ArrayImages(*(one[:60] for one in tiny.arrays()[:2]), tiny.arrays()[2])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return dumped(tmp_path_factory.mktemp("reference") / "c.zarr")


def dumped(path, **changes):
    arguments = {
        "teacher": tiny.net(tiny.CLASSES), "data": IMAGES, "out": path, "augment": RECIPE, "views": 2,
        "precision": "f32", "batch_size": 12, "block_rows": 24, "threads": 1, "workers": 0,
    }  # fmt: skip
    return logitcache.dump_logits(**(arguments | changes))


@settings(max_examples=settings.default.max_examples // 3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.sampled_from([5, 12, 20]),
    workers=st.sampled_from([0, 0, 1, 2]),
    stops=st.lists(st.integers(1, 4), max_size=2),
    views_first=st.integers(1, 2),
)
def test_a_dump_does_not_depend_on_how_it_came_about(
    reference, tmp_path_factory, batch_size, workers, stops, views_first
):
    path = tmp_path_factory.mktemp("other") / "c.zarr"
    changes = {"batch_size": batch_size, "workers": workers}
    for stop in stops:
        asked = iter([False] * (stop - 1) + [True] * 100)
        try:
            dumped(path, views=views_first, should_stop=lambda asked=asked: next(asked), **changes)
        except CacheIncompleteError:
            continue
    dumped(path, views=views_first, **changes)
    cache = dumped(path, **changes)
    for view in (0, 1):
        assert np.array_equal(cache.digests(view), reference.digests(view))
        ours, theirs = (one.view(view, "sequential")["logits"] for one in (cache, reference))
        assert np.allclose(ours, theirs, atol=1e-5)
    if batch_size == 12:
        assert tiny.bytes_of(path) == tiny.bytes_of(reference.place.path)


@given(order=st.permutations(list(range(24))), batch=st.integers(1, 24), key=st.integers(0, 3))
def test_pixels_do_not_depend_on_order_and_batch(order, batch, key):
    view = make_views(RECIPE, 4, 11)[key]
    renderer = Renderer(IMAGES, [preprocessing_for(IMAGES, view.recipe)], with_digests=True, workers=0)
    (expected,) = renderer.batches(view, [np.arange(24)])
    shuffled = [np.array(order[start : start + batch]) for start in range(0, 24, batch)]
    found = np.concatenate([rendered.digests for rendered in renderer.batches(view, shuffled)])
    assert np.array_equal(found, expected.digests[np.array(order)])
