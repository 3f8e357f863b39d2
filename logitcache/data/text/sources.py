"""Text by name: `tokens:FILE.npz`, `text:PATH`, `jsonl:PATH`, `parquet:PATH`."""

import itertools
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from logitcache.data.files import matching_files
from logitcache.data.text.documents import Documents, token_dtype
from logitcache.data.text.forms import Entry, as_document, hub_objects, jsonl_objects, parquet_objects
from logitcache.data.text.origin import read_origin
from logitcache.data.text.reading import TextReading
from logitcache.data.text.tokenizer import Tokenizer
from logitcache.errors import InputError
from logitcache.runtime.wording import counted

__all__ = ["NAMED_TEXT", "open_text", "read_documents", "read_objects"]

_STORIES_IDS = 512  # of the tokenizer that made the stories
_NAME_LENGTH = 26  # place of that number in the header of a file in a zip archive
_AT_ONCE = 512  # documents that are tokenized together
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")


class _Tokens(NamedTuple):
    """A tokenized document: ids, [L], and which of them are of an answer, [L]; of plain text None."""

    ids: NDArray[np.integer[Any]]
    answers: NDArray[np.bool_] | None


def open_text(kind: str, path: str, reading: TextReading | None = None) -> Documents:
    """Open text.

    Args:
        kind: `tokens`: an .npz file with `tokens` [T] and `documents` [D + 1], where each begins, perhaps with `targets` [T] bool and
            `vocabulary`; `text`: text files, a document each or one a paragraph; `jsonl`: a JSON object a line; `parquet` and `hf`
            (`open_hub_table`): a row each. An object or row has one of the forms of `forms`.
        path: A file; for text also a folder or a pattern, in whose files of their names' order.
        reading: How it is read.

    Raises:
        InputError: It cannot be read, a key is missing, a document is empty, or an id does not exist; names file and line.
    """
    chosen = reading or TextReading()
    if kind == "tokens":
        return _open_tokens(Path(path).expanduser(), chosen)
    if chosen.tokenizer is None:
        raise InputError(
            f"{kind}:{path} is text, and no tokenizer is known that makes tokens of it. A teacher hf:PATH brings its own; name one "
            "with --tokenizer hf:PATH, or use tokens:FILE.npz."
        )
    if kind == "text":
        entries = (entry for file in matching_files(path, ".txt") for entry in _text_entries(file, chosen))
    else:
        entries = (as_document(value, where) for where, value in read_objects(kind, path))
    return read_documents(entries, chosen, f"{kind}:{path}")


def read_objects(kind: str, path: str) -> Iterator[tuple[str, Any]]:
    """Yield where each object of some files is, and the object.

    Args:
        kind: `jsonl`, `parquet` or `hf`.
        path: A file, a folder or a pattern; of `hf` as `open_hub_table` takes it.

    Raises:
        InputError: They cannot be read.
    """
    if kind == "hf":
        yield from hub_objects(path)
        return
    objects = {"jsonl": jsonl_objects, "parquet": parquet_objects}[kind]
    for file in matching_files(path, f".{kind}"):
        yield from objects(file)


def open_stories(split: str, reading: TextReading | None = None) -> Documents:
    """Open the stories that ship with logitcache: 60,024 tokens for training and 20,346 others, that their teacher wrote itself."""
    file = resources.files("logitcache.demo_text") / f"{split}.npz"
    with resources.as_file(file) as path:
        return _open_tokens(path, replace(reading or TextReading(), vocabulary=_STORIES_IDS))


NAMED_TEXT: dict[str, Callable[[str, TextReading | None], Documents]] = {"stories-mini": open_stories}


def read_documents(entries: Iterable[Entry], reading: TextReading, name: str) -> Documents:
    """Tokenize documents and make contexts of them.

    Args:
        entries: The documents.
        reading: How; its tokenizer is needed.
        name: What they are called in messages.

    Raises:
        InputError: A document is empty, or none remains.
    """
    tokenizer = reading.tokenizer
    assert tokenizer is not None
    vocabulary = reading.vocabulary or len(tokenizer)
    size, text_bytes = token_dtype(vocabulary), list[int]()

    def tokenized() -> Iterator[_Tokens]:
        stream = iter(entries)
        while some := list(itertools.islice(stream, _AT_ONCE)):
            text_bytes.extend(0 if entry.messages else len(entry.text.encode()) for entry in some)
            for entry, found in zip(some, _encoded(tokenizer, some), strict=True):
                if not (entry.text or entry.messages) or not len(found.ids):
                    raise InputError(f"{entry.where}: the document is empty. Leave it out.")
                yield _Tokens(found.ids.astype(size), found.answers)

    every = list(tokenized())
    if not every:
        raise InputError(f"{name} has no documents")
    facts: dict[str, Any] = {"tokenizer": tokenizer.to_json()}
    if all(text_bytes) and reading.too_long == "split":  # of a chat, and of what is not used, there is no text
        facts["bytes"] = sum(text_bytes)
    answers = None
    if any(one.answers is not None for one in every):
        whole = (np.ones(len(one.ids), np.bool_) if one.answers is None else one.answers for one in every)
        answers = np.concatenate(list(whole))
    begins = np.cumsum([0, *(len(one.ids) for one in every)])
    last = None
    if answers is not None:
        runs = _last_runs(answers, begins)
        last = None if np.array_equal(runs, answers) else runs
    tokens = np.concatenate([one.ids for one in every])
    return _contexts(tokens, begins, answers, last, reading, vocabulary, facts, name)


def _encoded(tokenizer: Tokenizer, entries: Sequence[Entry]) -> Iterator[_Tokens]:
    """Yield the tokens of each document, in order."""
    plain = iter(tokenizer.encode_with_ends([entry.text for entry in entries if entry.messages is None]))
    for entry in entries:
        if entry.messages is not None:
            try:
                ids, said = tokenizer.encode_chat(entry.messages)
            except InputError as error:
                raise InputError(f"{entry.where}: {error}") from error
            yield _Tokens(ids, said)
            continue
        ids, ends = next(plain)
        # A token that reaches into the completion is part of it, also where it begins in the prompt.
        answers = None if entry.answer is None else ends > entry.answer
        found = _Tokens(ids, answers)
        yield _ended(found, tokenizer.facts.eos) if entry.ends else found


def _ended(document: _Tokens, end: int | None) -> _Tokens:
    """Return a document whose last token is the end of its answer; as it is where the tokenizer has no such token."""
    if end is None or document.answers is None:
        return document
    ids, answers = document.ids, document.answers
    if len(ids) and ids[-1] == end:  # a tokenizer that adds it by itself
        ids, answers = ids[:-1], answers[:-1]
    return _Tokens(np.append(ids, end), np.append(answers, np.True_))


def _contexts(
    tokens: NDArray[Any],
    begins: NDArray[np.int64],
    answers: NDArray[np.bool_] | None,
    last: NDArray[np.bool_] | None,
    reading: TextReading,
    vocabulary: int,
    facts: Mapping[str, Any],
    name: str,
) -> Documents:
    """Make contexts of whole documents, as long as they may be.

    Args:
        tokens: Ids of all documents in a row, [T].
        begins: Where each begins, and T, [D + 1].
        answers: Mask of the tokens of answers, [T]; None if all are.
        last: Mask of the tokens of each document's last answer, [T]; None if that is `answers`.
        reading: How it is read.
        vocabulary: Number of ids that exist.
        facts: What is known of the data besides.
        name: What it is called in messages.
    """
    limit, notes, lengths = reading.sequence_length, list[str](), np.diff(begins)
    long = np.zeros(len(lengths), np.bool_) if limit is None or reading.pack == "stream" else lengths > limit
    if long.any():
        assert limit is not None
        used = {"split": lengths, "cut": np.minimum(lengths, limit), "drop": np.where(long, 0, lengths)}[
            reading.too_long
        ]
        lost = f", {int((lengths - used).sum()):,} tokens are not used" if reading.too_long != "split" else ""
        what = {"split": "split into several contexts", "cut": "cut", "drop": "left out"}[reading.too_long]
        notes.append(
            f"{counted(int(long.sum()), 'document')} of {len(lengths):,} longer than {limit:,} tokens: {what}{lost}"
        )
        if lost:
            place = np.arange(len(tokens)) - np.repeat(begins[:-1], lengths)
            kept = place < np.repeat(used, lengths)
            tokens = tokens[kept]
            answers, last = (None if one is None else one[kept] for one in (answers, last))
            begins = np.append(0, np.cumsum(used[used > 0]))
    if len(begins) < 2:
        raise InputError(f"{name} has no documents left: all are longer than --sequence-length")
    if limit is not None:
        begins = _divided(np.array([0, len(tokens)]) if reading.pack == "stream" else begins, limit)
    recorded = {"reading": reading.to_json(), **facts}
    found = Documents(
        tokens,
        begins,
        vocabulary,
        {"all": None, "assistant": answers, "completion": answers if last is None else last}[reading.rows],
        answers=answers if reading.rows == "all" else None,
        completions=last if reading.rows != "completion" else None,
        facts=recorded,
        sequence_length=limit,
        notes=tuple(notes),
    )
    if not found.offsets[-1]:
        raise InputError(f"{name} has no targets: every context is a single token, or none has an answer")
    return found


def _last_runs(answers: NDArray[np.bool_], begins: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which tokens are of the last answer of their document, the last run of tokens that are of answers, [T].

    Args:
        answers: Mask of the tokens of answers, [T].
        begins: Index of each document's first token, and T, [D + 1].
    """
    starts = answers & ~np.append(False, answers[:-1])
    starts[begins[:-1]] |= answers[begins[:-1]]
    run = np.cumsum(starts)  # number of the run that a token is of, where it is of one
    last: NDArray[np.bool_] = answers & (run == np.repeat(run[begins[1:] - 1], np.diff(begins)))
    return last


def _divided(begins: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Divide contexts that are longer than `limit` tokens into ones of `limit` tokens and a rest."""
    parts = np.maximum(-(-np.diff(begins) // limit), 1)
    ends = np.cumsum(parts)
    number = np.arange(ends[-1]) - np.repeat(ends - parts, parts)
    return np.append(np.repeat(begins[:-1], parts) + number * limit, begins[-1])


def _open_tokens(path: Path, reading: TextReading) -> Documents:
    """Open an .npz file of tokens."""
    arrays = _arrays(path)
    own = _vocabulary(arrays, path)
    if own is not None and reading.vocabulary not in (None, own):
        raise InputError(
            f"{path} has a vocabulary of {own:,} ids, and {reading.vocabulary:,} are expected: its tokens were made with another tokenizer"
        )
    vocabulary = reading.vocabulary or own
    if vocabulary is None and reading.tokenizer is not None:
        vocabulary = len(reading.tokenizer)
    if vocabulary is None:
        raise InputError(
            f"{path} does not say how many ids there are: add a number `vocabulary` to it, or name a teacher hf:PATH"
        )
    facts: dict[str, Any] = {} if reading.tokenizer is None else {"tokenizer": reading.tokenizer.to_json()}
    if "generated" in arrays:
        facts["generated"] = read_origin(str(arrays["generated"]), str(path))
    try:
        whole = Documents(arrays["tokens"], arrays["documents"], vocabulary, arrays.get("targets"))
        if len(empty := np.flatnonzero(whole.lengths == 0)):
            raise InputError(
                f"document {empty[0]:,} is empty: it begins and ends at token {whole.documents[empty[0]]:,}. Leave it out."
            )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return _contexts(whole.tokens, whole.documents, arrays.get("targets"), None, reading, vocabulary, facts, str(path))


def _vocabulary(arrays: Mapping[str, NDArray[Any]], path: Path) -> int | None:
    """Return the number of ids that a file says exist, or None.

    Raises:
        InputError: It says no whole number.
    """
    said = arrays.get("vocabulary")
    if said is None:
        return None
    if said.size != 1 or said.dtype.kind not in "iu":
        raise InputError(
            f"{path}: vocabulary must be a whole number, the number of ids, not {said.dtype} {list(said.shape)}"
        )
    return int(said.item())


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read what an .npz file of tokens has; what is not compressed is mapped into memory.

    Raises:
        InputError: It cannot be read, or lacks an array.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no .npz file. numpy.savez writes one, with the arrays tokens and documents.")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ("tokens", "documents") if name not in file.files]
            if not missing:
                names = [name for name in ("documents", "targets", "vocabulary", "generated") if name in file.files]
                mapped = _mapped(path, "tokens")
                return {name: file[name] for name in names} | {"tokens": file["tokens"] if mapped is None else mapped}
            present = ", ".join(file.files) or "none"
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as an .npz file: {error}") from error
    raise InputError(f"{path} has no array {' and no array '.join(missing)}; it has {present}")


def _mapped(path: Path, name: str) -> NDArray[Any] | None:
    """Map an array of an .npz file into memory; None where it is compressed, or empty."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        entry = archive.getinfo(f"{name}.npy")
        if entry.compress_type != zipfile.ZIP_STORED:
            return None
        raw.seek(entry.header_offset + _NAME_LENGTH)
        lengths = np.frombuffer(raw.read(4), "<u2")  # of the name, and of what else stands before the content
        raw.seek(int(lengths.sum()), os.SEEK_CUR)
        if np.lib.format.read_magic(raw) != (1, 0):
            return None
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(raw)
        if fortran or dtype.hasobject or not np.prod(shape):
            return None
        return np.memmap(path, dtype, "r", raw.tell(), shape)


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as UTF-8 text: {error}") from error


def _text_entries(file: Path, reading: TextReading) -> Iterator[Entry]:
    content = _content(file)
    if reading.documents_by == "file":
        yield Entry(str(file), content)
        return
    begin, line = 0, 1
    for gap in [*_BLANK_LINE.finditer(content), None]:
        end = len(content) if gap is None else gap.start()
        if content[begin:end].strip():
            yield Entry(f"{file}:{line}", content[begin:end])
        if gap is not None:
            line += content.count("\n", begin, gap.end())
            begin = gap.end()
