"""Digests of pixels: the numbers of the format, alike in numpy and torch, and different for different pixels."""

from hashlib import blake2b

import numpy as np
import pytest
import tiny
import torch

import logitcache
from logitcache.data.images.rendering import render
from logitcache.data.images.views import View, digests, make_views
from logitcache.data.images.views.digests import multilinear_digests
from logitcache.data.protocol import joined_digests
from logitcache.errors import CacheIncompleteError, FormatVersionError


def specified(pixels: np.ndarray) -> int:
    """Hash one rendition, [C, H, W] uint8, as docs/format.md says, in Python's integers."""
    data = np.ascontiguousarray(pixels).tobytes()
    words = np.frombuffer(data + bytes(-len(data) % 4), "<i4").tolist()
    total = sum(key(n) * word for n, word in enumerate([*pixels.shape, *words])) % 2**64
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        total = (total ^ total >> 33) * factor % 2**64
    return total ^ total >> 33


def key(number: int) -> int:
    word = (number + 1) * 0x9E3779B97F4A7C15 % 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return word ^ word >> 31 | 1


def hashed(pixels: np.ndarray) -> np.ndarray:
    return digests.digests(torch.from_numpy(pixels), "multilinear")


def test_the_digest_is_that_of_the_format():
    pixels = np.arange(24, dtype=np.uint8).reshape(1, 4, 6)
    assert hashed(pixels[None]).tolist() == [specified(pixels)] == [0x436E473E18C0D387]
    assert hashed(np.full((1, 3, 2, 3), 255, np.uint8)).tolist() == [0xC33850C6D113D77]


def test_the_old_digest_is_that_of_the_format():
    pixels = np.arange(24, dtype=np.uint8).reshape(1, 4, 6)
    header = b"\x01\0\0\0\x04\0\0\0\x06\0\0\0"
    expected = int.from_bytes(blake2b(header + pixels.tobytes(), digest_size=8).digest(), "little")
    assert digests.blake2b_digest(pixels) == expected
    assert digests.digests(torch.from_numpy(pixels[None]), "blake2b").tolist() == [expected]
    assert digests.blake2b_digest(pixels.reshape(1, 6, 4)) != expected


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 5), (3, 7, 6), (3, 32, 32)])
@pytest.mark.parametrize("at_once", [1, 2000, 1 << 16])
def test_a_batch_has_the_digests_of_its_rows(shape, at_once, monkeypatch):
    monkeypatch.setattr(digests, "_AT_ONCE_ON_CPU", at_once)
    pixels = np.random.RandomState(0).randint(0, 256, (9, *shape), np.uint8)
    expected = [specified(row) for row in pixels]
    assert hashed(pixels).tolist() == expected
    assert digests.digests([torch.from_numpy(row) for row in pixels], "multilinear").tolist() == expected
    flipped = torch.from_numpy(pixels).flip(-1)  # not contiguous
    assert digests.digests(flipped[::2], "multilinear").tolist() == [specified(row) for row in pixels[::2, ..., ::-1]]


def test_digests_of_a_gpu_are_the_same_bits():
    pixels = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (4, 3, 8, 8), np.uint8))
    there, here = multilinear_digests(pixels), digests.digests(pixels, "multilinear")
    assert there.dtype == torch.int64
    assert (joined_digests([there, here, np.empty(0, np.uint64)]) == np.concatenate([here, here])).all()


def test_shapes_enter_the_digest():
    zeros = [
        hashed(np.zeros((1, *shape), np.uint8))[0] for shape in [(1, 4, 6), (1, 6, 4), (3, 4, 2), (1, 4, 5), (1, 1, 1)]
    ]
    assert len(set(zeros)) == 5
    assert 0 not in zeros  # which stands for a sample that is left out


def single_pixels(image):
    """Every pixel changed by every amount that a bit makes."""
    changed = np.repeat(image[None], image.size * 8, 0).reshape(image.size, 8, -1)
    for bit in range(8):
        changed[np.arange(image.size), bit, np.arange(image.size)] ^= 1 << bit
    return changed.reshape(-1, *image.shape)


def swapped(image):
    """Every two neighbors of a row swapped that differ, and every two pixels four bytes apart."""
    found = []
    for step in (1, 4):
        for place in range(image.size - step):
            one = image.copy().reshape(-1)
            one[[place, place + step]] = one[[place + step, place]]
            found.append(one)
    rows = np.stack(found).reshape(-1, *image.shape)
    return rows[(rows != image).any((1, 2, 3))]


def shifted(image):
    """Rows and columns rolled, and channels in another order."""
    rolled = [np.roll(image, (a, b), (1, 2)) for a in range(8) for b in range(8) if a or b]
    return np.stack([*rolled, image[::-1], image[:, ::-1], image[:, :, ::-1]])


def highest_bits(image):
    """The highest bits of any two words changed, the worst case: 18,336 pairs."""
    places = np.arange(3, image.size, 4)
    pairs = [(a, b) for n, a in enumerate(places) for b in places[:n]]
    changed = np.repeat(image.reshape(1, -1), len(pairs), 0)
    for column in np.array(pairs).T:
        changed[np.arange(len(pairs)), column] ^= 128
    return changed.reshape(-1, *image.shape)


@pytest.mark.parametrize("changes", [single_pixels, swapped, shifted, highest_bits])
@pytest.mark.parametrize("content", ["noise", "flat"])
def test_changes_of_an_image_are_seen(changes, content):
    image = np.random.RandomState(1).randint(0, 256, (3, 16, 16), np.uint8)
    if content == "flat":
        image = image // 255 * 0 + np.arange(3, dtype=np.uint8)[:, None, None]
        image[:, 5, 7] = 200
    variants = changes(image)
    found = hashed(np.concatenate([image[None], variants]))
    assert len(variants) > 5
    assert len(np.unique(found)) == len({one.tobytes() for one in variants}) + 1


def test_bits_of_digests_are_evenly_used():
    """Flip one bit of an image: each bit of the digest flips in half of the cases, to within six deviations."""
    image = np.random.RandomState(2).randint(0, 256, (3, 16, 16), np.uint8)
    found = hashed(np.concatenate([image[None], single_pixels(image)]))
    flips = np.unpackbits((found[1:] ^ found[0]).view(np.uint8).reshape(-1, 8), axis=1).mean(0)
    assert np.abs(flips - 0.5).max() < 6 * 0.5 / np.sqrt(len(found) - 1)


def test_a_view_of_before_keeps_its_digest():
    (view,) = make_views("none", 1, 0)
    entry = view.to_json()
    assert entry.pop("digest") == view.digest == "multilinear"
    before = View.from_json(entry)
    assert (before.digest, before.to_json()) == ("blake2b", entry)
    with pytest.raises(
        FormatVersionError, match=r"the pixels of view 0 are hashed with 'sha1', but this logitcache has"
    ):
        View.from_json(entry | {"digest": "sha1"})


@pytest.mark.parametrize("later", [2, 3], ids=["continued", "extended"])
def test_a_cache_of_before_keeps_its_digests_and_bytes(dump, tmp_path, images, monkeypatch, later):
    with monkeypatch.context() as before:
        before.setattr("logitcache.data.images.views.recipes.MULTILINEAR", "blake2b")
        whole, stopped = dump(out=tmp_path / "whole.zarr", views=later), tmp_path / "c.zarr"
        assert all("digest" not in view for view in whole.manifest.views)
        if later == 2:
            asked = iter([False, True])
            with pytest.raises(CacheIncompleteError):
                dump(out=stopped, should_stop=lambda: next(asked, True))
        else:
            dump(out=stopped)
    now = dump(out=stopped, views=later)
    assert tiny.bytes_of(stopped) == tiny.bytes_of(whole.place.path)
    assert logitcache.verify_cache(stopped, data=images, check_rows=8).ok
    assert int(now.digests(1)[7]) == digests.blake2b_digest(
        render(images, View.from_json(now.manifest.views[1]), np.array([7]))[0].numpy()
    )


def test_caches_of_both_digests_are_compared_without_their_pixels(dump, tmp_path, monkeypatch):
    new = dump(out=tmp_path / "new.zarr")
    with monkeypatch.context() as before:
        before.setattr("logitcache.data.images.views.recipes.MULTILINEAR", "blake2b")
        old = dump(out=tmp_path / "old.zarr")
    found = logitcache.compare_caches(old.place.path, new.place.path)
    assert found.same["views"] == "2 in common"
    assert found.top1_agreement == 1.0
