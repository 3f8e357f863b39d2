"""Parse the prompt log-probabilities in responses of vLLM and SGLang. The JSON is the same over HTTP and in files of JSON lines.

Row i of a response is the distribution of token i + 1, so a prompt of L tokens has L - 1 rows. The alignment is checked: each row must
contain the token that was sent, and a separately reported log-probability of this token must match its row.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from logitcache.errors import InputError
from logitcache.teachers.given import KnownRows, rectangular

__all__ = ["error_message", "sglang_answer", "vllm_answer"]

_SAME = (
    1e-2  # tolerance in nats between the separate and the row's log-probability of a token, because some servers round
)


def vllm_answer(response: Mapping[str, Any], tokens: Sequence[int]) -> KnownRows:
    """Parse a response of vLLM's completions endpoint with `prompt_logprobs`, from HTTP or from a file.

    Args:
        response: JSON object, with `prompt_logprobs` in its first choice or at the top level.
        tokens: Ids that were sent, [L].

    Raises:
        InputError: The response is for different tokens, or lacks log-probabilities.
    """
    choices = response.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    entries = first.get("prompt_logprobs") or response.get("prompt_logprobs")
    echoed = first.get("prompt_token_ids") or response.get("prompt_token_ids")
    if not isinstance(entries, list):
        raise InputError("the response has no prompt_logprobs")
    if echoed is not None and list(echoed) != list(tokens):
        raise InputError("the response is for different tokens than those sent")
    _refuse_other_length(len(entries), len(tokens), "prompt_logprobs")
    rows = []
    for place, entry in enumerate(entries[1:], 1):
        if not isinstance(entry, dict) or not entry:
            raise InputError(f"prompt_logprobs has no entry for token {place}")
        if str(tokens[place]) not in entry:
            raise InputError(
                f"the row of token {place} in prompt_logprobs lacks its id {tokens[place]}: it is for different tokens or misaligned"
            )
        rows.append(([int(one) for one in entry], [_logprob(one["logprob"], place) for one in entry.values()]))
    return rectangular(rows)


def sglang_answer(response: Mapping[str, Any], tokens: Sequence[int]) -> KnownRows:
    """Parse a response of SGLang's `/generate` with `return_logprob` and `top_logprobs_num`, from HTTP or from a file.

    Args:
        response: JSON object with `meta_info`.
        tokens: Ids that were sent, [L].

    Raises:
        InputError: The response is for different tokens, or lacks log-probabilities.
    """
    said = response.get("meta_info")
    own, top = (said.get(f"input_{name}_logprobs") if isinstance(said, dict) else None for name in ("token", "top"))
    if not isinstance(own, list) or not isinstance(top, list):
        raise InputError("the response lacks input_token_logprobs or input_top_logprobs")
    _refuse_other_length(len(own), len(tokens), "input_token_logprobs")
    _refuse_other_length(len(top), len(tokens), "input_top_logprobs")
    rows = []
    for place, (mine, entry) in enumerate(zip(own[1:], top[1:], strict=True), 1):
        if mine[1] != tokens[place]:
            raise InputError(
                f"the response is for different tokens: token {place} has id {mine[1]} instead of {tokens[place]}"
            )
        if not entry:
            raise InputError(f"input_top_logprobs has no entry for token {place}")
        found = {int(one[1]): _logprob(one[0], place) for one in entry}
        if len(found) < len(entry):
            raise InputError(f"input_top_logprobs has a duplicate class for token {place}")
        value = _logprob(mine[0], place)
        in_row = found.setdefault(int(mine[1]), value)
        if abs(in_row - value) > _SAME:
            raise InputError(
                f"the log-probability of token {place} is {value:.4g}, but {in_row:.4g} in its row: rows and tokens are not aligned"
            )
        rows.append((list(found), list(found.values())))
    return rectangular(rows)


def error_message(response: Any) -> str | None:
    """Return the message of an error response, or None if there is none.

    vLLM and SGLang put it into `error.message`, `message` or `detail`; vLLM's batch runner into `error.error.message`.
    """
    while isinstance(response, dict):
        response = next((response[name] for name in ("error", "message", "detail") if response.get(name)), None)
    return None if response is None else str(response).strip()


def _refuse_other_length(found: int, sent: int, name: str) -> None:
    if found != sent:
        raise InputError(f"{name} has {found:,} entries for {sent:,} tokens")


def _logprob(value: Any, place: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"the log-probability of token {place} is {value!r}; expected a number")
    return float(value)
