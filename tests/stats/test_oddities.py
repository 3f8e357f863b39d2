"""What is odd in the data: wrong labels and copies that were planted are found, and little else."""

import numpy as np
import pytest
from made import SAMPLES, draw, make

import logitcache
from logitcache.data import ArrayImages, load_data
from logitcache.encoding import FullEncoding, TopKEncoding
from logitcache.stats import cache_stats, duplicates
from logitcache.stats.duplicates import find_duplicates
from logitcache.store import open_cache


def sure(views=2):
    """A teacher that gives its class 0.96 and is right everywhere, and is shown nothing alike."""
    random = np.random.RandomState(1)
    labels = random.randint(0, 12, SAMPLES).astype(np.int32)
    logits = random.randn(views, SAMPLES, 12).astype(np.float32) / 4
    logits[:, np.arange(SAMPLES), labels] = 5.7
    return logits, labels


def test_a_label_that_every_view_denies_is_odd_and_no_other(tmp_path):
    logits, labels = sure()
    says = labels.copy()
    labels[7], labels[300] = (labels[7] + 1) % 12, (labels[300] + 5) % 12
    labels[20] = (labels[20] + 1) % 12
    logits[1, 20] = np.roll(logits[1, 20], 3)  # the views disagree
    labels[21] = (labels[21] + 1) % 12
    logits[:, 21] /= 4  # the teacher is not sure
    logits[:, 300] *= 1.2  # surer than of sample 7
    found = cache_stats(make(tmp_path / "c.zarr", logits, labels, data={"first": 100, "length": 800}))
    assert [one.sample for one in found.odd] == [400, 107]
    assert found.odd_total == 2
    assert [(one.label, one.says) for one in found.odd] == [(labels[300], says[300]), (labels[7], says[7])]
    p = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    assert found.odd[1].confidence == pytest.approx(p[:, 7, says[7]].mean(), rel=1e-5)
    assert found.odd[1].label_probability == pytest.approx(p[:, 7, labels[7]].mean(), rel=1e-5)


def test_how_sure_is_sure_enough_depends_on_the_class(tmp_path):
    """Classes 0, 1, 2 are given 0.99, 0.7, 0.4 where they are the label: 0.8 is sure for class 1, not for 0; 0.45 is for none."""
    labels = np.repeat([0, 1, 2], 20).astype(np.int32)
    p = np.array([(0.99, 0.006, 0.004), (0.2, 0.7, 0.1), (0.35, 0.25, 0.4)], np.float32)[labels]
    p[5], labels[5] = (0.1, 0.8, 0.1), 2
    p[25], labels[25] = (0.8, 0.1, 0.1), 2
    p[45], labels[45] = (0.3, 0.25, 0.45), 0
    found = cache_stats(make(tmp_path / "c.zarr", np.log(p)[None], labels))
    assert [(one.sample, one.says) for one in found.odd] == [(5, 1)]


def test_mixed_views_say_nothing_odd(tmp_path):
    """A mixed row shows two classes: only the plain view counts."""
    logits, labels = sure()
    wrong = np.roll(logits, 1, 2)
    only_mixed = np.concatenate([logits[:1], wrong[1:]])
    path = make(tmp_path / "c.zarr", only_mixed, labels, recipes=("none", "none+mixup(alpha=0.2,p=1.0)"))
    found = cache_stats(path)
    assert (found.odd, found.confusions) == ([], [])
    assert found.views[1].accuracy == 0
    plain_is_wrong = make(tmp_path / "d.zarr", wrong, labels, recipes=("none", "pad-crop-flip+cutmix(alpha=1.0,p=1.0)"))
    found = cache_stats(plain_is_wrong)
    assert sum(one.rows for one in found.confusions) == SAMPLES
    assert found.confusions[0].share == 1.0
    all_mixed = cache_stats(make(tmp_path / "e.zarr", wrong, labels, recipes=("none+mixup(alpha=0.2,p=1.0)",) * 2))
    assert (all_mixed.odd, all_mixed.confusions, all_mixed.duplicates_among) == ([], [], 0)


def test_equal_pixels_are_found_wherever_they_are(tmp_path, monkeypatch):
    logits, labels = draw()
    digests = np.random.RandomState(0).randint(0, 2**62, logits.shape[:2]).astype(np.uint64)
    digests[0, [3, 590]] = 77
    digests[1, [4, 5]] = 78  # of another view: nothing is said
    path = make(tmp_path / "c.zarr", logits, labels, digests=digests)
    for held in (1 << 23, 100):
        monkeypatch.setattr(duplicates, "_DIGESTS", held)
        (found,) = [one for one in cache_stats(path).duplicates if one.same_pixels]
        assert (found.first, found.second, found.labels) == (3, 590, (labels[3], labels[590]))


@pytest.mark.parametrize("encoding", [None, TopKEncoding(10, "f16")], ids=str)
def test_logits_that_are_nearly_alike_are_found(tmp_path, encoding):
    logits, labels = draw(views=1)
    labels[500] = labels[10]
    logits[0, 500] = logits[0, 10] + 0.01 * np.random.RandomState(3).randn(12) + 3.0  # a constant says nothing
    found = cache_stats(make(tmp_path / "c.zarr", logits, labels, encoding))
    assert found.duplicates_among == SAMPLES
    best = found.duplicates[0]
    assert (best.first, best.second, best.same_pixels) == (10, 500, False)
    assert best.distance < 0.1
    assert len(found.duplicates) <= 3


def test_rows_of_a_few_logits_are_not_taken_for_images_alike(tmp_path):
    """Many rows have the same one or two largest; equal pixels are found all the same."""
    logits, labels = draw(views=1)
    digests = np.arange(SAMPLES, dtype=np.uint64)[None].copy()
    digests[0, 9] = digests[0, 3]
    found = cache_stats(make(tmp_path / "c.zarr", logits, labels, TopKEncoding(2, "u8"), digests=digests))
    assert found.duplicates_among == 0
    assert [(one.first, one.second, one.same_pixels) for one in found.duplicates] == [(3, 9, True)]


@pytest.mark.parametrize("dtype", ["f32", "f16", "u8"])
def test_rows_of_few_classes_are_not_alike_by_chance(tmp_path, dtype):
    """Two dimensions hold no 2,000 rows that are all far from each other, and many are equal once they are rounded to 8 bits."""
    logits, labels = draw(views=1, samples=2000, classes=3)
    logits[0, 7] = logits[0, 3]
    digests = np.arange(2000, dtype=np.uint64)[None].copy()
    digests[0, 7] = digests[0, 3]
    labels[7] = labels[3]
    found = cache_stats(make(tmp_path / "c.zarr", logits, labels, FullEncoding(dtype), digests=digests))
    assert found.duplicates_among == 2000
    assert [(one.first, one.second, one.same_pixels) for one in found.duplicates] == [(3, 7, True)]


def test_work_is_bounded_where_the_teacher_says_one_class_for_all(tmp_path, monkeypatch):
    logits, labels = draw(views=1)
    logits[0, :, 0] += 50
    cache = open_cache(make(tmp_path / "c.zarr", logits, labels))
    monkeypatch.setattr(duplicates, "_WORK", 150.0**2 * 32)
    _, among = find_duplicates(cache, "t", labels, lambda _: None, by_logits=True)
    assert among == 150


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """2,000 of the demo's images: 40 labels are wrong, 20 images stand there twice, 20 more a shade darker; its teacher's logits."""
    images = load_data("fashion-mnist-mini")
    random = np.random.RandomState(0)
    pixels, labels = images.images[:2000, 0].numpy().copy(), images.labels[:2000].copy()
    order = random.permutation(2000)
    wrong, first, second = order[:40], order[40:80], order[80:120]
    labels[wrong] = (labels[wrong] + random.randint(1, 10, 40)) % 10
    pixels[second], labels[second] = pixels[first], labels[first]
    pixels[second[20:]] = (pixels[second[20:]] * 0.97).astype(np.uint8)
    cache = logitcache.dump_logits(
        teacher="resnet20",
        teacher_weights="demo",
        data=ArrayImages(pixels, labels, list(images.classes)),
        augment="none",
        out=tmp_path_factory.mktemp("planted") / "c.zarr",
    )
    pairs = {tuple(sorted(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    return cache_stats(cache), set(wrong.tolist()), pairs


def test_planted_wrong_labels_are_found(planted):
    """The teacher errs too, and the data has wrong labels of its own: those planted come first."""
    found, wrong, _ = planted
    ours = [one.sample for one in found.odd]
    assert len(wrong & set(ours)) >= 30
    assert len(wrong & set(ours[:25])) >= 22
    assert found.odd_total < 70


def test_planted_copies_are_found(planted):
    found, _, pairs = planted
    ours = {(one.first, one.second): one for one in found.duplicates}
    assert sum(one.same_pixels for one in ours.values()) == 20
    assert len(pairs & ours.keys()) >= 30
    assert len(ours.keys() - pairs) <= 4
    assert all(one.distance == 0 for one in ours.values() if one.same_pixels)
