#!/usr/bin/env python3
"""Write the images of this folder from Fashion-MNIST (numpy only).

    make.py SOURCE               train.npz and test.npz beside this script, and their checksums in checksums.json
    make.py SOURCE --rest OUT    the 58,000 images that are *not* in them, as OUT/rest-{train,test}.npz: what the demo's teacher saw
    make.py SOURCE --check       compare the files here with what would be written

SOURCE is a folder with the four IDX files (`train-images-idx3-ubyte.gz`, ...), from https://github.com/zalandoresearch/fashion-mnist
or from Debian's package `dataset-fashion-mnist` (in /usr/share/datasets/fashion-mnist).

The choice is fixed: of every class the first 1,000 training and 200 test images of a seeded shuffle.
"""

import argparse
import gzip
import hashlib
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
PER_CLASS = {"train": 1000, "test": 200}
SOURCE_FILES = {"train": "train", "test": "t10k"}
# SHA-256 of the decompressed IDX files, so that a recompressed copy is recognised too.
SOURCE_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def read_idx(source: pathlib.Path, name: str) -> np.ndarray:
    """Read one IDX file of unsigned bytes: two zero bytes, type 8, number of dimensions, dimensions, data."""
    raw = gzip.decompress((source / f"{name}.gz").read_bytes())
    found = hashlib.sha256(raw).hexdigest()
    if found != SOURCE_SHA256[name]:
        sys.exit(f"{name}: expected sha256 {SOURCE_SHA256[name]}, found {found}: not the published Fashion-MNIST")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def split(source: pathlib.Path, part: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Divide one part of Fashion-MNIST into the subset and the rest, both in a seeded order."""
    images = read_idx(source, f"{SOURCE_FILES[part]}-images-idx3-ubyte")
    labels = read_idx(source, f"{SOURCE_FILES[part]}-labels-idx1-ubyte")
    order = np.random.RandomState(0).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)  # the how-manieth of its class an image is, in that order
    for label in range(len(CLASSES)):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    chosen = order[rank[order] < PER_CLASS[part]]
    others = order[rank[order] >= PER_CLASS[part]]
    return tuple(  # type: ignore[return-value]
        {"images": images[ids], "labels": labels[ids].astype(np.int64), "classes": np.array(CLASSES)}
        for ids in (chosen, others)
    )


def checksums(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """SHA-256 of images and labels: of the values, so that they do not depend on how a file is compressed."""
    return {name: hashlib.sha256(arrays[name].tobytes()).hexdigest() for name in ("images", "labels")}


def main() -> None:
    """Run the command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("--rest", type=pathlib.Path, metavar="OUT")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    found = {}
    for part in ("train", "test"):
        subset, rest = split(args.source, part)
        found[part] = checksums(subset)
        if args.rest:
            args.rest.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(args.rest / f"rest-{part}.npz", **rest)
            print(f"{args.rest / f'rest-{part}.npz'}: {len(rest['labels']):,} images that are not in the subset")
        elif args.check:
            with np.load(HERE / f"{part}.npz") as stored:
                same = checksums(dict(stored)) == found[part]
            print(f"{part}.npz: {'the same' if same else 'DIFFERENT'}")
            if not same:
                sys.exit(1)
        else:
            np.savez_compressed(HERE / f"{part}.npz", **subset)
            print(f"{part}.npz: {len(subset['labels']):,} images, {(HERE / f'{part}.npz').stat().st_size:,} bytes")
    if not (args.rest or args.check):
        (HERE / "checksums.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
