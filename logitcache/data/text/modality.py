"""Text as a modality: a sample is a context of tokens, and a row is one target token."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.data.protocol import Ids, RowLabels
from logitcache.data.text.documents import FACTS, Documents, Stretch
from logitcache.data.text.packing import best_fit
from logitcache.data.text.reading import bytes_of, find_tokenizer, for_images
from logitcache.data.text.rendering import TextInputs, TextRenderer, TextView
from logitcache.errors import FormatVersionError, InputError, LogitCacheError, reason_of, unknown_name
from logitcache.models import Network, logits_of
from logitcache.models.language.causal import CausalNetwork
from logitcache.models.language.load import load_language_network
from logitcache.models.language.save import save_language_network
from logitcache.store import Cache

__all__ = ["TEXT", "Text", "documents_of"]

_ROWS_AT_ONCE = 256  # rows whose logits are computed at a time; fewer for a large vocabulary
_LOGITS_AT_ONCE = 1 << 24  # maximum number of logits at a time, 64 MiB in float32
_LOG = logging.getLogger(__name__)


class Text:
    """Contexts of tokens: [R, V] logits for R target tokens."""

    name, unit, shown, headline = "text", "documents", "tokens", "perplexity"
    software: tuple[str, ...] = ("tokenizers", "transformers")
    test_time_views: tuple[str, ...] = ("none",)
    usual_batch, batched_unit = 8, "sequences"
    views_are_equal = True

    def usual_training(self, student: Any) -> dict[str, Any]:
        """Return the default training settings for text: AdamW with a cosine schedule, and a smaller rate for pretrained students."""
        comes_with_weights = isinstance(student, str) and student.startswith("hf:")
        return {
            "opt": "adamw",
            "lr": 2e-5 if comes_with_weights else 5e-4,
            "betas": (0.9, 0.95),
            "weight_decay": 0.01,
            "norm_weight_decay": 0.0,
            "sched": "cosine",
            "clip_grad": 1.0,
            "epochs": 3,
            "batch_size": 8,
        }

    def counting(self, samples: Documents, loss_on: str) -> Documents:
        """Return a copy of the contexts in which only some rows count in the loss.

        Args:
            samples: Contexts.
            loss_on: Rows that count: `all`; `assistant`, completions of prompts and the assistant's turns in a chat; or `completion`,
                which in a chat is the assistant's last turn only.
        """
        last = samples.answers if samples.completions is None else samples.completions
        return samples.with_loss_on({"all": None, "assistant": samples.answers, "completion": last}[loss_on])

    def held_out(self, samples: Documents, kept: Ids, share: float) -> Ids:
        """Return the last documents, a share of those that have targets, at least one.

        Raises:
            InputError: If none would be left to train on.
        """
        having = kept[np.diff(samples.counted_offsets)[kept] > 0]
        count = max(round(share * len(having)), 1)
        if count >= len(having):
            raise InputError(
                f"--holdout {share:g} of {len(having):,} documents with targets leaves none to train on; use a smaller share, or dump "
                "more documents"
            )
        return having[len(having) - count :]

    def measured_besides(
        self, samples: Documents, loss: float, rows: int, ids: Ids, names: Sequence[str]
    ) -> dict[str, float]:
        """Return the perplexity, and bits per byte if every token except the first of each context has a row.

        The number of bytes is that of the text if all of it is evaluated and the number is recorded, and otherwise that of the tokens'
        text. If neither is known, bits per byte are left out.
        """
        found, lengths = {"perplexity": math.exp(min(loss, 700.0))}, samples.lengths[ids]
        if rows == lengths.sum() - np.count_nonzero(lengths):
            whole = lengths.sum() == len(samples.tokens)
            text_bytes = (samples.facts.get("bytes") if whole else None) or bytes_of(samples, ids, names)
            if text_bytes:
                found["bits_per_byte"] = loss * rows / math.log(2) / text_bytes
        return found

    def make_views(self, recipe: str, count: int, seed: int) -> tuple[TextView, ...]:
        """Return views, which all show the unmodified text; with sampled rows each view draws its own classes.

        Raises:
            UnknownNameError: If a recipe other than `none` is given, because text has no augmentation.
        """
        del seed
        if recipe != "none":
            raise unknown_name("augmentation of text", recipe, ["none"])
        return tuple(TextView(index=index, group=index) for index in range(count))

    def read_view(self, entry: Mapping[str, Any]) -> TextView:
        """Read the manifest entry of a view.

        Raises:
            FormatVersionError: If a newer logitcache made it.
        """
        if entry.get("recipe") != "none" or entry.keys() - {"recipe", "index", "group"}:
            raise FormatVersionError(f"this logitcache cannot replay the text view {dict(entry)}. Upgrade it.")
        return TextView(**entry)

    def choose_inputs(self, samples: Documents, view: TextView, *said: Mapping[str, Any]) -> TextInputs:
        """Choose the length of sequences: `length` if given, else that of the longest context.

        Raises:
            InputError: If options for images are given, a context is longer than `length`, or the network has fewer positions.
        """
        del view
        given = {name for one in said for name, value in one.items() if value is not None}
        if unknown := sorted(given - {"length", "packs", "positions"}):
            raise for_images(unknown[0])
        positions = min((one["positions"] for one in said if one.get("positions")), default=None)
        if positions is not None and samples.longest > positions:
            raise InputError(
                f"the longest context has {samples.longest:,} tokens, but the network has only {positions:,} positions; dump with "
                f"--sequence-length {positions}, or choose a network with more positions (llama:...,context={samples.longest})"
            )
        wanted = next((one["length"] for one in said if one.get("length") is not None), None)
        length = max(samples.longest, 1) if wanted is None else int(wanted)
        _refuse_longer(samples, length)
        return TextInputs(length)

    def read_inputs(self, entry: Mapping[str, Any]) -> TextInputs:
        """Read the manifest entry of the preprocessing."""
        return TextInputs(**entry)

    def for_training(self, inputs: TextInputs, samples: Documents, sequence_length: int | None = None) -> TextInputs:
        """Return preprocessing that packs contexts into sequences of `sequence_length` tokens.

        Defaults to the length that was requested when the text was read.

        Raises:
            InputError: If a context is longer.
        """
        length = sequence_length or max(inputs.length, samples.sequence_length or 0)
        _refuse_longer(samples, length)
        return replace(inputs, packs=True, length=length)

    def for_evaluation(self, inputs: TextInputs, samples: Documents) -> tuple[TextInputs, TextView]:
        """Return preprocessing that packs in the same way, into sequences that hold the longest context."""
        return replace(inputs, length=max(inputs.length, samples.longest)), TextView()

    def arrange(
        self, samples: Documents, inputs: TextInputs, order: Ids, size: int, *, drop_last: bool = False
    ) -> list[Ids]:
        """Divide an epoch's contexts into batches of `size` sequences, packed by best fit over the whole epoch.

        Args:
            samples: Contexts.
            inputs: Preprocessing of the student.
            order: Context ids in the order of the epoch, [N].
            size: Number of sequences per batch.
            drop_last: Whether to leave out a smaller last batch.

        Returns:
            Context ids of each batch, sequence by sequence, so that the renderer packs the same sequences.

        Raises:
            InputError: If a context is longer than a sequence.
        """
        alone = inputs.sequences(samples, order)  # refuses contexts that are too long
        packed = best_fit(samples.lengths[order], inputs.length) if inputs.packs else [[one] for one in alone.tolist()]
        batches = [packed[start : start + size] for start in range(0, len(packed), size)]
        if drop_last and batches and len(batches[-1]) < size:
            batches.pop()
        return [order[[place for sequence in batch for place in sequence]] for batch in batches]

    def divide(self, samples: Documents, inputs: TextInputs, batch: Ids, size: int) -> list[Ids]:
        """Divide a batch from `arrange` into micro-batches of at most `size` sequences, as even as possible."""
        sequence = inputs.sequences(samples, batch)
        count = int(sequence[-1]) + 1
        parts = np.array_split(np.arange(count), -(-count // size))
        return np.split(batch, np.searchsorted(sequence, [part[0] for part in parts[1:]]))

    def renderer(
        self,
        samples: Documents,
        inputs: Sequence[TextInputs],
        *,
        with_digests: bool = False,
        workers: int | None = None,
        device: torch.device | None = None,
        skip_unreadable: bool = False,
    ) -> TextRenderer:
        """Return a renderer of batches of contexts. It uses no worker processes, and contexts are never unreadable."""
        del workers, skip_unreadable
        return TextRenderer(samples, inputs, with_digests=with_digests, device=device)

    def digests(self, samples: Documents, view: TextView, ids: Ids) -> NDArray[np.uint64]:
        """Return a digest of the preceding tokens for each row, [R] uint64."""
        del view
        return samples.row_digests(ids)

    def row_labels(self, samples: Documents, view: TextView, ids: Ids) -> RowLabels:
        """Return the targets of contexts, in the order of `ids`, which is also sequence by sequence and position by position."""
        del view
        rows = samples.counted_rows(ids)
        return RowLabels(rows, torch.from_numpy(samples.labels[rows]))

    def rows(self, output: Any, keep: Tensor | None, *, classes: int, label: str) -> Iterator[Tensor]:
        """Yield the logits of the rows, at most a few hundred at a time, without columns beyond the vocabulary: [r, V] float32.

        Args:
            output: Hidden states `states` [B, L, H] with a `head` that maps states to logits; or logits [B, L, V'], as a tensor or in an
                attribute `logits`.
            keep: Mask of outputs that are rows, [B, L]; None for all.
            classes: Size of the vocabulary, V.
            label: Subject of the error message.

        Raises:
            InputError: If the output holds neither, or fewer than V columns.
        """
        head = getattr(output, "head", None)
        states = output.states if head is not None else logits_of(output)
        shape = None if keep is None else keep.shape
        fits = isinstance(states, Tensor) and states.ndim == 3 and shape in (None, states.shape[:2])
        if not fits or states.is_complex():
            found = f"a tensor {list(states.shape)}" if isinstance(states, Tensor) else type(states).__name__
            places = "B, L" if shape is None else ", ".join(map(str, shape))
            raise InputError(f"{label} must return logits [{places}, {classes}], one row for each token, found {found}")
        at_once = _rows_at_once(classes)
        for some in torch.split(states.flatten(0, 1) if keep is None else states[keep], at_once):
            logits = some if head is None else _apply_head(head, some, at_once)
            if logits.shape[1] < classes:
                raise InputError(
                    f"{label} has logits for {logits.shape[1]:,} ids, but the vocabulary has {classes:,}; use the tokenizer it was trained "
                    "with"
                )
            yield logits[:, :classes].float()

    def network(self, spec: Any, classes: int, weights: str | None) -> Network:
        """Build a network by name and load its weights."""
        return load_language_network(spec, classes, weights)

    def save_network(self, samples: Documents, network: Any, folder: Path, names: Sequence[str]) -> None:
        """Save a causal language model in the format of transformers, with its tokenizer if that is available.

        A model that transformers cannot save is skipped with a warning; its weights are saved elsewhere too.

        Args:
            samples: Contexts.
            network: Network. Only a `CausalNetwork` is saved.
            folder: Folder to write to; existing files of the same names are replaced.
            names: Names of networks that may come with the tokenizer.
        """
        if not isinstance(network, CausalNetwork):
            return
        there = (folder / "tokenizer_config.json").exists()  # it does not change while weights do
        tokenizer = None if there else find_tokenizer(samples, names)
        try:
            save_language_network(network, folder, tokenizer)
        except LogitCacheError:  # a full disk
            raise
        except Exception as error:  # noqa: BLE001  (a user's model may make transformers raise anything)
            _LOG.warning("the student was not saved to %s for transformers: %s", folder, reason_of(error))

    def part(self, samples: Documents, first: int, last: int) -> Stretch:
        """Return contexts `first` to `last` - 1."""
        return samples.part(first, last)

    def arrays(self, samples: Documents) -> Mapping[str, tuple[str, NDArray[Any]]]:
        """Return the arrays that a cache carries: tokens, contexts and targets."""
        return samples.arrays()

    def recorded(self, cache: Cache) -> Documents:
        """Return the data that a cache carries, as a stretch of the whole data set."""
        return documents_of(cache)

    def joined(self, parts: Sequence[Documents]) -> Documents:
        """Concatenate consecutive stretches of one data set."""
        shifts = np.cumsum([0, *(len(one.tokens) for one in parts)])
        return Documents(
            np.concatenate([one.tokens for one in parts]),
            np.append(
                np.concatenate([one.documents[:-1] + shift for one, shift in zip(parts, shifts, strict=False)]),
                shifts[-1],
            ),
            parts[0].vocabulary,
            np.concatenate([one.targets for one in parts]),
            answers=_concatenate_masks([one.answers for one in parts]),
            completions=_concatenate_masks([one.completions for one in parts]),
        )


def _concatenate_masks(parts: Sequence[NDArray[np.bool_] | None]) -> NDArray[np.bool_] | None:
    """Concatenate masks of the tokens of stretches; None if one has no mask."""
    known = [one for one in parts if one is not None]
    return np.concatenate(known) if len(known) == len(parts) else None


def _refuse_longer(samples: Documents, length: int) -> None:
    """Raise InputError if a context is longer than a sequence."""
    if length < samples.longest:
        raise InputError(
            f"the longest context has {samples.longest:,} tokens, more than --sequence-length {length:,}; choose a larger length"
        )


def _rows_at_once(classes: int) -> int:
    """Return the number of rows whose logits are computed at a time, a power of two."""
    return min(_ROWS_AT_ONCE, 1 << (max(_LOGITS_AT_ONCE // classes, 1).bit_length() - 1))


def _apply_head(head: Any, states: Tensor, rows: int) -> Tensor:
    """Return the logits of hidden states, [r, V'].

    Without gradients, as for teachers, states are padded to a fixed number of rows. The last bits of a matrix product depend on its
    shape, and they must not depend on the batch, so that a dump and a live teacher agree.
    """
    missing = 0 if torch.is_grad_enabled() else rows - len(states)
    found: Tensor = head(states if not missing else torch.cat([states, states.new_zeros(missing, states.shape[1])]))
    return found[: len(states)]


def documents_of(cache: Cache) -> Documents:
    """Return the contexts that a text cache carries, to train without the original files.

    In the whole data set, contexts that the cache does not hold are empty.

    Raises:
        CorruptCacheError: If an array is missing or damaged.
        InputError: If the arrays are inconsistent.
    """
    manifest = cache.manifest
    first, length = int(manifest.data["first"]), int(manifest.data["length"])
    tokens, begins, targets = (cache.array(name) for name in ("tokens", "documents", "targets"))
    around = np.zeros(first, np.int64), np.full(length - first - manifest.samples, len(tokens), np.int64)
    facts: dict[str, Any] = {name: manifest.data[name] for name in FACTS if name in manifest.data}
    limit = facts.get("reading", {}).get("sequence_length")
    whole = Documents(
        tokens,
        np.concatenate([around[0], begins, around[1]]),
        len(manifest.classes),
        targets,
        answers=cache.array("answers") if cache.carries("answers") else None,
        completions=cache.array("completions") if cache.carries("completions") else None,
        facts=facts,
        sequence_length=limit,
    )
    return whole if (first, manifest.samples) == (0, length) else whole.part(first, first + manifest.samples)


TEXT = Text()
