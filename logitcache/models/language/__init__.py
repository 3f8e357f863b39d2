"""Causal language models: networks, heads, tokenizers."""

from logitcache.models.language.causal import CausalNetwork
from logitcache.models.language.head import Head, HiddenStates, find_head

__all__ = ["CausalNetwork", "Head", "HiddenStates", "find_head"]
