"""EXIF orientation: as stored by default, upright on request; the cache remembers which."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image

import logitcache
from logitcache.data import as_samples
from logitcache.data.exclusion import Reading
from logitcache.errors import InputError
from logitcache.train.train import train_student

TURNED_LEFT = 6  # EXIF's number for "rotate by 90 degrees to see it upright"


def picture(number: int) -> Image.Image:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:4, :, number % 3] = 255  # a bright stripe, at the top as it is stored
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    for number in range(12):
        path = tmp_path / "d" / "ab"[number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = TURNED_LEFT
        picture(number).save(path, exif=exif, quality=95)
    return tmp_path / "d"


class Pictures:
    targets = [number % 2 for number in range(12)]

    def __len__(self):
        return 12

    def __getitem__(self, number):
        image = picture(number)
        image.getexif()[0x0112] = TURNED_LEFT
        return image, number % 2


def test_images_are_as_stored_unless_turning_is_asked_for(folder):
    for data in (f"imagefolder:{folder}", Pictures()):
        stored, turned = as_samples(data).image(0), as_samples(data, reading=Reading(exif_orientation=True)).image(0)
        assert stored[0, 1].min() > 128  # the stripe is at the top
        assert turned[0, :, -2].min() > 128  # and at the right
        assert turned[0, 1, :8].max() < 128


def test_the_cache_remembers_and_training_and_replay_use_it(folder, tmp_path):
    make = {"image_size": 16, "batch_size": 8, "workers": 0}
    plain = logitcache.dump_logits(tiny.net(2), f"imagefolder:{folder}", tmp_path / "plain.zarr", **make)
    turned = logitcache.dump_logits(
        tiny.net(2), f"imagefolder:{folder}", tmp_path / "c.zarr", exif_orientation=True, **make
    )
    assert (plain.digests(0) != turned.digests(0)).all()
    assert "exif_orientation" not in plain.manifest.data
    assert turned.manifest.data["exif_orientation"] is True
    assert logitcache.verify_cache(tmp_path / "c.zarr", replay=12, teacher=tiny.net(2)).ok
    train_student(turned, tiny.still(2), epochs=1, workers=0, out=tmp_path / "run")
    with pytest.raises(logitcache.errors.CacheMismatchError, match="exif_orientation: there True, requested 'absent'"):
        logitcache.dump_logits(tiny.net(2), f"imagefolder:{folder}", tmp_path / "c.zarr", **make)
    with pytest.raises(InputError, match="was dumped without `exif_orientation`"):
        train_student(plain, tiny.still(2), epochs=1, exif_orientation=True, workers=0, out=tmp_path / "no")


def test_training_on_labels_alone_can_turn_images(folder, tmp_path):
    made = {"method": "ce", "data": f"imagefolder:{folder}", "image_size": 16, "epochs": 1, "workers": 0}
    result = train_student(None, tiny.still(2), exif_orientation=True, out=tmp_path / "run", **made)
    recorded = json.loads((result.path / "run.json").read_text())["settings"]
    assert recorded["exif_orientation"] is True
    plain = train_student(None, tiny.still(2), out=tmp_path / "plain", **made)
    assert "exif_orientation" not in json.loads((plain.path / "run.json").read_text())["settings"]


def test_pixels_have_no_orientation(images, tmp_path):
    with pytest.raises(InputError, match="`exif_orientation` applies to image files and PIL images"):
        logitcache.dump_logits(tiny.net(5), images, tmp_path / "c.zarr", exif_orientation=True)
