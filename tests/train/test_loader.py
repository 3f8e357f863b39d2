"""Loops that are not ours: rows by sample, whole batches, a wrapped data set."""

import copy
import multiprocessing
import pickle
import threading

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate

import logitcache
from logitcache.data import load_data, render
from logitcache.encoding import TopKRows
from logitcache.errors import CacheMismatchError, InputError, LogitCacheError
from logitcache.train.loader import Loader


class Photos:
    """A data set in torchvision's manner: PIL images, labels in `targets`, no list of classes."""

    def __init__(self):
        self.images, self.targets, _ = tiny.arrays()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return Image.fromarray(self.images[index]), int(self.targets[index])


def test_rows_are_those_of_the_epochs_view(dump):
    cache = dump()
    rows = logitcache.open(cache.place.path)
    assert len(rows) == 300
    for epoch in (0, 1, 2):
        rows.set_epoch(epoch)
        stored = torch.from_numpy(cache.view(epoch % 2, "sequential")["logits"])
        assert torch.equal(rows[17], stored[17])
        assert torch.equal(rows.logits([3, 299, 3]), stored[[3, 299, 3]])
    for wrong in (-1, 300):
        with pytest.raises(IndexError, match="sample ids must be 0 to 299"):
            rows[wrong]


def test_rows_of_the_largest_pass_for_logits_nowhere(dump):
    """Losses take them as they are; whatever else would take them for logits is told what to do."""
    cache = dump(encoding="topk", top_k=2, precision="f32", views=1)
    rows = logitcache.open(cache)
    batch = next(iter(rows.loader(tiny.arrays(), batch_size=8, shuffle=False)))
    for kept in (batch.logits, batch.rows, rows.logits(range(8)), rows.rows(range(8))):
        assert isinstance(kept, TopKRows)
        assert torch.equal(kept.at(4), rows.logits(range(8), temperature=4))
        assert len(kept) == 8
        assert torch.equal(kept[2:4].at(1.0), kept.at(1.0)[2:4])
    assert torch.equal(rows[5].at(2.0), rows.logits([5], temperature=2)[0])
    student = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 4.0):
        loss = logitcache.get_loss("kd", temperature=temperature)
        completed = loss(student, batch.logits.at(temperature), batch.labels)
        assert torch.equal(loss(student, batch.logits, batch.labels), completed)
    with pytest.raises(InputError, match="cannot be computed from top-k rows"):
        logitcache.get_loss("lskd")(student, batch.logits, batch.labels)
    remedy = r"hold the 2 largest of 5 logits.*at\(temperature\)"
    for attempt in (
        lambda: F.softmax(batch.logits, 1),
        lambda: student - batch.logits,
        lambda: F.kl_div(student, target=batch.logits),
    ):
        with pytest.raises(InputError, match=remedy):
            attempt()
    with pytest.raises(AttributeError, match=remedy):
        batch.logits.softmax(1)
    assert not hasattr(batch.logits, "shape")


@pytest.mark.parametrize(
    ("method", "persistent"),
    [
        ("fork", False),
        ("fork", True),
        ("forkserver", True),
        *(pytest.param("spawn", persistent, marks=pytest.mark.slow) for persistent in (False, True)),
    ],
)
def test_a_wrapped_data_set_goes_through_any_loader(dump, images, method, persistent):
    """Pixels are those that the teacher saw, in every epoch, also where workers outlive one."""
    cache = dump()
    both = logitcache.wrap(Photos(), cache, transform=lambda pixels: pixels.float() / 255) if method == "fork" else None
    both = both or logitcache.wrap(Photos(), cache)
    context = multiprocessing.get_context(method)
    loader = DataLoader(both, 50, num_workers=2, multiprocessing_context=context, persistent_workers=persistent)
    teacher = tiny.net(tiny.CLASSES).eval()
    mean, std = (torch.tensor(x)[:, None, None] for x in images.normalization)
    for epoch in range(3):
        both.set_epoch(epoch)
        seen = 0
        for pixels, labels, logits in loader:
            shown = pixels if method == "fork" else pixels.float() / 255
            with torch.inference_mode():
                assert torch.allclose(teacher((shown - mean) / std), logits, atol=1e-5)
            assert labels.tolist() == images.labels[seen : seen + len(labels)].tolist()
            seen += len(labels)
        assert seen == 300


def test_the_wrong_data_set_is_refused(dump, images):
    cache = dump()
    other = Photos()
    other.images = other.images[::-1].copy()
    with pytest.raises(CacheMismatchError, match="was shown different pixels"):
        logitcache.wrap(other, cache)
    other = Photos()
    other.targets = (other.targets + 1) % 5
    with pytest.raises(CacheMismatchError, match="different labels"):
        logitcache.wrap(other, cache)

    class Augmented(Photos):
        def __getitem__(self, index):
            return torch.zeros(3, 16, 16), int(self.targets[index])

    with pytest.raises(InputError, match="without transforms"):
        logitcache.wrap(Augmented(), cache)


def test_a_loop_of_ones_own_gives_the_weights_of_train(dump, images, tmp_path):
    """Same order, same pixels, same logits: kd by hand is `train`, bit for bit."""
    cache = dump()
    torch.manual_seed(0)
    ours = tiny.still(tiny.CLASSES)
    start = {name: value.clone() for name, value in ours.state_dict().items()}
    arguments = {"method": "kd", "epochs": 3, "batch_size": 48, "sched": "cosine", "data": images, "seed": 5}
    expected = logitcache.train_student(student=ours, cache=cache, out=tmp_path / "run", **arguments).student

    mine = tiny.still(tiny.CLASSES)
    mine.load_state_dict(start)
    loss = logitcache.get_loss("kd")
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    loader = Loader(cache, images, batch_size=48, seed=5)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + np.cos(np.pi * step / (3 * len(loader))))
    )
    for epoch in range(3):
        for batch in loader.epoch(epoch):
            student = mine(batch.images)
            total = (
                0.1 * F.cross_entropy(student, batch.labels) + 0.9 * loss(student, batch.logits, batch.labels).mean()
            )
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            schedule.step()
    loader.close()
    for one, other in zip(mine.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_a_loader_reads_the_next_view_ahead_and_none_twice(dump, images, monkeypatch):
    read, waited, view = [], [], logitcache.Cache.view

    def counted(self, index, *more):
        read.append(index)
        waited.append(threading.current_thread() is threading.main_thread())
        return view(self, index, *more)

    loader = Loader(dump(views=3), images, batch_size=100)
    monkeypatch.setattr(logitcache.Cache, "view", counted)
    for epoch in range(4):
        assert len(list(loader.epoch(epoch))) == 3
    loader.close()
    assert read[:4] == [0, 1, 2, 0]
    assert not any(waited[1:])
    assert len(read) <= 5


def test_a_loader_in_order_shows_every_sample_once(dump, images):
    batches = list(Loader(dump(), images, batch_size=64, shuffle=False).epoch(1))
    assert torch.cat([batch.samples for batch in batches]).tolist() == list(range(300))
    assert batches[0].images.shape == (64, 3, 16, 16)
    assert batches[-1].logits.shape == (44, 5)


def passes(loader, epochs):
    """Sum of pixels, labels and logits of every batch: what a pass showed."""
    return {epoch: [shown(batch) for batch in loader.epoch(epoch)] for epoch in epochs}


def shown(batch):
    return batch.samples.tolist(), float(batch.images.double().sum()), float(batch.logits.double().sum())


@pytest.mark.parametrize("workers", tiny.usual([0, 2], [2]))
def test_several_passes_at_once_are_each_what_they_are_alone(dump, workers):
    """Also where one is left in the middle, another begins in a thread, and the data come from worker processes."""
    cache = dump(data=Photos(), views=3, image_size=16)
    expected = passes(Loader(cache, Photos(), batch_size=64, workers=workers), range(3))
    loader = Loader(cache, Photos(), batch_size=64, workers=workers)
    for number, batch in enumerate(loader.epoch(2)):
        assert shown(batch) == expected[2][number]
        if number == 1:
            break
    both = [loader.epoch(0), loader.epoch(1)]
    assert [[shown(next(one)) for one in both] for _ in range(5)] == [
        list(pair) for pair in zip(*[expected[0], expected[1]], strict=True)
    ]
    found = {}
    threads = [threading.Thread(target=lambda e=epoch: found.update(passes(loader, [e]))) for epoch in (2, 0)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == {epoch: expected[epoch] for epoch in (2, 0)}
    unfinished = loader.epoch(1)
    next(unfinished)
    loader.close()
    for one in (unfinished, loader.epoch(2), iter(loader)):
        with pytest.raises(InputError, match="is closed"):
            next(one)


def test_each_pass_over_a_loader_is_the_next_epoch(dump, images):
    cache = dump(views=3)
    with Loader(cache, images, batch_size=64, mean=np.array([0.5, 0.5, 0.5])) as loader:
        expected = passes(loader, range(5))
        assert len(loader) == len(expected[0]) == 5
        assert [[shown(batch) for batch in loader] for _ in range(2)] == [expected[0], expected[1]]
        loader.set_epoch(4)
        assert [shown(batch) for batch in loader] == expected[4]
        assert [len(batch.samples) for batch in loader] == [64, 64, 64, 64, 44]
        whole = Loader(cache, images, batch_size=64, drop_last=True)
        assert [len(batch.samples) for batch in whole] == [64] * len(whole) == [64] * 4
    with pytest.raises(InputError, match="is closed"):
        next(iter(loader))


@pytest.mark.parametrize("world", [2, 7])
def test_processes_that_train_together_divide_an_epoch(dump, images, world, monkeypatch):
    """Step by step they show what one process does with batches that are so many times as large."""
    cache, size = dump(), 16
    alone = [batch.samples.tolist() for batch in Loader(cache, images, batch_size=size * world).epoch(1)]
    every = []
    for rank in range(world):
        for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": rank, "WORLD_SIZE": world}.items():
            monkeypatch.setenv(name, str(value))
        loader = Loader(cache, images, batch_size=size, device="cpu")
        every.append([batch.samples.tolist() for batch in loader.epoch(1)])
        assert len(loader) == len(every[-1]) == len(alone)
        given = Loader(cache, images, batch_size=size, device="cpu", rank=rank, world_size=world)
        assert [batch.samples.tolist() for batch in given.epoch(1)] == every[-1]
    steps = [[one for share in step for one in share] for step in zip(*every, strict=True)]
    assert steps[:-1] == alone[:-1]
    more = -300 % world
    assert steps[-1] == alone[-1] + alone[0][:more]  # the first are shown again
    with pytest.raises(InputError, match="must be given together"):
        Loader(cache, images, rank=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mean": "0.1"}, "`mean` must be a sequence of numbers, not '0.1'"),
        ({"batch_size": "3"}, "must be a whole number of 1 or more, not '3'"),
        ({"image_size": 0}, "must be 1 or more, not 0"),
        ({"crop_pct": 0}, "`crop_pct` must be greater than 0 and at most 1, not 0"),
        ({"workers": -1}, "must be 0 or more, not -1"),
        ({"rank": 2, "world_size": 2}, "`rank` must be below the world size, 2, not 2"),
        ({"bach_size": 3}, "unknown setting 'bach_size'; did you mean 'batch_size'"),
    ],
)
def test_a_setting_of_a_loader_that_means_nothing_is_a_sentence(dump, images, wrong, message):
    with pytest.raises(LogitCacheError, match=message):
        Loader(dump(), images, **wrong)


@pytest.mark.parametrize("epoch", [-1, 1.5, "1", None, 2**63])
def test_an_epoch_that_is_none_is_a_sentence_wherever_it_is_given(dump, images, epoch):
    cache = dump(views=1)
    rows = logitcache.open(cache)
    with Loader(cache, images, workers=0) as loader:
        for take in (rows.at, rows.set_epoch, loader.set_epoch, lambda epoch: next(loader.epoch(epoch))):
            with pytest.raises(InputError, match=f"epoch must be a non-negative integer, not {epoch!r}"):
                take(epoch)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": "32"}, "`image_size` must be a whole number of 1 or more, not '32'"),
        ({"image_size": 0}, "`image_size` must be 1 or more, not 0"),
        ({"image_size": (32, 32)}, "`image_size` must be a whole number"),
        ({"transform": 3}, "`transform` must be a function of pixels, not 3"),
        ({"teacher": 3}, "unknown teacher of .* 3. Known: "),
    ],
)
def test_an_argument_of_wrap_that_means_nothing_is_a_sentence(dump, wrong, message):
    with pytest.raises(LogitCacheError, match=message):
        logitcache.wrap(Photos(), dump(views=1), **wrong)


@pytest.mark.parametrize("temperature", [0, -1, "4", float("nan"), float("inf"), None])
@pytest.mark.parametrize("encoding", ["full", "topk"])
def test_a_temperature_that_is_none_is_a_sentence(dump, encoding, temperature):
    rows = logitcache.open(dump(views=1, encoding=encoding, top_k=2 if encoding == "topk" else None))
    takes = [lambda: rows.logits([0], temperature)] if temperature is not None else []
    if encoding == "topk":
        takes.append(lambda: rows.logits([0]).at(temperature))
    for take in takes:
        with pytest.raises(InputError, match="`temperature` must be a number above 0, not"):
            take()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_of_a_wrapped_data_set_tells_its_workers_the_epoch_too(dump, copied):
    both = copied(logitcache.wrap(Photos(), dump(views=3)))
    loader = DataLoader(both, 50, num_workers=1, multiprocessing_context="fork", persistent_workers=True)
    for epoch in (0, 2, 1):
        both.set_epoch(epoch)
        assert torch.equal(torch.cat([logits for *_, logits in loader]), both.teacher.at(epoch).logits(range(300)))


def agree(pixels, logits, images):
    """Whether logits are the teacher's of these pixels."""
    mean, std = (torch.tensor(x)[:, None, None] for x in images.normalization)
    with torch.inference_mode():
        return torch.allclose(tiny.net(tiny.CLASSES).eval()((pixels.float() / 255 - mean) / std), logits, atol=1e-5)


def test_a_batch_is_one_moment(dump, images, monkeypatch):
    """Pixels and logits come from one view though the epoch changes between the two."""
    both = logitcache.wrap(Photos(), dump(views=3))
    both.set_epoch(1)

    def render_and_change(*arguments):
        pixels = render(*arguments)
        both.set_epoch(2)
        return pixels

    monkeypatch.setattr("logitcache.train.datasets.render", render_and_change)
    pixels, _, logits = default_collate(both.__getitems__(list(range(20))))
    assert agree(pixels, logits, images)
    assert both.teacher.epoch == 2
    now = both.teacher.at(1)
    assert torch.equal(now.logits(range(20)), logits)
    assert now.view == both.teacher.views[1]


@pytest.mark.parametrize("persistent", [False, True])
def test_batches_hold_together_while_the_epoch_changes(dump, images, persistent):
    """Also batches that workers have begun, and those of a pass that is left for another."""
    both = logitcache.wrap(Photos(), dump(views=3))
    loader = DataLoader(both, 20, num_workers=2, persistent_workers=persistent, prefetch_factor=2)
    for number, (pixels, labels, logits) in enumerate(loader):
        both.set_epoch(number)
        assert agree(pixels, logits, images)
        assert labels.tolist() == images.labels[number * 20 : number * 20 + 20].tolist()
        if number == 7:
            break
    both.set_epoch(1)
    later = list(loader)
    assert len(later) == 15
    assert all(agree(pixels, logits, images) for pixels, _, logits in later)
    assert torch.equal(torch.cat([logits for *_, logits in later]), both.teacher.at(1).logits(range(300)))


@pytest.mark.parametrize("workers", tiny.usual([0, 2], [2]))
def test_views_follow_one_another_where_nobody_sets_the_epoch(dump, images, workers):
    both = logitcache.wrap(Photos(), dump(views=3))
    loader = DataLoader(both, 50, shuffle=True, num_workers=workers)
    for epoch in range(4):
        logits = torch.cat([logits for *_, logits in loader])
        expected = both.teacher.at(epoch).logits(range(300))
        assert torch.equal(logits.sum(1).sort().values, expected.sum(1).sort().values)
    both.set_epoch(0)
    for _ in range(2):
        assert torch.equal(torch.stack([both[i][2] for i in (3, 4)]), both.teacher.at(0).logits([3, 4]))
    for wrong in (-1, 1.5, "1", None):
        with pytest.raises(InputError, match="epoch must be a non-negative integer"):
            both.set_epoch(wrong)


def test_a_view_that_nobody_announced_is_checked_too(dump):
    """The first batch of it is compared with what the teacher saw."""
    photos = Photos()
    both = logitcache.wrap(photos, dump(views=2))
    both.__getitems__([0, 1])
    photos.images = photos.images[::-1].copy()
    with pytest.raises(CacheMismatchError, match="was shown different pixels"):
        both.__getitems__([0, 1])


def test_rows_of_the_largest_go_through_torchs_own_loader(dump):
    both = logitcache.wrap(Photos(), dump(encoding="topk", top_k=2, views=1))
    (_, labels, rows), *_ = DataLoader(both, 20, num_workers=1)
    assert isinstance(rows, TopKRows)
    expected = both.teacher.logits(range(20))
    assert torch.equal(rows.to("cpu").at(2.0), expected.at(2.0))
    student = torch.zeros(20, 5)
    assert logitcache.get_loss("kd")(student, rows, labels).shape == (20,)


def test_a_data_set_is_wrapped_by_name(tmp_path):
    cache = logitcache.dump_logits(
        tiny.net(10).eval(), "fashion-mnist-mini:test", tmp_path / "c.zarr", samples=(0, 40), teacher_classes=10
    )
    named = logitcache.wrap("fashion-mnist-mini:test", cache)
    found = logitcache.wrap(None, cache)
    assert len(named) == len(found) == 40
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[2], b[2]) for a, b in ((named[i], found[i]) for i in (0, 39)))
    assert logitcache.open(cache).labels.tolist() == [named[i][1] for i in range(40)]


def test_ids_that_are_no_integers_are_refused(dump):
    rows = logitcache.open(dump())
    for wrong in ([True, False], [1.5], torch.ones(300, dtype=torch.bool)):
        with pytest.raises(TypeError, match="sample ids must be integers"):
            rows.logits(wrong)


def test_a_data_set_with_other_names_or_without_labels(dump, images):
    cache = dump()
    other = Photos()
    other.classes = {name: number for number, name in enumerate("abcde")}
    assert logitcache.wrap(other, cache)[0][1] == images.labels[0]
    other.classes = None
    assert len(logitcache.wrap(other, cache)) == 300
    with pytest.raises(InputError, match="sample 0 of TensorDataset cannot be read"):
        logitcache.wrap(torch.utils.data.TensorDataset(images.images), cache)


def test_mixed_rows_are_left_to_train(dump, images):
    cache = dump(augment="mixup")
    for attempt in (lambda: logitcache.wrap(images, cache), lambda: Loader(cache, images)):
        with pytest.raises(InputError, match="two labels"):
            attempt()


def test_an_image_folder_of_torchvisions_is_wrapped_too(dump, tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    pixels, labels, names = tiny.arrays()
    for number in range(60):
        folder = tmp_path / "images" / names[labels[number]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(folder / f"{number:03}.png")
    cache = dump(data=f"imagefolder:{tmp_path / 'images'}", image_size=16, augment="imagenet")
    both = logitcache.wrap(datasets.ImageFolder(str(tmp_path / "images")), cache)
    for pixels, _, logits in DataLoader(both, 20):  # random crops have many sizes; items have one
        assert pixels.shape == (20, 3, 16, 16)
        assert agree(pixels, logits, load_data(f"imagefolder:{tmp_path / 'images'}"))
    assert next(iter(DataLoader(logitcache.wrap(None, cache, image_size=24), 20)))[0].shape == (20, 3, 24, 24)
    assert [both[i][1] for i in range(60)] == load_data(f"imagefolder:{tmp_path / 'images'}").labels.tolist()
