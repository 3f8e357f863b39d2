"""Strings packed into one array: the same as in a list, and shared by processes."""

import os
import pickle
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler

import pytest

from logitcache.data.images import strings
from logitcache.data.images.strings import PackedStrings

SOME = [["", "a", "caf\u00e9"], [], [os.fsdecode(b"caf\xe9"), "two\nlines", "\U0001f600"]]
FLAT = [one for part in SOME for one in part]


@pytest.fixture(params=[1, 4, 1 << 12], autouse=True)
def _at_once(request, monkeypatch):
    monkeypatch.setattr(strings, "_AT_ONCE", request.param)


def test_packed_strings_are_those_of_a_list():
    packed = PackedStrings.of(SOME)
    assert len(packed) == len(FLAT)
    assert list(packed) == FLAT
    assert [packed[n] for n in range(-6, 6)] == FLAT + FLAT
    assert packed[1:6:2] == FLAT[1:6:2]
    assert packed.index("two\nlines") == 4
    assert [one for part in packed.encoded() for one in part] == [os.fsencode(one) for one in FLAT]
    for beyond in (6, -7):
        with pytest.raises(IndexError):
            packed[beyond]


def test_no_strings_are_none():
    assert list(PackedStrings.of([])) == []
    assert list(PackedStrings.of([[], []])) == []


def send_back(connection, packed: bytes) -> None:
    found = pickle.loads(packed)
    connection.send([found[0], found[-1], len(found)])


def test_a_started_process_is_sent_no_string():
    many = PackedStrings.of([[f"n{number:08d}/image.jpg" for number in range(20_000)]])
    packed = bytes(ForkingPickler.dumps(many))
    assert len(packed) < 2000
    context = get_context("fork")  # quicker than spawn; what was packed is opened the same way
    ours, theirs = context.Pipe()
    child = context.Process(target=send_back, args=(theirs, packed))
    child.start()
    assert ours.poll(60)
    assert ours.recv() == ["n00000000/image.jpg", "n00019999/image.jpg", 20_000]
    child.join()
