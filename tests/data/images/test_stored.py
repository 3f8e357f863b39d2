"""Images as other tools store them: webdataset's shards, Hugging Face data sets, Parquet."""

import io
import json
import pickle
import re
import shutil
import tarfile

import numpy as np
import pytest
import tiny
from PIL import Image

import logitcache
from logitcache.data import MappedImages, as_samples, held_out_split, load_data
from logitcache.data.exclusion import Reading
from logitcache.data.open import named_modality
from logitcache.errors import InputError, UnreadableError

COUNT = 24
NAMES = ("ant", "bee", "cow")


def picture(number, kind="PNG", orientation=None):
    random = np.random.default_rng(number)
    image = Image.fromarray(random.integers(0, 256, (16, 12, 3), np.uint8))
    out, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(out, kind, exif=exif)
    return out.getvalue()


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def shards(folder, files_of=None, count=COUNT, each=10, names=True):
    """Write shards; `files_of(number)` returns the files of a sample, suffix to content."""
    files_of = files_of or (lambda n: {"png": picture(n), "cls": b"%d" % (n % 3), "json": b'{"id": 1}'})
    folder.mkdir(exist_ok=True)
    for first in range(0, count, each):
        with tarfile.open(folder / f"train-{first // each:03}.tar", "w") as archive:
            for number in range(first, min(first + each, count)):
                for suffix, content in files_of(number).items():
                    add(archive, f"some/{number:05}.{suffix}", content)
    if names:
        (folder / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    return folder


def rows(label=lambda n: n % 3):
    return {
        "image": [{"bytes": picture(n), "path": None} for n in range(COUNT)],
        "label": [label(n) for n in range(COUNT)],
    }


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """Write Parquet files, and return what opens them."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pa, pq, datasets = (
        pytest.importorskip("pyarrow"),
        pytest.importorskip("pyarrow.parquet"),
        pytest.importorskip("datasets"),
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(columns, name="rows.parquet", **options):
        pq.write_table(pa.table(columns), tmp_path / name, **options)
        return f"parquet:{tmp_path / name}"

    return write


@pytest.fixture
def saved(tmp_path):
    """Save a data set as `datasets` does."""
    datasets = pytest.importorskip("datasets")

    def save(columns=None, classes=NAMES, splits=None):
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(classes)))
        made = datasets.Dataset.from_dict(columns or rows(), features=features)
        if splits:
            made = datasets.DatasetDict(dict.fromkeys(splits, made))
        made.save_to_disk(tmp_path / "saved")
        return f"hf:{tmp_path / 'saved'}"

    return save


@pytest.fixture(params=["webdataset", "hf", "parquet"])
def stored(request, tmp_path):
    """The same images in each form."""
    if request.param == "webdataset":
        return f"webdataset:{shards(tmp_path / 'shards')}"
    if request.param == "hf":
        return request.getfixturevalue("saved")()
    return request.getfixturevalue("parquet")(rows(lambda n: NAMES[n % 3]))


def test_each_form_has_the_same_images_in_the_same_order(stored):
    found = load_data(stored)
    assert named_modality(stored).name == "images"
    assert found.labels.tolist() == [n % 3 for n in range(COUNT)]
    assert found.classes == NAMES
    for number in (0, 13, 23):
        expected = np.array(Image.open(io.BytesIO(picture(number)))).transpose(2, 0, 1)
        assert (found.image(number).numpy() == expected).all()


def test_each_form_travels_to_other_processes(stored):
    found = pickle.loads(pickle.dumps(load_data(stored)))
    assert (found.image(7).numpy() == load_data(stored).image(7).numpy()).all()


def test_a_dump_of_each_form_replays_and_trains(stored, tmp_path):
    out = tmp_path / "c.zarr"
    options = {"augment": "random-resized-crop-flip", "image_size": 16, "batch_size": 8, "block_rows": 8, "threads": 1}
    logitcache.dump_logits(teacher=tiny.net(3), data=stored, out=out, workers=2, **options)
    report = logitcache.verify_cache(out, data=stored, replay=COUNT, teacher=tiny.net(3))
    assert report.ok, report
    logitcache.train_student(
        out, student="tiny:student", data=stored, method="kd", epochs=1, workers=0, out=tmp_path / "run"
    )


def test_orientation_is_applied_where_asked_for_alone(tmp_path):
    files = {"jpg": picture(0, "JPEG", orientation=6), "cls": b"0"}
    spec = f"webdataset:{shards(tmp_path / 's', lambda n: files, count=1, names=False)}"
    assert list(load_data(spec).image(0).shape) == [3, 16, 12]
    assert list(load_data(spec, Reading(exif_orientation=True)).image(0).shape) == [3, 12, 16]


def test_shards_are_named_by_file_folder_and_pattern(tmp_path):
    folder = shards(tmp_path / "s")
    for spec, count in (
        (f"{folder}/train-001.tar", 10),
        (f"{folder}/train-{{000..001}}.tar", 20),
        (f"{folder}/*-00[02].tar", 14),
    ):
        assert len(load_data(f"webdataset:{spec}")) == count


def test_labels_may_be_in_json_and_names_have_dots(tmp_path):
    folder = shards(
        tmp_path / "s",
        lambda n: {"seg.png": picture(n), "json": json.dumps({"label": n % 2}).encode()},
        count=4,
        names=False,
    )
    found = load_data(f"webdataset:{folder}")
    assert found.labels.tolist() == [0, 1, 0, 1]
    assert found.classes == ("0", "1")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"png": b"", "txt": b"0"}, r"s/train-000.tar, sample some/00000 has no label: expected a .cls file with"),
        ({"png": b"", "cls": b"cat"}, r"the label of .*sample some/00000 is b'cat'; expected a class index"),
        ({"png": b"", "json": b'{"label": 0.5}'}, r"expected a class index"),
        ({"cls": b"0"}, r"has 0 images \(files: .cls\); expected one, such as .jpg"),
        ({"png": b"", "jpg": b"", "cls": b"0"}, r"has 2 images"),
        ({}, r"has no samples: its 1 shard are empty"),
    ],
)
def test_a_sample_that_is_not_whole_is_named(tmp_path, files, said):
    folder = shards(tmp_path / "s", lambda n: files, count=1, names=False)
    with pytest.raises(InputError, match=said):
        load_data(f"webdataset:{folder}")


def test_a_shard_that_is_cut_off_or_compressed_is_named(tmp_path):
    folder = shards(tmp_path / "s")
    whole = (folder / "train-001.tar").read_bytes()
    (folder / "train-001.tar").write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(InputError, match=r"train-001.tar cannot be read as an uncompressed tar file: "):
        load_data(f"webdataset:{folder}")
    with tarfile.open(folder / "train-001.tar", "w:gz") as archive:
        add(archive, "a.png", picture(0))
    with pytest.raises(InputError, match=r"train-001.tar cannot be read as an uncompressed tar file: .* Decompress it"):
        load_data(f"webdataset:{folder}")


def test_an_image_that_cannot_be_decoded_is_named_and_can_be_left_out(tmp_path):
    folder = shards(tmp_path / "s", lambda n: {"png": b"no image" if n == 12 else picture(n), "cls": b"%d" % (n % 3)})
    data = load_data(f"webdataset:{folder}")
    with pytest.raises(UnreadableError, match=r"train-001.tar, sample some/00012 cannot be read: "):
        data.image(12)
    cache = logitcache.dump_logits(
        teacher=tiny.net(3),
        data=f"webdataset:{folder}",
        out=tmp_path / "c.zarr",
        image_size=16,
        skip_unreadable=True,
        workers=0,
    )
    assert cache.manifest.excluded == (12,)


@pytest.mark.parametrize(
    ("splits", "companion"),
    [
        (("train", "test"), "test"),
        (("train", "validation"), "validation"),
        (("train", "validation", "test"), "test"),
        (("train", "extra"), None),
    ],
)
def test_the_companion_of_a_training_split_is_a_test_or_validation_split_that_is_there(saved, splits, companion):
    spec = saved(splits=splits)
    assert held_out_split(f"{spec}:train") == (companion and f"{spec}:{companion}")
    assert held_out_split(spec) == held_out_split(f"{spec}:train")
    assert held_out_split(f"{spec}:{splits[1]}") is None


def test_a_data_set_that_was_saved_again_is_read_again(saved):
    spec = saved(splits=("train",))
    assert load_data(spec).classes == NAMES
    shutil.rmtree(spec.removeprefix("hf:"))
    assert load_data(saved(classes=("x", "y", "z"))).classes == ("x", "y", "z")


def test_splits_of_a_data_set_are_named(saved):
    spec = saved(splits=("train", "test"))
    assert len(load_data(spec)) == len(load_data(f"{spec}:test")) == COUNT
    with pytest.raises(InputError, match=r"has the splits train, test: name one, such as hf:.*:train"):
        load_data(f"{spec}:dev")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"image": rows()["image"], "kind": [0.5] * COUNT},
            r"has no column of labels; it has image, kind. Rename it to label",
        ),
        (
            {"image": rows()["image"], "label": [0.5] * COUNT},
            r"labels of parquet:.* \(column label\) must be all class indices",
        ),
        ({"a": rows()["image"], "b": rows()["image"]}, r"the columns a, b could each be the images; rename"),
    ],
)
def test_a_table_without_images_and_labels_is_refused(parquet, columns, said):
    with pytest.raises(InputError, match=said):
        load_data(parquet(columns))


def test_what_is_not_there_is_said(tmp_path):
    for spec, said in (
        (f"webdataset:{tmp_path / 'nothing'}", "no file or folder matches"),
        ("webdataset:", "names no file: expected webdataset:PATH"),
        (f"hf:{tmp_path / 'nothing'}", "cannot be read as a data set: "),
    ):
        with pytest.raises(InputError, match=said):
            load_data(spec)


def test_users_own_data_sets_keep_their_names():
    class Mine:
        def __len__(self):
            return 1

        def __getitem__(self, number):
            return Image.new("RGB", (4, 4)), 0

    assert isinstance(as_samples(Mine()), MappedImages)
    assert as_samples(Mine()).label_of(0) == "sample 0 of Mine"


def test_a_training_says_on_which_split_it_evaluates(saved, tmp_path, caplog):
    words = {"method": "ce", "student": "tiny:net", "image_size": 16, "epochs": 1, "workers": 0}
    for number, (splits, said) in enumerate(
        [
            (("train", "validation"), "test data: hf:.*:validation$"),
            (("train",), "test data: none, because .* pass --test-data"),
        ]
    ):
        caplog.clear()
        with caplog.at_level("INFO", "logitcache"):
            logitcache.train_student(data=saved(splits=splits), out=tmp_path / f"{number}", **words)
        assert re.search(said, caplog.text, re.MULTILINE)


def test_a_split_without_labels_is_refused_with_the_one_that_has_them(tmp_path, saved):
    datasets = pytest.importorskip("datasets")
    labelled = datasets.load_from_disk(saved(splits=("train", "validation")).removeprefix("hf:"))
    blank = labelled["train"].map(lambda row: {"label": -1})
    datasets.DatasetDict({**labelled, "test": blank}).save_to_disk(tmp_path / "d")
    with pytest.raises(
        InputError,
        match=r"d:test cannot be used, because the split has no labels .*, such as `test_data` hf:.*d:validation",
    ):
        load_data(f"hf:{tmp_path / 'd'}:test")
