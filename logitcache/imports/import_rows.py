"""`logitcache import`: make a cache from rows that another tool or a server has already computed.

The source takes the place of a teacher in a dump, so an import is resumed, probed and verified in the same way as a dump.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.caches.verify import verify_cache
from logitcache.data import Documents
from logitcache.data.text.tokenizer import Tokenizer
from logitcache.dump.dump import run_job
from logitcache.dump.given import given_job
from logitcache.dump.settings import DumpSettings
from logitcache.errors import CorruptCacheError, InputError, unknown_name
from logitcache.imports.axolotl import AxolotlReader
from logitcache.imports.distillkit import DistillKitReader
from logitcache.imports.import_images import import_images
from logitcache.imports.llamacpp import LlamaCppReader
from logitcache.imports.reader import Reader, documents_of, rows_of_document
from logitcache.imports.responses import ResponseReader
from logitcache.imports.settings import IMAGE_KINDS, KINDS, TEXT_KINDS, ImportRequest, ImportSettings
from logitcache.models.language.tokenizer import load_tokenizer
from logitcache.runtime.progress import Callbacks, OnProgress, combine_callbacks, silent
from logitcache.runtime.settings import show_options, to_command_line
from logitcache.store import Cache, open_cache, open_place, read_manifest
from logitcache.teachers.given import KnownRows

__all__ = ["import_rows"]

_MOST = 64  # default limit for top_k
_TRIED = 64  # documents to check before anything is written
_OPTIONS = {  # kinds that accept an option
    "tokenizer": TEXT_KINDS,
    "vocabulary": TEXT_KINDS,
    "data": IMAGE_KINDS,
    "views": IMAGE_KINDS,
    "rows_temperature": ("distillkit", "axolotl", "fkd"),
    "alignment": ("axolotl",),
    "field_messages": ("axolotl",),
    "logprobs_field": ("axolotl",),
    "bos": ("llama.cpp",),
    "codec": ("distillkit",),
}


@show_options(ImportRequest, ImportSettings)
def import_rows(
    kind: str,
    source: str | Path,
    out: str | Path,
    *,
    settings: ImportSettings | None = None,
    on_progress: OnProgress = silent,
    **options: Any,
) -> Cache:
    """Make a cache from rows that were computed elsewhere, and verify it.

    {arguments}

    Returns:
        The finished cache.

    Raises:
        UnknownNameError: The kind or a setting is unknown.
        InputError: The source cannot be read, required settings are missing, or rows and tokens are not aligned.
        LogitCacheError: The cache cannot be written.
    """
    chosen = ImportSettings.over(settings, options)
    _refuse_options(kind, chosen)
    read_manifest(open_place(out))  # refuses a path that is not a cache before the source is read
    words = to_command_line(ImportRequest(kind=kind, source=source, out=out), chosen)
    line = "" if words is None else shlex.join(["logitcache", "import", *words])
    do = import_images if kind in IMAGE_KINDS else _import_text
    do(kind, source, out, chosen, line, on_progress)
    report = verify_cache(out, data=chosen.data)
    if not report.ok:
        raise CorruptCacheError(
            f"{out} was imported, but does not match what was read: {report.problems or report.pixels_problem}. Import it again."
        )
    return open_cache(out)


def _import_text(
    kind: str, source: str | Path, out: str | Path, chosen: ImportSettings, line: str, on_progress: OnProgress
) -> None:
    """Write or resume a cache of rows of text."""
    tokenizer = (
        None if chosen.tokenizer is None else Tokenizer(load_tokenizer(chosen.tokenizer), source=chosen.tokenizer)
    )
    reader = _reader(kind, source, chosen, tokenizer)
    samples = _documents(reader, source, _vocabulary(reader, chosen, tokenizer), tokenizer)
    rows = _ImportedRows(f"{kind}:{chosen.teacher_name or Path(source).stem}", reader, samples, source)
    tried = _tried(reader, samples, source)
    _refuse_misaligned(tried, source)
    most = min(_MOST, _largest_of(tried), len(samples.classes) - 2)
    top_k = chosen.top_k or most
    job = given_job(
        rows,
        samples,
        samples,
        out,
        DumpSettings(top_k=top_k, precision=chosen.precision, block_rows=chosen.block_rows, concurrency=1),
        weights=str(source),
        by=kind,
        gives=({} if reader.own else {"label": "among the largest"}) | reader.facts,
        own=reader.own,
    )
    run_job(job, out, line, DumpSettings(), combine_callbacks(Callbacks(), on_progress=on_progress))


class _ImportedRows:
    """Looks up rows by the tokens of their document.

    Attributes:
        name: Name of the teacher.
    """

    def __init__(self, name: str, reader: Reader, samples: Documents, source: str | Path) -> None:
        self.name, self._reader, self._source = name, reader, source
        spans = zip(samples.documents[:-1].tolist(), samples.documents[1:].tolist(), strict=True)
        self._numbers = {_digest(samples.tokens[begin:end]): number for number, (begin, end) in enumerate(spans)}

    def ask(self, tokens: Sequence[int], largest: int, subject: str, /) -> KnownRows:
        """Return the rows of a document."""
        del subject
        number = self._numbers[_digest(np.array(tokens))]
        return rows_of_document(self._reader, number, largest, str(self._source))

    def stop(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _digest(tokens: NDArray[Any]) -> bytes:
    return blake2b(tokens.astype("<u4").tobytes(), digest_size=16).digest()


def _refuse_options(kind: str, settings: ImportSettings) -> None:
    """Raise if an option is for another kind of source, or a required one is missing."""
    if kind not in KINDS:
        raise unknown_name("kind of source", kind, KINDS)
    for name, kinds in _OPTIONS.items():
        if getattr(settings, name) is not None and kind not in kinds:
            raise InputError(f"{settings.flag(name)} is only for {', '.join(kinds)}; leave it out for {kind}")
    temperature = settings.rows_temperature
    if kind in _OPTIONS["rows_temperature"] and temperature is None:
        raise InputError(
            f"{kind} does not record the temperature of its rows; find it out, and set --rows-temperature 1 if it was 1. Other "
            "temperatures cannot be imported, because the mass of the classes that were not kept is only known at that temperature"
        )
    if temperature not in (None, 1):
        raise InputError(
            f"rows at temperature {temperature:g} cannot be imported: they cannot be converted to temperature 1 without the classes that "
            "were not kept"
        )


def _reader(kind: str, source: str | Path, settings: ImportSettings, tokenizer: Tokenizer | None) -> Reader:
    if kind == "distillkit":
        return DistillKitReader(source, settings.codec)
    if kind == "axolotl":
        fields = settings.field_messages or "messages", settings.logprobs_field or "logprobs"
        return AxolotlReader(source, settings.alignment, tokenizer, *fields)
    if kind == "llama.cpp":
        return LlamaCppReader(source, settings.bos)
    return ResponseReader(kind, source)


def _vocabulary(reader: Reader, settings: ImportSettings, tokenizer: Tokenizer | None) -> int:
    """Return the size of the vocabulary.

    Raises:
        InputError: It is unknown, or there are contradictory values.
    """
    said = {"--vocabulary": settings.vocabulary, "the source": reader.vocabulary}
    known = {name: count for name, count in said.items() if count is not None}
    if tokenizer is not None:
        if known and min(known.values()) < len(tokenizer):
            raise InputError(
                f"{settings.tokenizer} has {len(tokenizer):,} ids, but {next(iter(known))} has {min(known.values()):,}"
            )
        return len(tokenizer)
    if not known:
        raise InputError(
            "the source does not record the size of the vocabulary; set --tokenizer hf:PATH or --vocabulary N"
        )
    if len({*known.values()}) > 1:
        raise InputError(f"the source has {reader.vocabulary:,} ids, but --vocabulary is {settings.vocabulary:,}")
    return next(iter(known.values()))


def _documents(reader: Reader, source: str | Path, vocabulary: int, tokenizer: Tokenizer | None) -> Documents:
    """Read the tokens of all documents."""
    tokens, targets = list[NDArray[Any]](), list[NDArray[np.bool_]]()
    for one in documents_of(reader, str(source)):
        tokens.append(one.tokens.astype(np.uint32))
        targets.append(np.ones(len(one.tokens), np.bool_) if one.targets is None else one.targets)
    if not tokens:
        raise InputError(f"{source} has no documents")
    begins = np.cumsum([0, *map(len, tokens)])
    facts: Mapping[str, Any] = {} if tokenizer is None else {"tokenizer": tokenizer.to_json()}
    found = Documents(np.concatenate(tokens).astype(np.int64), begins, vocabulary, np.concatenate(targets), facts=facts)
    if not len(found.labels):
        raise InputError(f"{source} has documents, but no token has a row")
    return found


def _tried(
    reader: Reader, samples: Documents, source: str | Path
) -> list[tuple[NDArray[np.int64], NDArray[np.bool_], KnownRows]]:
    """Read the first documents; return the tokens, the targets without the first token, and the rows of each."""
    found = []
    for number in np.flatnonzero(np.diff(samples.offsets))[:_TRIED].tolist():
        begin, end = samples.documents[number : number + 2]
        rows = rows_of_document(reader, number, _MOST, str(source))
        if len(rows.ids) != end - begin - 1:
            raise InputError(f"document {number:,} has {end - begin:,} tokens but {len(rows.ids):,} rows")
        found.append((samples.tokens[begin:end].astype(np.int64), samples.targets[begin + 1 : end], rows))
    return found


def _largest_of(tried: Sequence[tuple[Any, NDArray[np.bool_], KnownRows]]) -> int:
    """Return the number of largest classes that every row has without its own token, which may be one of them."""
    counts = np.concatenate([(rows.ids >= 0).sum(1)[targets] for _, targets, rows in tried])
    return max(int(counts.min()) - 1, 1)


def _refuse_misaligned(
    tried: Sequence[tuple[NDArray[np.int64], NDArray[np.bool_], KnownRows]], source: str | Path
) -> None:
    """Raise InputError if the rows fit the tokens before or after their own better.

    Compares a row's log-probability of the token that it predicts with those of the neighboring tokens. For a token that is not in a row,
    the row's smallest log-probability is used.
    """
    means = {}
    for shift in (0, -1, 1):
        values = list(_own_logprobs(tried, shift))
        means[shift] = float(np.mean(np.concatenate(values))) if values else -np.inf
    best = max(means, key=lambda shift: means[shift])
    if best:
        where = "before" if best < 0 else "after"
        raise InputError(
            f"the rows of {source} are not aligned with the tokens: their mean log-probability is {means[0]:.2f} nats for the token "
            f"itself, but {means[best]:.2f} for the one {where} it"
        )


def _own_logprobs(
    tried: Sequence[tuple[NDArray[np.int64], NDArray[np.bool_], KnownRows]], shift: int
) -> Iterator[NDArray[np.float64]]:
    for tokens, targets, rows in tried:
        at = np.flatnonzero(targets)
        at = at[(at + 1 + shift >= 0) & (at + 1 + shift < len(tokens))]
        if not len(at):
            continue
        is_token = rows.ids[at] == tokens[at + 1 + shift, None]
        named = np.where(is_token, rows.logprobs[at], -np.inf).max(1)
        least = np.where(rows.ids[at] >= 0, rows.logprobs[at], np.inf).min(1)
        yield np.maximum(np.where(is_token.any(1), named, least), -100.0).astype(np.float64)
