"""Dumps of teachers that run elsewhere: log-probabilities come from a server over HTTP, or from files of another tool."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from logitcache.data import kept_of, modality_of, whole_of
from logitcache.dump import job as jobs
from logitcache.dump.job import TOP_K, Job, choose_encoding, make_manifest, make_slugs, refuse_equal_views, renderer_of
from logitcache.dump.samples import choose_samples
from logitcache.dump.settings import DumpSettings
from logitcache.encoding import TopKEncoding
from logitcache.errors import InputError
from logitcache.models.language.tokenizer import load_tokenizer
from logitcache.store import open_place, read_manifest
from logitcache.teachers.forward import Teachers
from logitcache.teachers.given import AskingAhead, GivenTeacher, RowSource
from logitcache.teachers.servers.server import Asking, Server, connect, is_server
from logitcache.teachers.servers.witness import TOLERANCE

__all__ = ["given_entry", "given_job", "prepare"]

_OF_FORWARD = {  # settings of the forward pass, which runs elsewhere
    "teacher_weights": "--teacher-weights",
    "average": "--average",
    "amp": "--amp",
    "compiled": "--compile",
    "deterministic": "--deterministic",
}
# Option of a server for the maximum number of tokens, prompt and output.
_LENGTH_OPTIONS = {"vllm": "--max-model-len", "sglang": "--context-length"}
_COMPARED = 256  # tokens of text on which to compare two tokenizers
_LOG = logging.getLogger(__name__)


def prepare(
    teacher: str | nn.Module | Sequence[str | nn.Module], data: Any, out: str | Path, settings: DumpSettings
) -> Job:
    """Open the data and the teacher, local or behind a server, and make the manifest. Nothing is written.

    Raises the same errors as `dump_logits`.
    """
    named = list(teacher) if isinstance(teacher, list | tuple) else [teacher]
    if not any(map(is_server, named)):
        return jobs.prepare(teacher, data, out, settings)
    if len(named) > 1:
        raise InputError("a teacher behind a server must be the only one; dump the others into separate caches")
    _refuse_options(str(named[0]), settings)
    samples, reasons = choose_samples(data, named[0], out, settings)
    asking = Asking(settings.concurrency, settings.request_timeout, settings.server_patience)
    server = connect(str(named[0]), asking)
    try:
        _refuse_other_data(server.name, samples)
        _refuse_longer_contexts(server, samples)
        _compare_tokenizers(server, settings.tokenizer, samples)
        found = given_job(
            server,
            samples,
            data,
            out,
            settings,
            weights=server.url,
            by=server.kind,
            needs=server.preprocessing,
            versions={server.kind: server.version} if server.version else {},
        )
    except BaseException:
        server.close()
        raise
    return replace(found, reasons=reasons, tolerance=TOLERANCE)


def given_job(
    source: RowSource,
    samples: Any,
    data: Any,
    out: str | Path,
    settings: DumpSettings,
    *,
    weights: str,
    by: str,
    gives: Mapping[str, Any] | None = None,
    needs: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    own: bool = True,
) -> Job:
    """Prepare a dump of log-probabilities.

    Args:
        source: Source of the log-probabilities.
        samples: Documents.
        data: Name or object that they were opened from.
        out: Path of the cache.
        settings: Settings of the dump.
        weights: Address or path of the source, for the manifest.
        by: Kind of the server, or format of the files.
        gives: Further facts about the rows for the manifest.
        needs: Limits of the teacher: `positions`, the maximum number of tokens in a document.
        versions: Versions of the software that computed the rows.
        own: Whether each row includes the log-probability of its own token; otherwise the token gets its share of the rest.

    Raises:
        LogitCacheError: If a setting does not apply, or `out` cannot be read.
    """
    modality = modality_of(samples)
    views = tuple(modality.make_views(settings.augment, settings.views, settings.seed))
    if settings.encoding in ("full", "sampled"):
        raise InputError(
            f"{source.name} provides only the largest log-probabilities; leave out --encoding {settings.encoding}"
        )
    most = settings.top_k or min(TOP_K, max(len(samples.classes) - 2, 1))
    chosen = choose_encoding(replace(settings, top_k=most), len(samples.classes))
    assert isinstance(chosen, TopKEncoding)  # a number of logits is given
    refuse_equal_views(modality, settings, chosen)
    encoding = replace(chosen, mass_only=True)
    inputs = modality.choose_inputs(samples, views[0], {}, needs or {})
    entry = given_entry(source.name, weights, inputs, {"by": by} | dict(gives or {}))
    begun, where = read_manifest(open_place(out)), torch.device("cpu")
    if settings.batch_size == "auto":
        settings = replace(settings, batch_size=None)
    manifest = make_manifest(settings, samples, data, views, [entry], encoding, begun, where, versions)
    teacher = GivenTeacher(
        source, inputs, k=encoding.k, classes=len(samples.classes), concurrency=settings.concurrency, own=own
    )
    renderer = AskingAhead(renderer_of(modality, samples, [inputs], settings, where), teacher, whole_of(samples)[1])
    teachers = {entry["slug"]: Teachers([teacher])}
    return Job(manifest, modality, samples, views, encoding, teachers, renderer, {}, {}, given=teacher)


def given_entry(name: str, weights: str, inputs: Any, gives: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest entry of a teacher whose log-probabilities are computed elsewhere.

    Args:
        name: Name of the teacher.
        weights: Address or path of the source.
        inputs: Preprocessing, as far as it is known.
        gives: Facts about the rows, including `by`, the kind of the source.
    """
    return {
        "slug": make_slugs([name])[0],
        "name": name,
        "weights": weights,
        "weights_sha256": None,
        "class_map": None,
        "preprocessing": inputs.to_json(),
        "members": [],
        "gives": {"by": gives["by"], "values": "log-probabilities", "temperature": 1.0, "rest": "mass"} | dict(gives),
    }


def _refuse_options(spec: str, settings: DumpSettings) -> None:
    """Raise InputError if an option concerns the forward pass, which runs elsewhere."""
    if named := [option for name, option in _OF_FORWARD.items() if getattr(settings, name)]:
        raise InputError(f"{named[0]} is for a teacher that runs locally, but {spec} runs on its server; leave it out")


def _refuse_other_data(name: str, samples: Any) -> None:
    if modality_of(samples).name != "text":
        raise InputError(f"{name} is a teacher for text, but this data set is not text")


def _refuse_longer_contexts(server: Server, samples: Any) -> None:
    if server.positions is not None and samples.longest > server.positions:
        raise InputError(
            f"the longest context has {samples.longest:,} tokens, but {server.name} accepts at most {server.positions:,}; dump with "
            f"--sequence-length {server.positions}, or start the server with `{_LENGTH_OPTIONS[server.kind]} {samples.longest + 1}` or more"
        )


def _compare_tokenizers(server: Server, tokenizer: str | None, samples: Any) -> None:
    """Compare the server's tokenizer with that of the data on some text.

    Raises:
        InputError: If their ids differ.
    """
    if tokenizer is None:
        _LOG.warning(
            "%s: the tokenizer of the data is unknown, so it cannot be compared with the server's. Make sure that they are the same, or "
            "pass it with --tokenizer hf:PATH.",
            server.name,
        )
        return
    ours, first = load_tokenizer(tokenizer), kept_of(samples)[0]
    begin, end = samples.documents[first], samples.documents[first + 1]
    text = ours.decode(samples.tokens[begin : min(end, begin + _COMPARED)].tolist(), skip_special_tokens=True)
    expected = ours(text, add_special_tokens=False)["input_ids"]
    found = server.tokenize(text)
    if found is None:
        _LOG.warning(
            "%s cannot tokenize text on request, so its tokenizer was not compared with %s", server.name, tokenizer
        )
    elif found != expected and found[1:] != expected:  # the server may prepend a beginning-of-sequence token
        place = next((n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(expected))
        raise InputError(
            f"{server.name} has a different tokenizer from {tokenizer}: it encodes the same text as {len(found)} tokens instead of "
            f"{len(expected)}, and they differ from token {place} on. Pass the server's tokenizer with --tokenizer hf:PATH."
        )
