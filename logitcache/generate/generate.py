"""`logitcache generate`: complete the prompts of a data set with a trained student or a teacher."""

import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from logitcache.data import as_samples
from logitcache.data.exclusion import Reading
from logitcache.data.text.documents import Documents, token_dtype
from logitcache.data.text.prompts import Prompt, prompts_in, read_prompts
from logitcache.data.text.reading import TEXT_KINDS, TextReading
from logitcache.data.text.sources import OBJECT_KINDS
from logitcache.data.text.tokenizer import Tokenizer
from logitcache.errors import InputError
from logitcache.generate.completions import Completion, complete_all, mean_rouge
from logitcache.generate.rouge import rouge_l
from logitcache.generate.settings import GenerateRequest, GenerateSettings
from logitcache.models import hash_weights
from logitcache.models.language.causal import CausalNetwork
from logitcache.models.language.generate import Sampling
from logitcache.models.language.load import load_language_network
from logitcache.models.language.tokenizer import load_tokenizer
from logitcache.runs.lineage import run_of, teachers_of_run
from logitcache.runtime.device import pick_device
from logitcache.runtime.files import local_path, write_bytes
from logitcache.runtime.progress import OnProgress, Progress, silent
from logitcache.runtime.settings import show_options

__all__ = ["Generated", "generate_completions"]


@dataclass(frozen=True, slots=True)
class Generated:
    """Result of a generation.

    Attributes:
        completions: Completions, in the order of the prompts.
        left_out: Number of prompts longer than `max_prompt_tokens`, which were skipped.
        rouge_l: Mean ROUGE-L over the completions with references, in [0, 1]; None if it was not requested.
        seconds: Duration of the generation in seconds.
        out: File that was written, or None.
    """

    completions: list[Completion]
    left_out: int
    rouge_l: float | None
    seconds: float
    out: Path | None

    @property
    def tokens(self) -> int:
        """Number of generated tokens."""
        return sum(len(one.ids) for one in self.completions)


@show_options(GenerateRequest, GenerateSettings)
def generate_completions(
    model: str | Path | nn.Module,
    data: Any,
    *,
    out: str | Path | None = None,
    on_progress: OnProgress = silent,
    **options: Any,
) -> Generated:
    """Complete prompts with a trained student or a teacher.

    {arguments}

    Raises:
        UnknownNameError: A setting is unknown.
        InputError: The model or data cannot be used, a prompt is too long, or the package rouge-score is missing.
    """
    settings = GenerateSettings(**options)
    target = None if out is None else _target(out)
    score = rouge_l() if settings.rouge else None
    device = pick_device(settings.device)
    source = model if isinstance(model, nn.Module) else language_model_of(model)
    tokenizer = _tokenizer(source, settings.tokenizer)
    prompts = _prompts(data, tokenizer, settings)
    chosen = [one for one in prompts if len(one.ids) <= (settings.max_prompt_tokens or len(one.ids))]
    if not chosen:
        raise InputError(
            f"cannot generate: all {len(prompts):,} prompts are longer than --max-prompt-tokens {settings.max_prompt_tokens}"
        )
    if settings.rouge and not any(one.references for one in chosen):
        raise InputError("--rouge requires references, but this data has none; leave it out")
    network = load_language_network(source, len(tokenizer)).module
    if not isinstance(network, CausalNetwork):
        raise InputError(f"{type(network).__name__} cannot generate; expected a causal language model of transformers")
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.seed)
    began = time.perf_counter()
    made = complete_all(
        network.to(device),
        tokenizer.wrapped,
        chosen,
        sampling,
        vocabulary=len(tokenizer),
        batch_size=settings.batch_size,
        score=score,
        on_batch=lambda done: on_progress(Progress("generate", done, len(chosen), "prompts")),
    )
    seconds = time.perf_counter() - began
    if target is not None:
        text = target.suffix == ".jsonl"
        content = _lines(made, tokenizer) if text else _tokens(made, tokenizer, _origin(source, network, sampling))
        write_bytes(target, content)
    return Generated(made, len(prompts) - len(chosen), mean_rouge(made), seconds, target)


def language_model_of(model: str | Path) -> str:
    """Return the name of the language model in a run or folder, `hf:...`.

    Args:
        model: Run folder, model folder of transformers, or an `hf:` name, which is returned unchanged.

    Raises:
        InputError: It is none of these, or the run has no language model.
    """
    name = str(model)
    if name.partition(":")[0] == "hf":
        return name
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return f"hf:{folder}"
    if (folder / "run.json").is_file():
        if (folder / "student-hf/config.json").is_file():
            return f"hf:{folder / 'student-hf'}"
        raise InputError(
            f"{folder} has no folder student-hf: the run is unfinished, or its student is not a language model of transformers"
        )
    raise InputError(
        f"{name} is not a run or a model folder of transformers; expected RUN, FOLDER, hf:PATH or hf:FILE.gguf"
    )


def _target(out: str | Path) -> Path:
    path = local_path(out)
    if path.suffix not in (".jsonl", ".npz"):
        raise InputError(f"--out {out} must end in .jsonl (text) or .npz (tokens)")
    if path.exists():
        raise InputError(f"{path} already exists and was not changed; use another --out or remove it.")
    return path


def _tokenizer(source: str | nn.Module, given: Any) -> Tokenizer:
    """Return the given tokenizer, or the model's own."""
    if given is not None and not isinstance(given, str):
        return Tokenizer(given)
    name = source if given is None else given
    if not isinstance(name, str):
        raise InputError("a model object has no tokenizer; set --tokenizer")
    try:
        return Tokenizer(load_tokenizer(name), f"the tokenizer of {name}")
    except InputError as error:
        if given is not None:
            raise
        raise InputError(f"{error} Or set --tokenizer hf:PATH.") from error


def _prompts(data: Any, tokenizer: Tokenizer, settings: GenerateSettings) -> list[Prompt]:
    """Return the prompts of a data set, in the requested range."""
    kind, _, path = data.partition(":") if isinstance(data, str) else ("", "", "")
    if kind in OBJECT_KINDS and path:
        every = read_prompts(kind, path, tokenizer, settings.prompt_tokens)
    else:
        reading = TextReading(tokenizer=tokenizer if kind in TEXT_KINDS else None, vocabulary=len(tokenizer))
        samples = as_samples(data, reading=Reading(text=reading))
        if not isinstance(samples, Documents):
            raise InputError(
                "prompts must be text; expected jsonl:PATH, parquet:PATH, hf:PATH, text:PATH, tokens:FILE.npz or stories-mini"
            )
        if samples.vocabulary != len(tokenizer):
            raise InputError(
                f"the data has a vocabulary of {samples.vocabulary:,} ids, but {tokenizer.name} has {len(tokenizer):,}; use the tokenizer "
                "of the data"
            )
        every = prompts_in(samples, tokenizer.wrapped, settings.prompt_tokens, str(data) if kind else "the data set")
    first, last = settings.samples or (0, len(every))
    if last > len(every):
        raise InputError(f"--samples {first}:{last} is out of range: there are {len(every):,} prompts")
    return every[first:last]


def _lines(completions: Sequence[Completion], tokenizer: Tokenizer) -> bytes:
    """Return completions as JSON lines with `prompt` and `completion`, which `--data jsonl:FILE` reads."""
    begins = tokenizer.wrapped.bos_token_id
    lines = []
    for one in completions:
        ids = one.prompt.ids.tolist()
        prompt = tokenizer.wrapped.decode(ids[1:] if ids[:1] == [begins] else ids)
        entry: dict[str, Any] = {"prompt": prompt, "completion": one.text, "ended": one.ended}
        entry |= {"references": list(one.prompt.references)} if one.prompt.references else {}
        entry |= {} if one.rouge_l is None else {"rouge_l": one.rouge_l}
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def _tokens(completions: Sequence[Completion], tokenizer: Tokenizer, origin: dict[str, Any]) -> bytes:
    """Return completions as an .npz file with the exact ids and their origin, which `--data tokens:FILE.npz` reads."""
    lengths = [(len(one.prompt.ids), len(one.ids)) for one in completions]
    tokens = np.concatenate([part for one in completions for part in (one.prompt.ids, one.ids)])
    targets = np.repeat(np.tile([False, True], len(lengths)), np.array(lengths).reshape(-1))
    buffer = io.BytesIO()
    np.savez(
        buffer,
        tokens=tokens.astype(token_dtype(len(tokenizer))),
        documents=np.cumsum([0, *map(sum, lengths)]),
        targets=targets,
        vocabulary=len(tokenizer),
        generated=json.dumps(origin),
    )
    return buffer.getvalue()


def _origin(source: str | nn.Module, network: CausalNetwork, sampling: Sampling) -> dict[str, Any]:
    """Return the origin of completions: the model, its teachers and the sampling parameters."""
    run = run_of(source) if isinstance(source, str) else None
    return {
        "model": source if isinstance(source, str) else type(source).__name__,
        "weights_sha256": hash_weights(network.state_dict()),
        "taught_by": None if run is None else teachers_of_run(run),
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
    }
