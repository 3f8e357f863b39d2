"""`dump --check-data`: every sample is read before the teacher runs."""

import pytest
import tiny
from tiny import folder_of

import logitcache
from logitcache.errors import UnreadableError


@pytest.fixture
def damaged(tmp_path):
    folder = folder_of(tmp_path / "d", 60)
    for number in range(30):
        sorted(folder.rglob("*.png"))[2 * number].write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_all_that_cannot_be_read_is_named_before_the_teacher_runs(damaged, tmp_path, workers):
    seen = []
    with pytest.raises(UnreadableError) as raised:
        logitcache.dump_logits(
            tiny.net(5),
            f"imagefolder:{damaged}",
            tmp_path / "c.zarr",
            workers=workers,
            check_data=True,
            on_progress=seen.append,
        )
    message = str(raised.value)
    assert message.startswith("30 of 60 samples cannot be read:\n  class 0/")
    assert message.count(".png: cannot identify") == 20
    assert "\n  and 10 more\n" in message
    assert seen[-1].task == "checking data"
    assert (seen[-1].done, seen[-1].total, seen[-1].note) == (60, 60, "30 cannot be read")
    assert not (tmp_path / "c.zarr/zarr.json").exists()


def test_the_command_ends_with_1_or_goes_on_with_what_it_was_told(run, tmp_path):
    folder = folder_of(tmp_path / "d", 20)
    for number in (2, 5):
        sorted(folder.rglob("*.png"))[number].write_bytes(b"no image")
    words = f"dump --teacher tiny:net --data imagefolder:{folder} --image-size 16 --out c.zarr --workers 0 --check-data".split()
    first = run(*words)
    assert first.exit_code == 1
    assert "2 of 20 samples cannot be read" in first.stderr
    second = run(*words, "--skip-unreadable")
    assert second.exit_code == 0
    assert "left out, because they could not be read: 2 of 20 samples" in second.stderr
    assert "20 samples (2 left out) x 1 view, 5 classes, finished" in second.stdout
    assert run(*words).exit_code == 0
    assert "(2 left out)" in run("stats", "c.zarr").stdout


def test_data_that_is_whole_is_dumped(tmp_path, images):
    cache = logitcache.dump_logits(tiny.net(5), images, tmp_path / "c.zarr", check_data=True)
    assert cache.manifest.excluded == ()
