"""A matrix of other people's data, workers and faults: the right result, or one sentence, soon, and nothing is lost."""

import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import faulty
import numpy as np
import pytest
import tiny
import torch
from warm import Command

pytestmark = pytest.mark.slow

SECONDS = 20.0
STARTING = {"fork": 0.0, "spawn": 40.0}  # seconds that two processes may take to import torch, on a busy machine
READING = r"error: sample 37 of (Items|Table) cannot be read: "
REMEDY = (
    r"\. Fix it, or leave it out: with --skip-unreadable at the dump, or with --exclude FILE, a file with the line 37\n"
)
ANY_DATA: dict[str, str | None] = {  # what is said, or None where the result is right
    "": None,
    "sizes": None,
    "teacher fails": r"error: teacher faulty:Teacher fails on an input of shape \[8, 3, 16, 16\]: Odd: \(3, 'layer'\)\. ",
    "teacher exits": r"error: teacher faulty:Teacher fails on an input of shape \[8, 3, 16, 16\]: SystemExit: 3\. ",
    "teacher cannot be made": r"error: network faulty:Teacher cannot be created for 3 classes: RecursionError\n",
    "teacher with dropout": r"error: teacher faulty:Teacher is not a function of its input",
    "checkpoint of another": r"error: weights\.pth does not match faulty:Teacher: ",
    "checkpoint damaged": r"error: weights\.pth is not a weights file that torch can read",
    "interrupted": r"stopped on request: ",
    "group interrupted": r"stopped on request: ",
}
OF_THE_TEACHER = {fault for fault in ANY_DATA if fault.startswith(("teacher", "checkpoint"))}  # however workers start
ITEMS: dict[str, str | None] = {
    "item raises": READING + "KeyError: 'annotation",
    "item raises oddly": READING + r"Odd: \(7, 'there'\)" + REMEDY,
    "item exits": READING + "SystemExit",
    "item stops": READING + "StopIteration" + REMEDY,
    "item is None": READING + "the item is a NoneType; expected",
    "item is float": r"error: sample 37 must be a PIL image or uint8 pixels, found torch\.float32",
    "wrong label": r"error: (Items|Table) has two labels for sample 37: 1 in its list .*, 2 in its item",
    "label out of range": r"error: labels must lie in 0 \.\.\. 2 \(3 classes\); sample 37 has 3",
    "data set cannot be made": r"error: data set faulty:(pairs|table) cannot be created: SystemExit: nothing to be had\n",
    "length raises": r"error: cannot read the length, labels or class names of data set (Items|Table): ConnectionError: no database\n",
}
WITH_WORKERS: dict[str, str | None] = {
    "worker killed": r"error: a worker process that decodes images has ended .*--workers 0 decodes in this process"
}
STARTED: dict[str, str | None] = {
    "unpicklable": r"error: the data set cannot be sent to worker processes .*--workers 0",
    "cannot be imported by a worker": r"error: the data set cannot be built in a worker process: RuntimeError: no licence\n",
}
FILES: dict[str, str | None] = {
    f"file {how}": r"error: images/bee/037\.png cannot be read: " for how in ("truncated", "empty", "text")
}
ARRAYS: dict[str, str | None] = {
    "file truncated": r"error: data\.npz ",
    "wrong dtype": r"error: data\.npz: images must be uint8",
    "label out of range": r"error: data\.npz: labels must lie in 0 \.\.\. 2",
}
SPECS = {"folder": "imagefolder:images", "arrays": "arrays:data.npz", "pairs": "faulty:pairs", "table": "faulty:table"}
MODES = [("fork", 0), ("fork", 2), ("spawn", 2)]


def cases() -> list[tuple[str, str, int, str, str | None]]:
    """List them: kind of data, start method, workers, fault, and what is said."""
    found = []
    for kind in SPECS:
        for start, workers in MODES:
            own: dict[str, str | None] = {"folder": FILES, "arrays": ARRAYS}.get(kind, ITEMS)
            faults = own | {
                fault: said for fault, said in ANY_DATA.items() if start == "fork" or fault not in OF_THE_TEACHER
            }
            faults = faults | (WITH_WORKERS if workers and kind in ("pairs", "table") else {})
            faults = faults | (STARTED if start == "spawn" and kind in ("pairs", "table") else {})
            found += [(kind, start, workers, fault, said) for fault, said in faults.items()]
    return found


def make(kind: str, fault: str, place: Path) -> None:
    """Write the data of this kind, with what is wrong with it."""
    if kind == "folder":
        shutil.rmtree(place / "images", ignore_errors=True)
        for number in range(faulty.SAMPLES):
            file = place / "images" / faulty.Items.classes[number % 3] / f"{number:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            faulty.picture(number).save(file)
        odd = place / "images/bee/037.png"
        damage: dict[str, Callable[[bytes], bytes]] = {
            "file truncated": lambda content: content[: len(content) // 2],
            "file empty": lambda _: b"",
            "file text": lambda _: b"to be done\n",
        }
        odd.write_bytes(damage.get(fault, lambda content: content)(odd.read_bytes()))
    if kind == "arrays":
        pixels = np.stack([np.asarray(faulty.picture(number)) for number in range(faulty.SAMPLES)])
        labels = np.arange(faulty.SAMPLES) % 3
        labels[faulty.ODD] += 7 * (fault == "label out of range")
        pixels = pixels.astype(np.float32) if fault == "wrong dtype" else pixels
        np.savez(place / "data.npz", images=pixels, labels=labels, classes=np.array(faulty.Items.classes))
        if fault == "file truncated":
            content = (place / "data.npz").read_bytes()
            (place / "data.npz").write_bytes(content[: len(content) // 2])


def weights(fault: str, place: Path) -> list[str]:
    """Write the teacher's weights; return the words that name them."""
    if not fault.startswith("checkpoint"):
        return []
    torch.save(tiny.net(4).state_dict(), place / "weights.pth")
    if fault == "checkpoint damaged":
        (place / "weights.pth").write_bytes(b"<html>not found</html>\n")
    return ["--teacher-weights", "weights.pth"]


def words(kind: str, workers: int) -> list[str]:
    line = "dump --teacher faulty:Teacher --augment random-resized-crop-flip --views 3 --image-size 16 --batch-size 8 --threads 1"
    return [*line.split(), "--data", SPECS[kind], "--workers", str(workers), "--out", "c.zarr"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Callable[[str, str], dict[str, bytes]]:
    """The bytes of a cache that nothing happened to."""
    found: dict[tuple[str, str], dict[str, bytes]] = {}

    def of(kind: str, fault: str) -> dict[str, bytes]:
        if (kind, fault) not in found:
            place = tmp_path_factory.mktemp(kind)
            make(kind, "", place)
            code, said = Command("logitcache", words(kind, 0), place).end()
            assert code == 0, said
            found[kind, fault] = tiny.bytes_of(place / "c.zarr")
        return found[kind, fault]

    return of


@pytest.mark.parametrize(
    ("kind", "start", "workers", "fault", "said"),
    [pytest.param(*one, id="-".join(map(str, one[:4])).replace(" ", "_")) for one in cases()],
)
def test_a_fault_is_a_sentence_and_loses_nothing(tmp_path, monkeypatch, unbroken, kind, start, workers, fault, said):
    monkeypatch.delenv("FAULT", raising=False)
    monkeypatch.delenv("MAIN", raising=False)  # which this process has set
    whole = unbroken(kind, "")
    monkeypatch.setenv("START", start)
    monkeypatch.setenv("FAULT", fault)
    make(kind, fault, tmp_path)
    began = time.monotonic()
    command = Command("logitcache", [*words(kind, workers), *weights(fault, tmp_path)], tmp_path)
    if "interrupted" in fault:
        command.wait_until(lambda: list(tmp_path.glob("c.zarr/.logitcache/blocks/0/*.json")))
        began = time.monotonic()
        command.send_signal(signal.SIGINT, group=fault.startswith("group"))
    code, output = command.end()
    took = time.monotonic() - began
    assert "Traceback" not in output
    assert took < SECONDS + STARTING[start], output
    if said is None:
        assert code == 0, output
    else:
        assert code == (130 if "interrupted" in fault else 1), output
        sentence = [
            line for line in output.splitlines(keepends=True) if line.startswith(("error:", "stopped on request"))
        ]
        assert len(sentence) == 1, output
        assert re.match(said, sentence[0]), output
    monkeypatch.delenv("FAULT")
    make(kind, "", tmp_path)
    if fault == "sizes":
        return
    code, output = Command("logitcache", words(kind, 0), tmp_path).end()
    assert code == 0, output
    assert tiny.bytes_of(tmp_path / "c.zarr") == whole
