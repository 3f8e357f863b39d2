"""What vLLM and SGLang say of the tokens of a prompt, as arrays. Their JSON is the same over HTTP and in files of JSON lines.

Row i of an answer is the distribution of token i + 1 after the tokens before it: a prompt of L tokens has L - 1 rows. The alignment is
not assumed: each row must name the token that was sent, and where the token's own log-probability is said apart, it must be the row's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from logitcache.errors import InputError
from logitcache.teachers.given import KnownRows, rectangular

__all__ = ["sglang_answer", "vllm_answer"]

_SAME = 1e-2  # in nats; how far a token's log-probability may be from its row's, which some servers round


def vllm_answer(response: Mapping[str, Any], tokens: Sequence[int]) -> KnownRows:
    """Read a response of vLLM's completions with `prompt_logprobs`, or the like of one in a file.

    Args:
        response: The JSON object; `prompt_logprobs` is looked for in its first choice, and beside the choices.
        tokens: The ids that were sent, [L].

    Raises:
        InputError: It answers for other tokens, or says nothing of them.
    """
    choices = response.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    entries = first.get("prompt_logprobs") or response.get("prompt_logprobs")
    echoed = first.get("prompt_token_ids") or response.get("prompt_token_ids")
    if not isinstance(entries, list):
        raise InputError("the answer has no prompt_logprobs")
    if echoed is not None and list(echoed) != list(tokens):
        raise InputError("the answer is for other tokens than were sent")
    _refuse_other_length(len(entries), len(tokens), "prompt_logprobs")
    rows = []
    for place, entry in enumerate(entries[1:], 1):
        if not isinstance(entry, dict) or not entry:
            raise InputError(f"prompt_logprobs says nothing of token {place}")
        if str(tokens[place]) not in entry:
            raise InputError(
                f"prompt_logprobs does not name token {place}, id {tokens[place]}: it is for other tokens, or aligned otherwise"
            )
        rows.append(([int(one) for one in entry], [_logprob(one["logprob"], place) for one in entry.values()]))
    return rectangular(rows)


def sglang_answer(response: Mapping[str, Any], tokens: Sequence[int]) -> KnownRows:
    """Read a response of SGLang's `/generate` with `return_logprob` and `top_logprobs_num`, or the like of one in a file.

    Args:
        response: The JSON object; its `meta_info` is read.
        tokens: The ids that were sent, [L].

    Raises:
        InputError: It answers for other tokens, or says nothing of them.
    """
    said = response.get("meta_info")
    own, top = (said.get(f"input_{name}_logprobs") if isinstance(said, dict) else None for name in ("token", "top"))
    if not isinstance(own, list) or not isinstance(top, list):
        raise InputError("the answer has no input_token_logprobs and input_top_logprobs")
    _refuse_other_length(len(own), len(tokens), "input_token_logprobs")
    _refuse_other_length(len(top), len(tokens), "input_top_logprobs")
    rows = []
    for place, (mine, entry) in enumerate(zip(own[1:], top[1:], strict=True), 1):
        if mine[1] != tokens[place]:
            raise InputError(f"the answer is for other tokens: token {place} is id {mine[1]}, sent was {tokens[place]}")
        if not entry:
            raise InputError(f"input_top_logprobs says nothing of token {place}")
        found = {int(one[1]): _logprob(one[0], place) for one in entry}
        if len(found) < len(entry):
            raise InputError(f"input_top_logprobs names a class twice for token {place}")
        value = _logprob(mine[0], place)
        in_row = found.setdefault(int(mine[1]), value)
        if abs(in_row - value) > _SAME:
            raise InputError(
                f"the log-probability of token {place} is {value:.4g}, and {in_row:.4g} in its row: rows and tokens are not aligned"
            )
        rows.append((list(found), list(found.values())))
    return rectangular(rows)


def _refuse_other_length(found: int, sent: int, name: str) -> None:
    if found != sent:
        raise InputError(f"{name} has {found:,} entries for {sent:,} tokens")


def _logprob(value: Any, place: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"the log-probability of token {place} is {value!r}")
    return float(value)
