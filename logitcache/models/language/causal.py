"""Wrapper of causal language models of transformers, from named tensors to hidden states and a head.

When a model is wrapped, two assumptions are checked by running it on a few tokens: that its head reproduces its own logits bit for bit,
and that contexts in one sequence do not see each other.
"""

import inspect
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from logitcache.errors import InputError, explain_foreign_errors, reason_of
from logitcache.models.language.head import Head, HiddenStates, find_head
from logitcache.models.language.isolation import attention_masks, several_contexts
from logitcache.models.modes import evaluating, float_dtype

__all__ = ["CausalNetwork"]

_PROBE = 6  # tokens in each of the two contexts of the check
_TOLERANCE = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
}  # relative difference allowed between a context in a sequence and alone
_COARSE = 0.1  # the same for 16-bit dtypes
_MODEL = "model."  # prefix of the wrapped model's parameters
_LOG = logging.getLogger(__name__)


class CausalNetwork(nn.Module):
    """A causal language model of transformers, wrapped as a network of this package.

    Its state dict has the names of the wrapped model, with tied weights stored once, as in the safetensors file of such a model.

    Attributes:
        model: The wrapped model.
        pretrained: Whether the model was loaded with weights, instead of being freshly initialized.
        columns: Number of logits per token that the head returns, V'.
        splits: Whether `forward` returns hidden states and a head. A model whose head is unknown returns logits instead.
        leak: Reason why contexts cannot share a sequence, or None if they can.
    """

    def __init__(self, model: Any, *, pretrained: bool = False) -> None:
        """Wrap a model, and check it on a few tokens.

        Args:
            model: A `PreTrainedModel` with a language-modelling head (`AutoModelForCausalLM`), on any device.
            pretrained: Whether the model came with weights.

        Raises:
            InputError: If the model is not a causal language model of transformers, or if it fails on a few tokens.
        """
        super().__init__()
        if not hasattr(model, "get_output_embeddings") or not hasattr(model, "config"):
            raise InputError(
                f"{type(model).__name__} is not a causal language model of transformers: it has no configuration or no output layer"
            )
        self.model, self.training = model, model.training
        self.pretrained = pretrained
        self.splits = True
        self.leak: str | None = None
        self.register_state_dict_post_hook(_shorten_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_lengthen_names)  # type: ignore[no-untyped-call]
        base = model.base_model
        self._takes_positions = "position_ids" in inspect.signature(base.forward).parameters
        with (
            explain_foreign_errors(f"{type(model).__name__} fails on {_PROBE} tokens"),
            evaluating(model),
            torch.no_grad(),
        ):
            self.columns = self._try_head(base)
            self.leak = self._try_isolation()

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, documents: Tensor | None = None) -> Any:
        """Return hidden states and head, or logits [B, L, V'] if the model's head is unknown.

        If every sequence holds one context, padded at the end, the model's own causal attention is used, whose result depends on the
        shape of the batch but not on where the padding begins. Otherwise a block mask isolates the contexts.

        Args:
            input_ids: Tokens, [B, L] int64, with any valid id as padding.
            position_ids: Position of each token in its context, from 0, [B, L]. Ignored if every sequence holds one context.
            documents: Index of each token's context, [B, L], or -1 for padding. None for one context per sequence.

        Raises:
            InputError: If contexts share a sequence and this model cannot isolate them, or if a context exceeds the model's positions.
        """
        given: dict[str, Any] = {"attention_mask": None, "use_cache": False}
        if documents is not None and several_contexts(documents):
            given |= self._isolating(position_ids, documents)
        elif self.positions is not None and input_ids.shape[1] > self.positions and self._takes_positions:
            given["position_ids"] = position_ids  # default positions of padding would exceed the limit
        self._refuse_longer(input_ids, position_ids)
        if not self.splits:
            return self.model(input_ids=input_ids, **given).logits
        return HiddenStates(self.model.base_model(input_ids=input_ids, **given)[0], self.head)

    def _refuse_longer(self, input_ids: Tensor, position_ids: Tensor | None) -> None:
        """Raise InputError if a context has more tokens than the model has positions; most models would silently continue."""
        if self.positions is None or input_ids.shape[1] <= self.positions:
            return
        longest = input_ids.shape[1] if position_ids is None else int(position_ids.max()) + 1
        if longest > self.positions:
            raise InputError(
                f"a context has {longest:,} tokens, but {type(self.model).__name__} only has positions for {self.positions:,}; shorten it "
                f"with --sequence-length {self.positions}, or choose a network with more positions"
            )

    @property
    def positions(self) -> int | None:
        """Maximum number of tokens that the model has positions for, or None if its configuration does not specify it."""
        found = getattr(_text_config(self.model), "max_position_embeddings", None)
        return int(found) if found else None

    @property
    def head(self) -> Head:
        """The head, with the model's own weights.

        Raises:
            InputError: If the head is unknown (`splits` is false).
        """
        found = find_head(self.model) if self.splits else None
        if found is None:
            raise InputError(f"the head of {type(self.model).__name__} is unknown; call the model to get its logits")
        return found

    @property
    def tied_names(self) -> frozenset[str]:
        """Names of weights that are tied to others and omitted from the state dict."""
        return frozenset(name.removeprefix(_MODEL) for name, _ in _tied(self))

    def checkpoint_gradients(self, *, enabled: bool = True) -> None:
        """Turn gradient checkpointing on or off, which recomputes activations in the backward pass to save memory.

        Raises:
            InputError: If the model does not support it.
        """
        with explain_foreign_errors(f"{type(self.model).__name__} cannot checkpoint gradients"):
            new = hasattr(self.model, "activation_checkpointing_enable")  # its name in newer versions
            name = "activation_checkpointing" if new else "gradient_checkpointing"
            if enabled:
                getattr(self.model, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": False}})
            else:
                getattr(self.model, f"{name}_disable")()

    def _isolating(self, position_ids: Tensor | None, documents: Tensor) -> dict[str, Any]:
        """Return the arguments of the model that isolate contexts."""
        if self.leak is not None:
            raise InputError(
                f"{type(self.model).__name__} cannot isolate contexts that share a sequence: {self.leak}. Use one context per sequence."
            )
        if position_ids is None:
            raise InputError(
                "contexts that share a sequence need position_ids, the position of each token in its context"
            )
        masks = attention_masks(_text_config(self.model), documents, float_dtype(self.model))
        if masks is None:
            raise InputError(
                f"the attention of {type(self.model).__name__} takes no mask to isolate contexts that share a sequence. Load it with "
                "attn_implementation sdpa or eager, or use one context per sequence."
            )
        return {"attention_mask": masks} | ({"position_ids": position_ids} if self._takes_positions else {})

    def _try_head(self, base: nn.Module) -> int:
        """Compare the head with the model's own logits, and return the number of logits per token."""
        tokens = self._probe_tokens(1)
        expected = self.model(input_ids=tokens, use_cache=False).logits
        head = find_head(self.model) if base is not self.model else None
        self.splits = head is not None
        if head is not None:
            found = head(self.model.base_model(input_ids=tokens, use_cache=False)[0])
            self.splits = found.dtype == expected.dtype and torch.equal(found, expected)
        if not self.splits:
            _LOG.warning(
                "the head of %s is unknown, so its logits are computed for all tokens at once, which takes more memory",
                type(self.model).__name__,
            )
        return int(expected.shape[-1])

    def _try_isolation(self) -> str | None:
        """Return why the model cannot isolate two contexts in a sequence, or None if it can."""
        first, other, second = self._probe_tokens(3)[:, None]
        documents = torch.arange(2, device=first.device).repeat_interleave(_PROBE)[None]
        positions = torch.arange(_PROBE, device=first.device).repeat(2)[None]
        if attention_masks(_text_config(self.model), documents, float_dtype(self.model)) is None:
            return "its layers or its attention implementation do not accept a block mask"
        try:
            beside = [
                _states_of(self(torch.cat([one, second], 1), positions, documents))[:, _PROBE:]
                for one in (first, other)
            ]
        except Exception as error:  # noqa: BLE001  (whatever another model's forward makes of a mask that it does not expect)
            return f"it fails on a block mask ({reason_of(error)})"
        alone = _states_of(self(second))
        if not torch.equal(*beside):
            return "changing one context changes the output for another"
        if not (beside[0] - alone).norm() <= _TOLERANCE.get(alone.dtype, _COARSE) * alone.norm():
            return "its output for a context differs between a shared sequence and the context alone"
        return None

    def _probe_tokens(self, rows: int) -> Tensor:
        """Return random tokens, [rows, _PROBE], the same each time."""
        embedding = self.model.get_input_embeddings().weight
        random = torch.Generator().manual_seed(0)
        return torch.randint(embedding.shape[0], (rows, _PROBE), generator=random).to(embedding.device)


def _states_of(output: Any) -> Tensor:
    found: Tensor = output.states if isinstance(output, HiddenStates) else output
    return found


def _text_config(model: Any) -> Any:
    return model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config


def _tied(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield each additional name of a shared parameter, and its first name."""
    first: dict[int, str] = {}
    for name, one in network.named_parameters(remove_duplicate=False):
        if first.setdefault(id(one), name) != name:
            yield name, first[id(one)]


def _shorten_names(network: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Rename a state dict's entries as in the wrapped model, and drop tied duplicates."""
    for name, _ in _tied(network):
        state.pop(prefix + name, None)
    for name in [name for name in state if name.startswith(prefix + _MODEL)]:
        state[prefix + name.removeprefix(prefix + _MODEL)] = state.pop(name)


def _lengthen_names(network: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Undo `_shorten_names`."""
    for name in [name for name in state if name.startswith(prefix)]:
        state[prefix + _MODEL + name.removeprefix(prefix)] = state.pop(name)
    for name, first in _tied(network):
        if prefix + first in state:
            state[prefix + name] = state[prefix + first]
