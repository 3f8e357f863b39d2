"""Text data sets by name: `tokens:FILE.npz`, `text:PATH`, `jsonl:PATH`, `parquet:PATH`."""

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

__all__ = ["NAMED_TEXT", "OBJECT_KINDS", "open_text", "read_documents", "read_objects"]

_STORIES_IDS = 512  # vocabulary of the tokenizer that made the stories
_NAME_LENGTH = 26  # offset of the length of the name in a zip archive's file header, in bytes
_AT_ONCE = 512  # documents to tokenize at a time
OBJECT_KINDS = ("jsonl", "parquet", "hf")  # sources that `read_objects` reads
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")


class _Tokens(NamedTuple):
    """A tokenized document: ids, [L], and the mask of tokens of answers, [L], or None for plain text."""

    ids: NDArray[np.integer[Any]]
    answers: NDArray[np.bool_] | None


def open_text(kind: str, path: str, reading: TextReading | None = None) -> Documents:
    """Open a text data set.

    Args:
        kind: Kind of source: `tokens`, an .npz file with `tokens` [T], `documents` [D + 1] (index of each document's first token) and
            optionally `targets` [T] bool and `vocabulary`; `text`, text files with one document each or one per paragraph; `jsonl`, one
            JSON object per line; `parquet` or `hf` (see `open_hub_table`), one document per row. Objects and rows have one of the forms
            in `forms`.
        path: Path of a file. Except for `tokens`, also a folder or a pattern; files are read in the order of their names.
        reading: Reading options.

    Raises:
        InputError: If it cannot be read, a key is missing, a document is empty, or an id is not in the vocabulary; the message names the
            file and line.
    """
    chosen = reading or TextReading()
    if kind == "tokens":
        return _open_tokens(Path(path).expanduser(), chosen)
    if chosen.tokenizer is None:
        raise InputError(
            f"{kind}:{path} is text and needs a tokenizer. A teacher hf:PATH comes with its own; otherwise pass --tokenizer hf:PATH, or "
            "use tokens:FILE.npz."
        )
    if kind == "text":
        entries = (entry for file in matching_files(path, ".txt") for entry in _text_entries(file, chosen))
    else:
        entries = (as_document(value, where) for where, value in read_objects(kind, path))
    return read_documents(entries, chosen, f"{kind}:{path}")


def read_objects(kind: str, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the location and the value of each object in files.

    Args:
        kind: Kind of source: `jsonl`, `parquet` or `hf`.
        path: Path of a file or a folder, or a pattern; for `hf` as in `open_hub_table`.

    Raises:
        InputError: If they cannot be read.
    """
    if kind == "hf":
        yield from hub_objects(path)
        return
    objects = {"jsonl": jsonl_objects, "parquet": parquet_objects}[kind]
    for file in matching_files(path, f".{kind}"):
        yield from objects(file)


def open_stories(split: str, reading: TextReading | None = None) -> Documents:
    """Open the stories that ship with logitcache, which their teacher generated: 60,024 training and 20,346 test tokens."""
    file = resources.files("logitcache.demo_text") / f"{split}.npz"
    with resources.as_file(file) as path:
        return _open_tokens(path, replace(reading or TextReading(), vocabulary=_STORIES_IDS))


NAMED_TEXT: dict[str, Callable[[str, TextReading | None], Documents]] = {"stories-mini": open_stories}


def read_documents(entries: Iterable[Entry], reading: TextReading, name: str) -> Documents:
    """Tokenize documents and divide them into contexts.

    Args:
        entries: Documents.
        reading: Reading options, with a tokenizer.
        name: Name of the data set in messages.

    Raises:
        InputError: If a document is empty, or none remains.
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
    if all(text_bytes) and reading.too_long == "split":  # unknown for chats and for documents that are cut or dropped
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
        # A token that extends into the completion belongs to it, even if it begins in the prompt.
        answers = None if entry.answer is None else ends > entry.answer
        found = _Tokens(ids, answers)
        yield _with_end_token(found, tokenizer.facts.eos) if entry.ends else found


def _with_end_token(document: _Tokens, end: int | None) -> _Tokens:
    """Return a document with an end-of-sequence token after its answer; unchanged if the tokenizer has no such token."""
    if end is None or document.answers is None:
        return document
    ids, answers = document.ids, document.answers
    if len(ids) and ids[-1] == end:  # the tokenizer has already added it
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
    """Divide documents into contexts of the permitted length.

    Args:
        tokens: Ids of all documents, concatenated, [T].
        begins: Index of each document's first token, and T, [D + 1].
        answers: Mask of the tokens of answers, [T]; None if all are.
        last: Mask of the tokens of each document's last answer, [T]; None if that is `answers`.
        reading: Reading options.
        vocabulary: Size of the vocabulary.
        facts: Further facts for the manifest.
        name: Name of the data set in messages.
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
        begins = _split_long(np.array([0, len(tokens)]) if reading.pack == "stream" else begins, limit)
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
        raise InputError(f"{name} has no target tokens: every context is a single token, or none has an answer")
    return found


def _last_runs(answers: NDArray[np.bool_], begins: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the mask of the tokens of each document's last answer, its last run of answer tokens, [T].

    Args:
        answers: Mask of the tokens of answers, [T].
        begins: Index of each document's first token, and T, [D + 1].
    """
    starts = answers & ~np.append(False, answers[:-1])
    starts[begins[:-1]] |= answers[begins[:-1]]
    run = np.cumsum(starts)  # number of the run that an answer token belongs to
    last: NDArray[np.bool_] = answers & (run == np.repeat(run[begins[1:] - 1], np.diff(begins)))
    return last


def _split_long(begins: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return boundaries with contexts longer than `limit` tokens divided into ones of `limit` tokens and a remainder."""
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
            f"{path} has a vocabulary of {own:,} ids, but {reading.vocabulary:,} are expected; its tokens were made with another tokenizer"
        )
    vocabulary = reading.vocabulary or own
    if vocabulary is None and reading.tokenizer is not None:
        vocabulary = len(reading.tokenizer)
    if vocabulary is None:
        raise InputError(
            f"{path} does not give the size of its vocabulary; add an array `vocabulary` with the number of ids, or pass a teacher hf:PATH"
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
    """Return the size of the vocabulary that a file records, or None.

    Raises:
        InputError: If the record is not an integer.
    """
    said = arrays.get("vocabulary")
    if said is None:
        return None
    if said.size != 1 or said.dtype.kind not in "iu":
        raise InputError(
            f"{path}: vocabulary must be an integer, the number of ids, not {said.dtype} {list(said.shape)}"
        )
    return int(said.item())


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of an .npz file of tokens; uncompressed tokens are memory-mapped.

    Raises:
        InputError: If it cannot be read, or lacks an array.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is not an .npz file. Write one with numpy.savez, with the arrays tokens and documents."
        )
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
    """Return a memory map of an array in an .npz file, or None if it is compressed or empty."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        entry = archive.getinfo(f"{name}.npy")
        if entry.compress_type != zipfile.ZIP_STORED:
            return None
        raw.seek(entry.header_offset + _NAME_LENGTH)
        lengths = np.frombuffer(raw.read(4), "<u2")  # of the name and of the extra field before the content
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
