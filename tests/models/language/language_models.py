"""Causal language models of several families, small and random."""

import transformers

VOCABULARY = 61
SIZE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SIZE |= {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _gpt2(**more):
    sizes = {"n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY}
    return transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, **more)


FAMILIES = {
    "llama": lambda **more: transformers.LlamaConfig(**SIZE, **more),
    "gpt2": _gpt2,
    "gemma2": lambda **more: transformers.Gemma2Config(
        **SIZE, head_dim=4, query_pre_attn_scalar=4, final_logit_softcapping=0.5, **more
    ),
    "cohere": lambda **more: transformers.CohereConfig(**SIZE, logit_scale=0.0625, **more),
    "granite": lambda **more: transformers.GraniteConfig(**SIZE, logits_scaling=7.0, **more),
    "qwen2": lambda **more: transformers.Qwen2Config(**SIZE, **more),
    "phi": lambda **more: transformers.PhiConfig(**SIZE, **more),
}


def model(family, *, attention=None, std=0.5, **more):
    """Build a random model whose weights are large enough for attention to matter."""
    import torch

    config = FAMILIES[family](**more, initializer_range=std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        chosen = {"attn_implementation": attention} if attention else {}
        built = transformers.AutoModelForCausalLM.from_config(config, **chosen).float()
        for name, one in built.named_parameters():
            if "bias" in name:
                torch.nn.init.normal_(one, std=std)
    return built.eval()
