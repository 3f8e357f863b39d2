#!/usr/bin/env python3
"""Write the tokens of this folder from the stories that its teacher sampled (numpy only).

    make.py SOURCE             train.npz and test.npz beside this script, and their checksums in checksums.json
    make.py SOURCE --check     compare the files here with what would be written

SOURCE is a folder with stories_tokens.npy, [T] u2, and stories_offsets.npy, [1537] int64: where each of the 1,536 stories begins.
The choice is fixed: the first 169 stories to train on, the last 61 held out.
"""

import argparse
import hashlib
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
STORIES = {"train": (0, 169), "test": (1475, 1536)}


def part(tokens: np.ndarray, offsets: np.ndarray, first: int, last: int) -> dict[str, np.ndarray]:
    """Return the tokens of some stories, and where each begins."""
    documents = offsets[first : last + 1]
    chosen = tokens[documents[0] : documents[-1]]
    return {"tokens": chosen.astype("<u2"), "documents": (documents - documents[0]).astype("<i8")}


def checksums(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """SHA-256 of tokens and documents: of the values, so that they do not depend on how a file is compressed."""
    return {name: hashlib.sha256(arrays[name].tobytes()).hexdigest() for name in ("tokens", "documents")}


def main() -> None:
    """Run the command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    tokens, offsets = (np.load(args.source / f"stories_{name}.npy") for name in ("tokens", "offsets"))
    found = {}
    for name, (first, last) in STORIES.items():
        stories = part(tokens, offsets, first, last)
        found[name] = checksums(stories)
        if args.check:
            with np.load(HERE / f"{name}.npz") as stored:
                same = checksums(dict(stored)) == found[name]
            print(f"{name}.npz: {'the same' if same else 'DIFFERENT'}")
            if not same:
                sys.exit(1)
        else:
            np.savez_compressed(HERE / f"{name}.npz", **stories)
            print(f"{name}.npz: {len(stories['tokens']):,} tokens, {(HERE / f'{name}.npz').stat().st_size:,} bytes")
    if not args.check:
        (HERE / "checksums.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
