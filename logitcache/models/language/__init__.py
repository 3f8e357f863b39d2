"""Causal language models: networks, heads, tokenizers."""

from logitcache.models.language.causal import CausalNetwork
from logitcache.models.language.head import Head, HiddenStates, find_head
from logitcache.models.language.load import DEMO_LANGUAGE_MODEL, load_language_network
from logitcache.models.language.save import save_language_network
from logitcache.models.language.tokenizer import Spelling, TokenizerFacts, load_tokenizer, spelling_of, tokenizer_facts

__all__ = [
    "DEMO_LANGUAGE_MODEL",
    "CausalNetwork",
    "Head",
    "HiddenStates",
    "Spelling",
    "TokenizerFacts",
    "find_head",
    "load_language_network",
    "load_tokenizer",
    "save_language_network",
    "spelling_of",
    "tokenizer_facts",
]
