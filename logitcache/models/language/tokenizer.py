"""Tokenizers of language models, and the facts that identify them.

A tokenizer from a GGUF file is built from the file's metadata, including its pre-tokenizer.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import InputError, first_line
from logitcache.models.hub import without_waiting
from logitcache.models.language.gguf import entry_of, read_gguf
from logitcache.models.language.load import location_of
from logitcache.models.language.packages import import_language_package

__all__ = ["Spelling", "TokenizerFacts", "load_tokenizer", "spelling_of", "tokenizer_facts"]

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_CONTROL, _USER_DEFINED = 3, 4  # types of tokens in GGUF that are matched as a whole
_GROUPS = {  # regular expressions of pre-tokenizers, by their name in GGUF
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """Facts that identify a tokenizer, for a manifest.

    Attributes:
        vocabulary: Vocabulary size: the highest id plus one.
        digest: Digest of vocabulary with ids, merges and added tokens, independent of library version and file format.
        bos: Id of the token that begins a document, or None.
        eos: Id of the token that ends a document, or None.
        chat_template_digest: Digest of the chat template, or None if there is none.
    """

    vocabulary: int
    digest: str
    bos: int | None
    eos: int | None
    chat_template_digest: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        return asdict(self)


def load_tokenizer(spec: str) -> Any:
    """Load the tokenizer of a language model.

    Args:
        spec: `hf:PATH`, a folder with tokenizer.json (or a name on the hub), or `hf:FILE.gguf`; options after `?` are ignored.

    Returns:
        A `transformers.PreTrainedTokenizerFast`.

    Raises:
        InputError: If there is no tokenizer, or if its type is not supported.
    """
    transformers = import_language_package("transformers", f"the tokenizer of {spec}")
    location, _ = location_of(spec)
    if location.endswith(".gguf"):
        return _from_gguf(Path(location).expanduser(), transformers)
    folder = Path(location).expanduser()
    local = folder.is_dir()
    if not local and (folder.exists() or location.startswith((".", "/", "~")) or location.count("/") > 1):
        raise InputError(f"there is no folder {folder} with a tokenizer (tokenizer.json); check the path")
    if local and not any((folder / name).is_file() for name in _FILES):
        raise InputError(f"{folder} holds no tokenizer: it has no tokenizer.json")
    try:
        with without_waiting():
            found = transformers.AutoTokenizer.from_pretrained(
                str(folder) if local else location, trust_remote_code=False, local_files_only=local
            )
    except Exception as error:  # third-party files can make transformers raise anything
        remedy = "" if local else " Download it on another machine and pass the folder."
        raise InputError(
            f"the tokenizer of {spec} cannot be loaded: {first_line(error).rstrip('.')}.{remedy}"
        ) from error
    if not getattr(found, "is_fast", False):
        raise InputError(
            f"the tokenizer of {spec} has no tokenizer.json. Save it with transformers as a fast tokenizer."
        )
    return found


def tokenizer_facts(tokenizer: Any) -> TokenizerFacts:
    """Return the facts that identify a tokenizer.

    Args:
        tokenizer: A `PreTrainedTokenizerFast`.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    vocabulary = model.get("vocab", {})
    if isinstance(vocabulary, list):  # pieces with scores, in the order of their ids
        ids = [[place, *entry] for place, entry in enumerate(vocabulary)]
    else:
        ids = sorted([number, piece] for piece, number in vocabulary.items())
    merges = [one.split(" ") if isinstance(one, str) else list(one) for one in model.get("merges") or ()]
    added = sorted([one["id"], one["content"]] for one in content["added_tokens"])
    template = tokenizer.chat_template
    return TokenizerFacts(
        vocabulary=max([number for number, *_ in (*ids, *added)], default=-1) + 1,
        digest=_digest([ids, merges, added]),
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        chat_template_digest=None if template is None else _digest(template),
    )


@dataclass(frozen=True, slots=True)
class Spelling:
    """Number of bytes of text that each token represents.

    Attributes:
        bytes: Bytes of each id, [V] int64; 0 for special tokens.
        leading_space: Ids that begin with a space, [V] bool, if the tokenizer prepends one to texts that do not; otherwise None.
    """

    bytes: NDArray[np.int64]
    leading_space: NDArray[np.bool_] | None


def spelling_of(tokenizer: Any) -> Spelling | None:
    """Return the number of bytes that each id of a tokenizer represents, from its pieces, because decoding would lose bytes.

    Args:
        tokenizer: A `PreTrainedTokenizerFast`.

    Returns:
        The bytes of each id, or None if the tokenizer is neither byte-level nor uses marks for spaces.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    decoders, splitters = (list(_steps(content.get(name))) for name in ("decoder", "pre_tokenizer"))
    kinds = {one["type"] for one in decoders}
    vocabulary = content["model"].get("vocab", {})
    pieces = (
        list(enumerate(one for one, _ in vocabulary))
        if isinstance(vocabulary, list)
        else [(number, piece) for piece, number in vocabulary.items()]
    )
    if "ByteLevel" in kinds:  # each character of a piece is a byte
        sizes, spaced = {number: len(piece) for number, piece in pieces}, {n for n, one in pieces if one[:1] == "Ġ"}
    elif kinds & {"ByteFallback", "Metaspace", "Replace"}:
        mark = "▁" if kinds & {"Metaspace", "Replace"} else " "  # character that represents a space in a piece
        single = re.compile(r"<0x[0-9A-F]{2}>" if "ByteFallback" in kinds else r"(?!)")
        sizes = {n: 1 if single.fullmatch(one) else len(one.replace(mark, " ").encode()) for n, one in pieces}
        spaced = {number for number, piece in pieces if piece[:1] == mark}
    else:
        return None
    sizes |= {one["id"]: 0 if one["special"] else len(one["content"].encode()) for one in content["added_tokens"]}
    steps = [*splitters, *_steps(content.get("normalizer"))]
    prepends = any(
        one["type"] == "Prepend" or one.get("add_prefix_space") or one.get("prepend_scheme") in ("always", "first")
        for one in steps
    )
    found, leading = np.zeros(max(sizes) + 1, np.int64), np.zeros(max(sizes) + 1, np.bool_)
    found[list(sizes)] = list(sizes.values())
    leading[list(spaced)] = True
    return Spelling(found, leading if prepends else None)


def _steps(entry: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a component of a tokenizer."""
    if entry is None:
        return
    inner = next((entry[name] for name in ("decoders", "pretokenizers", "normalizers") if name in entry), None)
    if inner is None:
        yield entry
    else:
        for one in inner:
            yield from _steps(one)


def _digest(content: Any) -> str:
    text = json.dumps(content, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _from_gguf(path: Path, transformers: Any) -> Any:
    metadata, _ = read_gguf(path)
    kind = entry_of(metadata, "tokenizer.ggml.model", path)
    if kind != "gpt2":
        raise InputError(
            f"{path} has an unsupported tokenizer {kind}; expected byte pairs (gpt2). "
            "Use the folder with the model's tokenizer.json instead."
        )
    library = import_language_package("tokenizers", f"the tokenizer of {path}")
    tokens = entry_of(metadata, "tokenizer.ggml.tokens", path)
    kinds = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    merges = [tuple(one.split(" ", 1)) for one in entry_of(metadata, "tokenizer.ggml.merges", path)]
    found = library.Tokenizer(library.models.BPE(vocab={one: place for place, one in enumerate(tokens)}, merges=merges))
    found.pre_tokenizer = _pre_tokenizer(path, metadata.get("tokenizer.ggml.pre", "default"), library)
    found.decoder = library.decoders.ByteLevel()
    whole = [
        library.AddedToken(one, special=True, normalized=False)
        for one, type_ in zip(tokens, kinds, strict=True)
        if type_ == _CONTROL
    ]
    found.add_special_tokens(whole)
    found.add_tokens(
        [
            library.AddedToken(one, normalized=False)
            for one, type_ in zip(tokens, kinds, strict=True)
            if type_ == _USER_DEFINED
        ]
    )
    named = {
        f"{role}_token": tokens[number]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
        if (number := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None
    }
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=found, **named)
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer


def _pre_tokenizer(path: Path, name: str, library: Any) -> Any:
    """Return the pre-tokenizer, which splits text before byte pairs are merged."""
    parts: Any = library.pre_tokenizers
    plain: Callable[..., Any] = parts.ByteLevel
    if name == "smollm":
        return parts.Sequence([parts.Digits(individual_digits=True), plain(add_prefix_space=False, use_regex=True)])
    if name in ("gpt-2", "default"):
        return plain(add_prefix_space=False, use_regex=True)
    if name not in _GROUPS:
        raise InputError(
            f"{path} has an unknown pre-tokenizer {name}; expected {', '.join(['default', 'gpt-2', 'smollm', *_GROUPS])}. "
            "Use the folder with the model's tokenizer.json instead."
        )
    divided = parts.Split(library.Regex(_GROUPS[name]), behavior="isolated")
    return parts.Sequence([divided, plain(add_prefix_space=False, use_regex=False)])
