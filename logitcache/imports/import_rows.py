"""`logitcache import`: make a cache of rows that another tool, or a server, has computed already.

The source stands where a teacher stands in a dump, so that an import is continued, probed and verified as a dump is.
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
from logitcache.store import Cache, open_cache
from logitcache.teachers.given import KnownRows

__all__ = ["import_rows"]

_MOST = 64  # of the largest that are stored if nothing is said
_TRIED = 64  # documents that are looked at before anything is written
_OPTIONS = {  # which kinds an option is for
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
    """Make a cache of rows that were computed elsewhere, and verify it.

    {arguments}

    Returns:
        The finished cache.

    Raises:
        UnknownNameError: There is no such kind or setting.
        InputError: The source cannot be read, does not say what must be known of it, or is not aligned with its tokens.
        LogitCacheError: The cache cannot be written.
    """
    chosen = ImportSettings.over(settings, options)
    _refuse_options(kind, chosen)
    words = to_command_line(ImportRequest(kind=kind, source=source, out=out), chosen)
    line = "" if words is None else shlex.join(["logitcache", "import", *words])
    do = import_images if kind in IMAGE_KINDS else _import_text
    do(kind, source, out, chosen, line, on_progress)
    report = verify_cache(out, data=chosen.data)
    if not report.ok:
        raise CorruptCacheError(
            f"{out} was imported, and is not what was read: {report.problems or report.pixels_problem}. Import it again."
        )
    return open_cache(out)


def _import_text(
    kind: str, source: str | Path, out: str | Path, chosen: ImportSettings, line: str, on_progress: OnProgress
) -> None:
    """Write a cache of rows of text, or go on where that was stopped."""
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
    """Rows by the tokens of their document.

    Attributes:
        name: Name of the teacher.
    """

    def __init__(self, name: str, reader: Reader, samples: Documents, source: str | Path) -> None:
        self.name, self._reader, self._source = name, reader, source
        spans = zip(samples.documents[:-1].tolist(), samples.documents[1:].tolist(), strict=True)
        self._numbers = {_digest(samples.tokens[begin:end]): number for number, (begin, end) in enumerate(spans)}

    def ask(self, tokens: Sequence[int], largest: int, subject: str, /) -> KnownRows:
        """Return what the source has of a document."""
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
    """Raise where an option is for another kind, or one that is needed is missing."""
    if kind not in KINDS:
        raise unknown_name("kind of source", kind, KINDS)
    for name, kinds in _OPTIONS.items():
        if getattr(settings, name) is not None and kind not in kinds:
            raise InputError(f"{settings.flag(name)} is for {', '.join(kinds)}: leave it out for {kind}")
    temperature = settings.rows_temperature
    if kind in _OPTIONS["rows_temperature"] and temperature is None:
        raise InputError(
            f"{kind} does not record the temperature of its rows: find out, and say --rows-temperature 1 if it was 1; others cannot be "
            "imported, because of the classes that were not kept only the mass at 1 would be known"
        )
    if temperature not in (None, 1):
        raise InputError(
            f"rows at temperature {temperature:g} cannot be imported: log-probabilities of some classes cannot be brought to temperature 1 "
            "without those of the others"
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
    """Return the number of ids that exist.

    Raises:
        InputError: Nobody says it, or two say otherwise.
    """
    said = {"--vocabulary": settings.vocabulary, "the source": reader.vocabulary}
    known = {name: count for name, count in said.items() if count is not None}
    if tokenizer is not None:
        if known and min(known.values()) < len(tokenizer):
            raise InputError(
                f"{settings.tokenizer} has {len(tokenizer):,} ids, and {next(iter(known))} says {min(known.values()):,}"
            )
        return len(tokenizer)
    if not known:
        raise InputError(
            "the source does not say how many ids exist: name the tokenizer with --tokenizer hf:PATH, or give --vocabulary N"
        )
    if len({*known.values()}) > 1:
        raise InputError(f"the source has {reader.vocabulary:,} ids, and --vocabulary says {settings.vocabulary:,}")
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
        raise InputError(f"{source} has documents, and none of their tokens has a row")
    return found


def _tried(
    reader: Reader, samples: Documents, source: str | Path
) -> list[tuple[NDArray[np.int64], NDArray[np.bool_], KnownRows]]:
    """Read the rows of the first documents: tokens, which of them but the first are targets, and rows of each."""
    found = []
    for number in np.flatnonzero(np.diff(samples.offsets))[:_TRIED].tolist():
        begin, end = samples.documents[number : number + 2]
        rows = rows_of_document(reader, number, _MOST, str(source))
        if len(rows.ids) != end - begin - 1:
            raise InputError(f"document {number:,} has {end - begin:,} tokens and {len(rows.ids):,} rows")
        found.append((samples.tokens[begin:end].astype(np.int64), samples.targets[begin + 1 : end], rows))
    return found


def _largest_of(tried: Sequence[tuple[Any, NDArray[np.bool_], KnownRows]]) -> int:
    """Return how many of the largest every row has beside its own token, which may be one of them."""
    counts = np.concatenate([(rows.ids >= 0).sum(1)[targets] for _, targets, rows in tried])
    return max(int(counts.min()) - 1, 1)


def _refuse_misaligned(
    tried: Sequence[tuple[NDArray[np.int64], NDArray[np.bool_], KnownRows]], source: str | Path
) -> None:
    """Refuse rows that are likelier those of the tokens before or after the ones they are taken for.

    A row's log-probability of the token that it predicts is compared with that of its neighbors; of a token that a row does not name it is
    the row's smallest.
    """
    means = {}
    for shift in (0, -1, 1):
        values = list(_own_logprobs(tried, shift))
        means[shift] = float(np.mean(np.concatenate(values))) if values else -np.inf
    best = max(means, key=lambda shift: means[shift])
    if best:
        where = "before" if best < 0 else "after"
        raise InputError(
            f"the rows of {source} are not aligned as they should be: on average they give the token that they are taken for "
            f"{means[0]:.2f} nats, and the one {where} it {means[best]:.2f}"
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
