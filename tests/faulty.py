"""Other people's data and networks, of which something may be wrong; what, the environment variable FAULT says. Named faulty:NAME."""

import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import tiny
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

FAULT, MAIN = (
    os.environ.get("FAULT", ""),
    os.environ.setdefault("MAIN", str(os.getpid())),
)  # the process that came first
SAMPLES, ODD = 60, 37
multiprocessing.set_start_method(os.environ.get("START", "fork"), force=True)
if FAULT == "cannot be imported by a worker" and str(os.getpid()) != MAIN:
    raise RuntimeError("no licence\nfor a second process")


class Odd(Exception):
    """An exception that cannot be built again from its message."""

    def __init__(self, code: int, *, place: str) -> None:
        super().__init__(code, place)


def picture(number: int) -> Image.Image:
    """The image of a sample: noise of its class's colour; the odd one may have another size."""
    pixels = np.random.default_rng(number).integers(0, 120, (20, 24 if FAULT == "sizes" and number == ODD else 20, 3))
    pixels[..., number % 3] += 100
    return Image.fromarray(pixels.astype(np.uint8))


class Items(Dataset):
    """Images and labels; one of them is odd."""

    classes = ("ant", "bee", "cow")

    def __init__(self) -> None:
        self.targets = [number % 3 for number in range(SAMPLES)]
        if FAULT == "label out of range":
            self.targets[ODD] = 3
        if FAULT == "unpicklable":
            self.key = lambda label: label
        if FAULT == "data set cannot be made":
            sys.exit("nothing to be had\nhere")

    def __len__(self) -> int:
        if FAULT == "length raises":
            raise ConnectionError("no database")
        return SAMPLES

    def __getitem__(self, number: int) -> object:
        if number == ODD:
            if FAULT == "item raises":
                raise KeyError("annotation\nmissing")
            if FAULT == "item raises oddly":
                raise Odd(7, place="there")
            if FAULT == "item exits":
                sys.exit(0)
            if FAULT == "item stops":
                raise StopIteration
            if FAULT == "item is None":
                return None
            if FAULT == "item is float":
                return torch.zeros(3, 20, 20), 1
            if FAULT == "worker killed" and str(os.getpid()) != MAIN:
                os.kill(os.getpid(), signal.SIGKILL)
        return picture(number), 2 if FAULT == "wrong label" and number == ODD else number % 3


class Table(Items):
    """The same as dictionaries."""

    def __getitem__(self, number: int) -> object:
        found = super().__getitem__(number)
        return found if found is None else {"image": found[0], "label": found[1]}


def pairs() -> Items:
    """A torch data set."""
    return Items()


def table() -> Table:
    """A data set in the manner of Hugging Face."""
    return Table()


class Teacher(nn.Module):
    """A network that may be at fault."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        if FAULT == "teacher cannot be made":
            raise RecursionError
        self.net, self.asked = tiny.net(classes), 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        if FAULT == "teacher fails":
            raise Odd(3, place="layer")
        if FAULT == "teacher exits":
            sys.exit(3)
        if FAULT in ("interrupted", "group interrupted") and self.asked > 12:
            time.sleep(0.2)
        logits = self.net(x)
        return nn.functional.dropout(logits, 0.5) if FAULT == "teacher with dropout" else logits
