"""Folders as people have them: links, hidden files, other types, names that are not UTF-8, damaged files."""

import errno
import hashlib
import itertools
import os
import zlib

import numpy as np
import pytest
import tiny
from PIL import Image, PngImagePlugin

import logitcache
from logitcache.data import FolderImages
from logitcache.data.exclusion import Reading
from logitcache.data.images import listing
from logitcache.errors import InputError, UnreadableError


def write(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for name in ("ant", "bee"):
        for number in range(2):
            write(tmp_path / "d" / name / f"{number}.png", number)
    return tmp_path / "d"


def listed(folder, caplog):
    caplog.set_level("INFO", "logitcache")
    caplog.clear()
    found = FolderImages(folder)
    return found, caplog.messages[-1].partition(": ")[2]


def test_what_is_found_and_skipped_is_said(folder, caplog):
    assert listed(folder, caplog)[1] == "4 images in 2 classes; skipped: nothing"
    write(folder / "ant/.ipynb_checkpoints/0-checkpoint.png")
    (folder / "bee/._0.png").write_bytes(b"Mac OS X")
    (folder / ".DS_Store").write_bytes(b"")
    for name in ("readme.pdf", "a.txt", "b.txt", "c.txt"):
        (folder / "bee" / name).write_bytes(b"%PDF-1.4")
    (folder / "labels.csv").write_text("x")
    (folder / "cow").mkdir()
    found, said = listed(folder, caplog)
    assert list(found.paths) == ["ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png"]
    assert found.classes == ("ant", "bee")
    assert said == (
        "4 images in 2 classes; skipped: 3 hidden, 4 of other types (a.txt, b.txt, c.txt, ...), 1 outside class folders, "
        "1 folder without images (cow)"
    )


def test_links_to_folders_and_files_are_followed(folder, tmp_path):
    write(tmp_path / "elsewhere/more/9.png")
    (folder / "bee/more").symlink_to(tmp_path / "elsewhere/more")
    (folder / "cow").symlink_to(tmp_path / "elsewhere")
    (folder / "ant/linked.png").symlink_to(tmp_path / "elsewhere/more/9.png")
    found = FolderImages(folder)
    assert list(found.paths) == [
        *("ant/0.png", "ant/1.png", "ant/linked.png", "bee/0.png", "bee/1.png", "bee/more/9.png", "cow/more/9.png")
    ]
    assert found.image(6).shape == (3, 8, 8)


@pytest.mark.parametrize("link", ["ant/gone.png", "gone", "ant/gone"])
def test_a_link_that_leads_nowhere_is_named(folder, link):
    (folder / link).symlink_to(folder / "nothing")
    with pytest.raises(InputError, match=f"d/{link} (cannot be read: it )?is a broken link"):
        FolderImages(folder)


def test_a_link_in_a_circle_is_named(folder):
    (folder / "ant/again").symlink_to(folder / "ant")
    with pytest.raises(InputError, match="ant/again is a link to one of its own parent folders"):
        FolderImages(folder)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_may_not_be_read_is_named_before_anything_runs(folder, monkeypatch, what):
    if what == "file":  # these tests may run as root, who may read everything
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setattr(os, "access", lambda path, _: not str(path).endswith("1.png"))
        expected = r"2 of 4 samples cannot be read:\n  ant/1.png: permission denied"
    else:
        scan = os.scandir

        def refused(path):
            if str(path).endswith("bee"):
                raise PermissionError(13, "Permission denied")
            return scan(path)

        monkeypatch.setattr(os, "scandir", refused)
        expected = "d/bee cannot be opened: Permission denied"
    with pytest.raises(InputError, match=expected):
        FolderImages(folder)


def test_files_of_a_large_folder_are_all_asked_about_if_one_of_some_is_refused(monkeypatch):
    """So a folder that was copied without its permissions is named file by file, and listing a good one takes half as long."""
    asked = []
    names = [str(number) for number in range(1000)]
    monkeypatch.setattr(os, "access", lambda path, _: asked.append(path) or path not in denied)
    denied = set()
    assert not listing._refused("d", names)
    assert len(asked) == 100
    denied |= {"d/20", "d/21"}
    assert listing._refused("d", names) == ["20", "21"]
    assert listing._refused("d", names[21:25]) == ["21"]
    assert not listing._refused("d", [])


def test_names_that_are_not_utf8_work(folder, tmp_path):
    (folder / "ant/0.png").rename(folder / os.fsdecode(b"ant/caf\xe9.png"))
    (folder / "bee").rename(folder / os.fsdecode(b"b\xe9e"))
    found = FolderImages(folder)
    assert found.classes == ("ant", "b\\xe9e")
    assert len(found.digest()) == 32
    cache = logitcache.dump_logits(
        tiny.net(2), f"imagefolder:{folder}", tmp_path / "c.zarr", image_size=16, workers=0, batch_size=4
    )
    assert logitcache.verify_cache(tmp_path / "c.zarr").ok
    assert cache.manifest.classes == ("ant", "b\\xe9e")
    (folder / os.fsdecode(b"ant/caf\xe9.png")).write_bytes(b"no image")
    with pytest.raises(InputError, match=r"ant/caf\\xe9.png cannot be read"):
        found.image(1)


def sorted_paths(folder):
    """Return relative paths as the first versions sorted them: all of them together, as strings."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_order_labels_and_digest_are_those_of_sorted_paths(tmp_path):
    """The order and the digest of caches that exist: "a-b/" comes before "a/", and class "a" before class "a-b"."""
    for name in ("a", "a-b", "a.b", "ab", "a/deep", "a/deep-er", os.fsdecode(b"\xe9a"), "\u00e9", "\ufb01", "a/\uac00"):
        for file in ("1", "10", "1-", "two\nlines", os.fsdecode(b"caf\xe9"), "\uac00", "\ufb01"):
            write(tmp_path / "d" / name / f"{file}.png")
    paths = sorted_paths(tmp_path / "d")
    names = sorted({path.split("/")[0] for path in paths})
    labels = [names.index(path.split("/")[0]) for path in paths]
    lines = [f"{path}\t{label}" for path, label in zip(paths, labels, strict=True)]
    text = "\n".join([*names, "", *lines]).encode("utf-8", "surrogateescape")
    found = FolderImages(tmp_path / "d")
    assert list(found.paths) == paths
    assert found.labels.tolist() == labels
    assert found.labels.dtype == np.int64
    assert found.digest() == hashlib.blake2b(text, digest_size=16).hexdigest()


def test_images_are_found_by_their_names(tmp_path):
    for name in ("a/1", "a/deep/1", "a-b/1", os.fsdecode(b"b/caf\xe9"), "b/back\\x"):
        write(tmp_path / "d" / f"{name}.png")
    found = FolderImages(tmp_path / "d")
    spelled = [*found.paths, *(found.name_of(n) for n in range(5)), "a/2.png", "zzz", "b/no\\xe9.png"]
    expected = {path: n for n, path in enumerate(found.paths)} | {found.name_of(n): n for n in range(5)}
    assert found.numbers_of(spelled) == expected
    assert found.name_of(3) == "b/back\\x.png"
    assert found.name_of(4) == "b/caf\\xe9.png"


def test_unreadable_images_have_their_numbers_in_any_class(tmp_path):
    for name in ("a/1", "a/3", "b/1", "a-b/1"):
        write(tmp_path / "d" / f"{name}.png")
    for name in ("a/2", "b/2", "a-b/0"):
        (tmp_path / "d" / f"{name}.png").symlink_to(tmp_path / "nothing")
    found = FolderImages(tmp_path / "d", Reading(tolerant=True))
    assert [found.paths[n] for n in sorted(found.unreadable)] == ["a-b/0.png", "a/2.png", "b/2.png"]


def oversized_text(path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 2_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


def bomb(path):
    Image.new("1", (20_000, 20_000)).save(path)


def broken_size(path):
    data = bytearray(path.read_bytes())
    data[16:20] = (0).to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("damage", "workers"),
    tiny.usual(
        itertools.product([oversized_text, bomb, broken_size, cut], [0, 2]),
        [(oversized_text, 0), (bomb, 0), (broken_size, 2), (cut, 0)],
    ),
)
def test_whatever_a_decoder_raises_is_one_sentence_with_the_path(folder, tmp_path, damage, workers):
    damage(folder / "bee/1.png")
    with pytest.raises(
        InputError, match=r"bee/1.png cannot be read: .*\. Fix it, or leave it out: .* the line bee/1.png$"
    ) as raised:
        logitcache.dump_logits(
            tiny.net(2), f"imagefolder:{folder}", tmp_path / "c.zarr", image_size=16, workers=workers, batch_size=4
        )
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("spelling", ["--out=~/c.zarr", "config"])
def test_a_tilde_is_the_home_folder(run, folder, tmp_path, monkeypatch, spelling):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    folder.rename(home / "data")
    (tmp_path / "c.toml").write_text('out = "~/c.zarr"\n')
    words = ["dump", "--teacher", "tiny:net", "--data", "imagefolder:~/data", "--image-size", "16", "--workers", "0"]
    result = run(*words, *(["--config", "c.toml"] if spelling == "config" else [spelling]))
    assert result.exit_code == 0, result.output
    assert (home / "c.zarr/zarr.json").exists()
    for words in (
        ["verify", "~/c.zarr"],
        ["train", "~/c.zarr", "--student", "tiny:still", "--epochs", "1", "--out=~/run"],
    ):
        result = run(*words, *(["--method", "ce", "--workers", "0"] if words[0] == "train" else []))
        assert result.exit_code == 0, result.output
    assert run("compare", "~/run").exit_code == 0
    assert not (tmp_path / "~").exists()


def test_a_folder_of_hidden_files_says_what_it_skipped(folder):
    for file in list(folder.rglob("*.png")):
        file.rename(file.with_name(f".{file.name}"))
    with pytest.raises(
        InputError, match=r"has no images in class folders .*; skipped: 4 hidden, 2 folders without images"
    ):
        FolderImages(folder)


def test_one_class_alone_is_warned_of(folder, tmp_path, caplog):
    (folder / "ant").rename(tmp_path / "aside")
    logitcache.dump_logits(tiny.net(1), f"imagefolder:{folder}", tmp_path / "c.zarr", image_size=16, workers=0)
    assert "the data has only one class, bee" in caplog.text


def test_an_image_of_more_than_8_bits_is_named_and_can_be_skipped(folder):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "bee/deep.png")
    with pytest.raises(UnreadableError, match=r"bee/deep\.png cannot be read: it has more than 8 bits per channel"):
        FolderImages(folder).image(4)


def test_a_sample_is_not_called_unreadable_where_file_handles_ran_out(folder, monkeypatch):
    def fail(_path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(
        InputError, match=r"ant/0\.png cannot be read for lack of system resources: .*Too many"
    ) as raised:
        FolderImages(folder).image(0)
    assert not isinstance(raised.value, UnreadableError)
