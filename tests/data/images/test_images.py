import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from logitcache.data import ArrayImages, FolderImages, MappedImages
from logitcache.errors import InputError, UnreadableError

PIXELS, LABELS, NAMES = tiny.arrays()


@pytest.fixture
def folder(tmp_path):
    """Eight images of different sizes in two class folders; names sort differently from how they were written."""
    random = np.random.RandomState(0)
    for name in ("zebra/b.png", "zebra/a.png", "ant/deep/c.jpg", "ant/x.PNG", "ant/note.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("not an image")
        else:
            size = (random.randint(20, 60), random.randint(20, 60), 3)
            Image.fromarray(random.randint(0, 256, size).astype(np.uint8)).save(path)
    return tmp_path


def test_arrays_become_channels_first():
    images = ArrayImages(PIXELS, LABELS, NAMES)
    assert images.image(3).shape == (3, 16, 16)
    assert (images.image(3).numpy() == PIXELS[3].transpose(2, 0, 1)).all()
    assert ArrayImages(PIXELS[..., 0], LABELS).image(3).shape == (1, 16, 16)


def test_without_names_there_are_as_many_classes_as_the_largest_label_says():
    assert ArrayImages(PIXELS[:2], np.array([0, 6])).classes == tuple("0123456")


def test_mean_and_deviation_are_those_of_the_pixels():
    mean, std = ArrayImages(PIXELS, LABELS).normalization
    assert np.allclose(mean, (PIXELS / 255).mean((0, 1, 2)), atol=1e-4)
    assert np.allclose(std, (PIXELS / 255).std((0, 1, 2)), atol=1e-4)
    mean, _ = ArrayImages(PIXELS[..., 0], LABELS).normalization
    assert mean[0] == mean[1] == mean[2]


@pytest.mark.parametrize("change", ["pixel", "label", "name", "order"])
def test_the_digest_sees_every_change(change):
    pixels, labels, names = PIXELS.copy(), LABELS.copy(), list(NAMES)
    if change == "pixel":
        pixels[200, 3, 4, 1] ^= 1
    elif change == "label":
        labels[7] = (labels[7] + 1) % tiny.CLASSES
    elif change == "name":
        names[2] = "other"
    else:
        pixels, labels = pixels[::-1], labels[::-1]
    assert ArrayImages(pixels, labels, names).digest() != ArrayImages(PIXELS, LABELS, NAMES).digest()
    assert ArrayImages(PIXELS.copy(), LABELS, NAMES).digest() == ArrayImages(PIXELS, LABELS, NAMES).digest()


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (np.r_[LABELS[:-1], 5], NAMES, r"labels must lie in 0 \.\.\. 4 \(5 classes\); sample 299 has 5\. Correct"),
        (np.r_[-1, -2, LABELS[2:]], None, r"sample 0 has -1, and 1 more are out of range"),
        (LABELS[:-1], NAMES, r"expected \[300\] integers, found int64 \[299\]"),
        (LABELS.astype(float), NAMES, r"expected \[300\] integers, found float64 \[300\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, classes, message):
    with pytest.raises(InputError, match=message):
        ArrayImages(PIXELS, labels, classes)


@pytest.mark.parametrize("pixels", [PIXELS.astype(np.float32), PIXELS[0, 0], PIXELS[..., :2]])
def test_images_that_do_not_fit_are_refused(pixels):
    with pytest.raises(InputError, match="images must be uint8 of shape"):
        ArrayImages(pixels, LABELS)


def test_folders_are_classes_and_paths_are_sorted(folder):
    images = FolderImages(folder)
    assert images.classes == ("ant", "zebra")
    assert list(images.paths) == ["ant/deep/c.jpg", "ant/x.PNG", "zebra/a.png", "zebra/b.png"]
    assert images.labels.tolist() == [0, 0, 1, 1]
    with Image.open(folder / "zebra/a.png") as expected:
        assert (images.image(2).numpy().transpose(1, 2, 0) == np.array(expected)).all()


def test_a_moved_folder_is_the_same_data(folder, tmp_path_factory):
    before = FolderImages(folder).digest()
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "images")
    assert FolderImages(moved).digest() == before
    (moved / "zebra/a.png").rename(moved / "ant/a.png")
    assert FolderImages(moved).digest() != before


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(InputError, match="has no images in class folders"):
        FolderImages(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        FolderImages(tmp_path / "nowhere")


def test_a_file_that_is_no_image_is_named(folder):
    (folder / "ant/x.PNG").write_text("nonsense")
    with pytest.raises(InputError, match=r"ant/x.PNG cannot be read"):
        FolderImages(folder).image(1)


class Mapped:
    """A data set as torchvision makes them."""

    classes = ("a", "b")

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_anybodys_data_set_is_read():
    grey = Image.fromarray(PIXELS[0, :, :, 0])
    images = MappedImages(Mapped([(grey, 0), (PIXELS[1], 1), (torch.from_numpy(PIXELS[2].transpose(2, 0, 1)), 1)]))
    assert images.labels.tolist() == [0, 1, 1]
    assert [tuple(images.image(i).shape) for i in range(3)] == [(1, 16, 16), (3, 16, 16), (3, 16, 16)]
    assert (images.image(1).numpy() == PIXELS[1].transpose(2, 0, 1)).all()


def test_class_names_may_be_bytes_and_must_differ():
    assert ArrayImages(PIXELS[:2], np.array([0, 1]), [b"cat", b"d\xe9"]).classes == ("cat", "d\\xe9")
    with pytest.raises(InputError, match="class name 'cat' is used twice"):
        ArrayImages(PIXELS[:2], np.array([0, 1]), ["cat", "cat"])


def test_a_data_set_with_transforms_is_refused():
    images = MappedImages(Mapped([(torch.zeros(3, 4, 4), 0)]))
    with pytest.raises(InputError, match=r"found torch.float32 \[3, 4, 4\]. Pass the data set without transforms"):
        images.image(0)


def test_sixteen_bits_are_refused_because_they_would_be_clipped(folder):
    path = next(folder.rglob("*.png"))
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path)
    images = FolderImages(folder)
    sample = images.paths.index(path.relative_to(folder).as_posix())
    with pytest.raises(
        UnreadableError, match=r"has more than 8 bits per channel \(mode I;16\), which would be clipped to white"
    ) as raised:
        images.image(sample)
    assert str(raised.value).startswith(f"{path} cannot be read: ")
