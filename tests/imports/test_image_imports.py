"""TinyViT's and FKD's files: small writers, after the published formats, and what must come out of them."""

import shutil

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torchvision.transforms import functional as tv

import logitcache
from logitcache.data import render
from logitcache.data.contract import cache_views
from logitcache.encoding import read_encoding
from logitcache.errors import CacheMismatchError, InputError
from logitcache.imports.import_rows import import_rows

CLASSES, K, EPOCHS, CROPS, COUNT = tiny.CLASSES, 4, 2, 2, 12
FKD = {"rows_temperature": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return images(tmp_path_factory.mktemp("images"))


def images(root):
    """Images of several sizes in class folders."""
    pixels, *_ = tiny.arrays()
    for number in range(COUNT):
        place = root / f"n{number % CLASSES}"
        place.mkdir(exist_ok=True, parents=True)
        image = Image.fromarray(pixels[number]).resize((16 + number % 5, 16 + number % 3))
        image.save(place / f"{place.name}_{number}.png")
    return root


def spec(folder):
    return f"imagefolder:{folder}"


def paths(folder):
    """The images in torchvision's order, which is that of sorted classes and then of sorted names."""
    return [file for place in sorted(folder.iterdir()) for file in sorted(place.iterdir())]


def probabilities(number, view, classes=CLASSES):
    """Some distribution of an image in a view; mostly right."""
    random = np.random.default_rng((number, view))
    logits = 2 * random.standard_normal(classes)
    return np.exp(logits) / np.exp(logits).sum()


def largest(row, k=K):
    order = np.argsort(-row)[:k]
    return order, row[order]


def tinyvit(root, folder, epochs=EPOCHS, ranks=2, keys="name", k=K):
    """What two processes of save_logits.py leave: the sampler gives the last rank some images again, with other seeds."""
    files = paths(folder)
    for epoch in range(epochs):
        place = root / f"logits_top{k}_epoch{epoch}"
        place.mkdir(parents=True)
        for rank in range(ranks):
            mine = [*range(rank, len(files), ranks), *([0, 1] if rank == ranks - 1 else [])]
            names = {"name": lambda n: files[n].stem, "number": str}[keys]
            (place / f"rank{rank}-keys.txt").write_text("".join(f"{names(n)}\n" for n in mine))
            with (place / f"rank{rank}-values.bin").open("wb") as values:
                for n in mine:
                    ids, values_of = largest(probabilities(n, epoch), k)
                    again = rank == ranks - 1 and n == 0  # which rank 0 has, too
                    seed = np.int32(1000 * epoch + n + 7_000_000 * again)
                    values.write(seed.tobytes() + ids.astype("<i2").tobytes() + values_of.astype("<f2").tobytes())
    return root


def fkd(root, folder, form="topk", crops=CROPS, half=False, tensors=False):
    """What generate_soft_label.py leaves: boxes as shares, flips and the softmax, one file an image."""
    for number, file in enumerate(paths(folder)):
        with Image.open(file) as image:
            width, height = image.size
        random = np.random.default_rng(number)
        boxes, flips, labels = [], [], []
        for crop in range(crops):
            h, w = random.integers(4, height + 1), random.integers(4, width + 1)
            i, j = random.integers(0, height - h + 1), random.integers(0, width - w + 1)
            boxes.append((i / height, j / width, h / height, w / width))
            flips.append(bool(random.integers(2)))
            row = probabilities(number, crop)
            ids, values = largest(row)
            labels.append(
                {
                    "topk": np.stack([ids, values]),
                    "renormalized": np.stack([ids, values / values.sum()]),
                    "largest": np.array([ids[0], values[0]]),
                    "hard": ids[0],
                    "full": row,
                }[form]
            )
        state = [np.array(boxes, "f4"), np.array(flips), np.array(labels, "i8" if form == "hard" else "f4")]
        if half:
            state = [np.float16(state[0]), state[1], np.float16(state[2])]
        if tensors:
            state = [torch.from_numpy(one) for one in state]
        place = root / "imagenet" / "train" / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        torch.save(state, place / f"{file.name.split('.')[0]}.tar")
    return root


def check(cache, dtype, own=False):
    """Each row names the largest of its image in its view, with the logarithms of what the source has, and the mass of the others."""
    labels = torch.from_numpy(cache.labels()).long()
    encoding, k = read_encoding(cache.manifest.encoding), cache.manifest.encoding["k"]
    assert cache.manifest.encoding["dtype"] == "f32"
    for view in range(len(cache.manifest.views)):
        columns = cache.rows(view, cache.teacher, np.arange(len(labels)))
        rows = encoding.decode({name: torch.from_numpy(one) for name, one in columns.items()}, labels, CLASSES)
        there = np.array([probabilities(n, view) for n in range(len(labels))]).astype(dtype).astype(np.float64)
        exact = torch.from_numpy(np.log(there))
        named = torch.ones_like(rows.unranked) if own else ~rows.unranked  # else the label's is not in the source
        assert named.any()
        assert torch.equal(rows.values[named], exact.gather(1, rows.ids)[named].float())
        assert (rows.ids == labels[:, None]).any(1).all()
        top = exact.scatter(1, labels[:, None], -torch.inf).topk(k - 1, 1).indices
        assert (rows.ids[:, None, :] == top[:, :, None]).any(2).all()
        mass = 1 - exact.exp().gather(1, rows.ids).sum(1)
        assert torch.allclose(rows.rest[:, 2].exp()[named].double(), mass[named], rtol=1e-3, atol=1e-3)
    assert logitcache.verify_cache(cache.place.path).ok


@pytest.fixture(scope="module")
def epochs(tmp_path_factory, folder):
    """A cache of TinyViT's epochs, and where it came from."""
    place = tmp_path_factory.mktemp("tinyvit")
    source = tinyvit(place / "logits", folder)
    return import_rows("tinyvit", source, place / "c.zarr", data=spec(folder), precision="f32"), source


@pytest.fixture(scope="module")
def crops(tmp_path_factory, folder):
    """A cache of FKD's crops, and where it came from."""
    place = tmp_path_factory.mktemp("fkd")
    source = fkd(place / "labels", folder)
    return import_rows("fkd", source, place / "c.zarr", data=spec(folder), precision="f32", **FKD), source


def test_tinyvits_epochs_are_views_with_their_seeds(epochs):
    cache, _ = epochs
    check(cache, "f2")
    assert [(view["recipe"], view["key"]) for view in cache.manifest.views] == [
        ("recorded-seeds", n) for n in range(EPOCHS)
    ]
    for view in range(EPOCHS):
        assert cache.recorded(view)["seeds"].tolist() == list(range(1000 * view, 1000 * view + COUNT))
    gives = {"by": "tinyvit", "values": "log-probabilities", "temperature": 1.0, "rest": "mass"}
    assert cache.manifest.teachers[0]["gives"] == gives | {"label": "among the largest"}


def test_images_that_nobody_has_seen_here_are_no_duplicates(epochs):
    """Their digests are all 0."""
    cache, _ = epochs
    assert not [one for one in logitcache.cache_stats(cache).duplicates if one.same_pixels]


def test_tinyvits_keys_may_be_numbers(tmp_path, folder):
    """Names of files without suffix are IN-22k's; IN-1k's are numbers in torchvision's order."""
    source = tinyvit(tmp_path / "logits", folder, keys="number")
    cache = import_rows(
        "tinyvit", source / f"logits_top{K}_epoch1", tmp_path / "c.zarr", data=spec(folder), precision="f32"
    )
    assert cache.recorded(0)["seeds"].tolist() == list(range(1000, 1000 + COUNT))


def test_rows_whose_images_cannot_be_made_again_are_for_loops_that_make_them(tmp_path, epochs, folder):
    cache, _ = epochs
    refusal = r"augmented by tinyvit with its own random numbers.*open_dataset"
    for attempt in (
        lambda: logitcache.train_student(cache, "tiny:still", out=tmp_path / "run", temperature=1),
        lambda: logitcache.Loader(cache),
        lambda: logitcache.wrap(None, cache),
    ):
        with pytest.raises(CacheMismatchError, match=refusal):
            attempt()
    rows = logitcache.open_dataset(cache).at(1)
    assert rows.recorded()["seeds"][3] == 1003
    assert rows.logits([3]).at(1.0).argmax() == probabilities(3, 1).argmax()
    report = logitcache.verify_cache(cache.place.path)
    assert report.ok
    assert report.pixels_checked is None
    with pytest.raises(InputError, match="augmentation recorded-seeds exists only in imported caches"):
        logitcache.dump_logits("tiny:net", spec(folder), tmp_path / "d.zarr", augment="recorded-seeds")


def is_shown_as_torchvision_does(cache, source, folder):
    """A row's image is what torchvision cuts out and mirrors for FKD's own training, before it resizes it."""
    samples = logitcache.data.as_samples(spec(folder))
    for view in cache_views(cache):
        for number, shown in enumerate(render(samples, view, np.arange(COUNT))):
            with Image.open(paths(folder)[number]) as opened:
                image = opened.convert("RGB")
            file = source / "imagenet/train" / f"{samples.paths[number][:-4]}.tar"
            boxes, flips, _ = torch.load(file, weights_only=False)
            i, j, h, w = (float(x) * side for x, side in zip(boxes[view.key], image.size[::-1] * 2, strict=True))
            expected = tv.crop(image, i, j, h, w)
            expected = tv.hflip(expected) if flips[view.key] else expected
            assert torch.equal(shown, tv.pil_to_tensor(expected))


def test_fkds_crops_are_views_that_are_shown_again(crops, folder):
    cache, source = crops
    check(cache, "f4")
    assert cache.manifest.teachers[0]["gives"]["label"] == "among the largest"
    is_shown_as_torchvision_does(cache, source, folder)
    assert logitcache.verify_cache(cache.place.path).pixels_checked == COUNT * CROPS


@pytest.mark.parametrize("more", [{"half": True}, {"tensors": True}, {"form": "full"}])
def test_fkds_files_have_several_forms(tmp_path, folder, more):
    source = fkd(tmp_path / "labels", folder, **more)
    cache = import_rows("fkd", source, tmp_path / "c.zarr", data=spec(folder), precision="f32", views=1, **FKD)
    check(cache, "f2" if "half" in more else "f4", own="form" in more)
    assert ("label" in cache.manifest.teachers[0]["gives"]) == ("form" not in more)
    is_shown_as_torchvision_does(cache, source, folder)


def test_a_student_trains_on_fkds_crops(tmp_path, crops, folder):
    """With worker processes and without them the student is shown the same; changed pixels are noticed."""
    cache, _ = crops
    given = {"method": "kd", "temperature": 1, "epochs": 2, "batch_size": 8, "image_size": 16}
    runs = [logitcache.train_student(cache, "tiny:still", out=tmp_path / f"run{n}", workers=n, **given) for n in (0, 1)]
    one, other = (run.student.state_dict() for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
    with logitcache.Loader(cache, batch_size=8, image_size=16, workers=0) as loader:
        assert next(iter(loader)).inputs.shape == (8, 3, 16, 16)
    image, _, row = logitcache.wrap(None, cache, image_size=16)[3]
    assert image.shape == (3, 16, 16)
    assert row.at(1.0).argmax() == probabilities(3, 0).argmax()
    with pytest.raises(CacheMismatchError, match="temperature 1 and only the total mass of the classes outside"):
        logitcache.train_student(cache, "tiny:still", out=tmp_path / "run", method="kd", temperature=4)
    with pytest.raises(CacheMismatchError, match="without the probability of a"):
        logitcache.train_student(cache, "tiny:still", out=tmp_path / "run", method="dkd", temperature=1)
    moved = shutil.copytree(folder, tmp_path / "moved")
    Image.new("RGB", (16, 16)).save(paths(moved)[0])
    report = logitcache.verify_cache(cache.place.path, data=spec(moved))
    assert "was shown different pixels" in report.pixels_problem


@pytest.mark.slow
def test_what_says_how_images_were_augmented_is_cut_out_and_joined(tmp_path, crops, epochs, folder):
    for name, (cache, _) in {"boxes": crops, "seeds": epochs}.items():
        parts = [
            logitcache.slice_cache(cache, tmp_path / f"{name}{a}.zarr", samples=(a, b)) for a, b in ((0, 5), (5, COUNT))
        ]
        joined = logitcache.merge_caches(parts, tmp_path / f"{name}.zarr")
        assert np.array_equal(joined.recorded(1)[name], cache.recorded(1)[name])
        assert np.array_equal(parts[1].recorded(1)[name], cache.recorded(1)[name][5:])
        assert all(logitcache.verify_cache(one.place.path).ok for one in (*parts, joined))
    apart = [
        import_rows("tinyvit", one, tmp_path / f"{one.name}.zarr", data=spec(folder), teacher_name="big")
        for one in sorted(epochs[1].iterdir())
    ]
    both = logitcache.merge_caches(apart, tmp_path / "both.zarr")  # views that are not told apart by their pixels
    assert both.recorded(1)["seeds"][0] == 1000


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "write", "more"), [("fkd", fkd, FKD), ("tinyvit", tinyvit, {})])
def test_an_import_of_images_that_is_killed_goes_on(tmp_path, folder, kind, write, more):
    source = write(tmp_path / "source", folder)
    given = {"data": spec(folder), "block_rows": 4, **more}

    def imported(path):
        import_rows(kind, source, path, **given)

    def child(path):
        return tiny.in_a_child(lambda: imported(path))

    tiny.kill_dumps(tmp_path, imported, child, processes=1, kills=4, longest=0.4)


@pytest.mark.parametrize("form", ["renormalized", "largest", "hard"])
def test_labels_without_the_mass_of_the_others_are_refused(tmp_path, folder, form):
    says = {
        "renormalized": "they were normalized, so the mass",
        "largest": "has only the largest probability, which is not enough for a distribution",
        "hard": "has hard labels, which is not enough for a distribution",
    }[form]
    with pytest.raises(InputError, match=says):
        import_rows("fkd", fkd(tmp_path / "l", folder, form), tmp_path / "c.zarr", data=spec(folder), **FKD)


class _Code:
    """What would run code when it is unpickled."""

    def __reduce__(self):
        return (print, ("it ran",))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda boxes, flips, labels: [boxes, flips, _Code()],
            "holds Python objects besides arrays, which could run code",
        ),
        (lambda boxes, flips, labels: {"boxes": boxes}, "expected boxes, flips and probabilities, found dict"),
        (lambda boxes, flips, labels: [[[1], [1, 2]], flips, labels], "is not a file of FKD labels: ValueError"),
        (lambda boxes, flips, labels: [boxes, flips[:1], labels], r"have the shapes \[2, 4\], \[1\] and \[2, 2, 4\]"),
        (lambda boxes, flips, labels: [boxes * 300, flips, labels], "has invalid boxes"),
        (
            lambda boxes, flips, labels: [boxes[:1], flips[:1], labels[:1]],
            "has 1 crop, but 2 are imported from each image",
        ),
        (lambda boxes, flips, labels: [boxes, flips, labels[..., :3]], "labels of a different form than"),
        (
            lambda boxes, flips, labels: [boxes, flips, labels * np.float32([[9], [1]])],
            "has class .* the data set has 5",
        ),
        (lambda boxes, flips, labels: [boxes, flips, labels * np.float32([[1], [9]])], "those of a row sum to"),
    ],
)
def test_damaged_files_of_fkd_are_named(tmp_path, folder, change, says, capsys):
    source = fkd(tmp_path / "labels", folder, crops=2)
    file = source / "imagenet/train/n2/n2_7.tar"
    torch.save(change(*torch.load(file, weights_only=False)), file)
    with pytest.raises(InputError, match=rf"n2_7\.tar.*{says}"):
        import_rows("fkd", source, tmp_path / "c.zarr", data=spec(folder), **FKD)
    assert "it ran" not in capsys.readouterr().out
    assert not (tmp_path / "c.zarr").exists()


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("rank0-values.bin", b"123", "has 3 bytes, but 6 keys of 20 bytes take 120; it was truncated"),
        ("rank0-keys.txt", b"\xff\xfe", "cannot read .* with the keys of the images"),
        ("rank0-keys.txt", b"a\nb\nc\nd\ne\nf\n", "has keys like 'a', none of which is in the data set"),
        ("rank0-keys.txt", b"1\n2\n3\n4\n5\n60\n", "has image numbers up to 60, but the data set has 12"),
        ("rank0-values.bin", bytes(120), "a row with a duplicate class"),
        ("rank0-values.bin", np.array([[0, 0, 77, 1, 2, 3, 0, 0, 0, 0]] * 6, "<i2").tobytes(), "has class 77"),
        (
            "rank0-values.bin",
            np.array([[0, 0, 0, 1, 2, 3, -1, 0, 0, 0]] * 6, "<i2").tobytes(),
            "has invalid probabilities",
        ),
    ],
)
def test_damaged_files_of_tinyvit_are_named(tmp_path, folder, name, data, says):
    source = tinyvit(tmp_path / "logits", folder)
    (source / f"logits_top{K}_epoch0" / name).write_bytes(data)
    with pytest.raises(InputError, match=says):
        import_rows("tinyvit", source, tmp_path / "c.zarr", data=spec(folder))
    assert not (tmp_path / "c.zarr").exists()


def test_rows_of_other_images_are_refused(tmp_path, folder, monkeypatch):
    """Where the largest class is the label no more often than chance, in 1,000 rows or more; here the rule is lowered."""
    source = tinyvit(tmp_path / "logits", folder)
    monkeypatch.setattr("logitcache.runtime.wording._ENOUGH", 10)
    with pytest.raises(
        InputError, match=r"which is chance \(20.00%\); the images of `data` or their classes are in a different order"
    ):
        import_rows("tinyvit", source, tmp_path / "c.zarr", data=spec(folder))
    for changes, says in (
        ({"data": None}, "set `data` to the images that the teacher saw"),
        ({"data": "stories-mini"}, "stories-mini is text"),
        ({"views": 9}, "has 2 epochs"),
        (
            {"vocabulary": 5},
            "`vocabulary` is only for vllm, sglang, distillkit, axolotl, llama.cpp; leave it out for tinyvit",
        ),
    ):
        with pytest.raises(InputError, match=says):
            import_rows("tinyvit", source, tmp_path / "c.zarr", **({"data": spec(folder)} | changes))
