"""Loops that are not ours: rows by sample, whole batches, a wrapped data set."""

import multiprocessing
import threading

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader

import logitcache
from logitcache.data import load_data
from logitcache.encoding import TopKRows
from logitcache.errors import CacheMismatchError, InputError
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
        with pytest.raises(IndexError, match="samples are 0 to 299"):
            rows[wrong]


def test_top_k_rows_are_completed_for_a_temperature(dump):
    rows = logitcache.open(dump(encoding="topk", top_k=2, precision="f32"))
    kept = rows.rows([5, 6])
    assert isinstance(kept, TopKRows)
    assert torch.equal(rows.logits([5, 6], temperature=4), kept.at(4))
    assert torch.equal(rows[5], kept.at(1)[0])


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
    with pytest.raises(CacheMismatchError, match="was shown other pixels"):
        logitcache.wrap(other, cache)
    other = Photos()
    other.targets = (other.targets + 1) % 5
    with pytest.raises(CacheMismatchError, match="other labels"):
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


def test_a_loader_goes_through_one_epoch_at_a_time(dump, images):
    loader = Loader(dump(), images, batch_size=50, mean=np.array([0.5, 0.5, 0.5]))
    first = loader.epoch(0)
    next(first)
    assert len(list(loader.epoch(1))) == 6
    with pytest.raises(InputError, match="one at a time"):
        next(first)
    loader.close()
    with pytest.raises(InputError, match="is closed"):
        next(loader.epoch(2))


def test_ids_that_are_no_integers_are_refused(dump):
    rows = logitcache.open(dump())
    for wrong in ([True, False], [1.5], torch.ones(300, dtype=torch.bool)):
        with pytest.raises(TypeError, match="sample ids are integers"):
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
    assert [both[i][1] for i in range(60)] == load_data(f"imagefolder:{tmp_path / 'images'}").labels.tolist()
