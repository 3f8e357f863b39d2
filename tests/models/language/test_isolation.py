import pytest
import torch

from logitcache.errors import InputError
from logitcache.models.language import CausalNetwork

transformers = pytest.importorskip("transformers")
small = pytest.importorskip("language_models")

LENGTHS = (7, 1, 12, 9)
RANDOM = torch.Generator().manual_seed(2)
CONTEXTS = [torch.randint(small.VOCABULARY, (length,), generator=RANDOM) for length in LENGTHS]
OTHER = torch.randint(small.VOCABULARY, (7,), generator=RANDOM)
WAYS = [
    (family, way) for family in small.FAMILIES for way in (None, "eager", "sdpa") if (family, way) != ("gemma2", "sdpa")
]


def packed(contexts, length=32):
    """Two sequences: the contexts and padding, and the contexts in another order."""
    rows = []
    for order in (contexts, [contexts[2], contexts[0]]):
        rows.append([torch.cat([*order, torch.zeros(length - sum(map(len, order)), dtype=torch.int64)])])
        rows[-1].append(
            torch.cat([*map(torch.arange, map(len, order)), torch.zeros(length - sum(map(len, order)))]).long()
        )
        numbers = [torch.full((len(one),), number) for number, one in enumerate(order)]
        rows[-1].append(torch.cat([*numbers, torch.full((length - sum(map(len, order)),), -1)]))
    tokens, positions, documents = map(torch.stack, zip(*rows, strict=True))
    return {"input_ids": tokens, "position_ids": positions, "documents": documents}


@pytest.mark.parametrize(("family", "way"), WAYS)
def test_a_change_of_one_context_changes_no_bit_of_another(family, way):
    network = CausalNetwork(small.model(family, attention=way))
    found, changed = (network(**packed([one, *CONTEXTS[1:]])).states for one in (CONTEXTS[0], OTHER))
    assert not torch.equal(found[0, :7], changed[0, :7])
    assert torch.equal(found[0, 7:], changed[0, 7:])
    assert torch.equal(found[1, :12], changed[1, :12])


@pytest.mark.parametrize(("family", "way"), WAYS)
def test_nor_of_its_gradient(family, way):
    network = CausalNetwork(small.model(family, attention=way)).train()
    for part in network.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    grown = []
    for one in (CONTEXTS[0], OTHER):
        found = network(**packed([one, *CONTEXTS[1:]]))
        loss = found.head(found.states[0, 7:29]).square().sum()
        grown.append(torch.autograd.grad(loss, [one for _, one in network.named_parameters()], allow_unused=True))
    assert all(torch.equal(*pair) for pair in zip(*grown, strict=True) if pair[0] is not None)


@pytest.mark.parametrize(("family", "way"), WAYS)
def test_a_context_in_a_packed_sequence_has_the_states_of_the_same_context_alone(family, way):
    network = CausalNetwork(small.model(family, attention=way))
    found = network(**packed(CONTEXTS)).states
    start = 0
    for context in CONTEXTS:
        alone = network(context[None]).states[0]
        size = max(1.0, alone.abs().max().item())
        torch.testing.assert_close(found[0, start : start + len(context)], alone, rtol=0, atol=2e-5 * size)
        start += len(context)
    assert torch.isfinite(found).all()


def test_contexts_whose_positions_happen_to_continue_are_isolated():
    network = CausalNetwork(small.model("llama"))
    inputs = packed(CONTEXTS)
    inputs["position_ids"] = torch.arange(32).expand(2, -1)
    found = network(**inputs).states
    changed = network(**(packed([OTHER, *CONTEXTS[1:]]) | {"position_ids": inputs["position_ids"]})).states
    assert torch.equal(found[0, 7:], changed[0, 7:])


@pytest.mark.parametrize("family", ["gemma2", "mistral", "qwen2"])
def test_windows_of_attention_keep_their_length_beside_other_contexts(family):
    if family == "mistral":
        config = transformers.MistralConfig(**small.SIZE, sliding_window=4, initializer_range=0.5)
        model = transformers.AutoModelForCausalLM.from_config(config)
    else:
        more = {"use_sliding_window": True, "max_window_layers": 1} if family == "qwen2" else {}
        model = small.model(family, sliding_window=4, **more)
    network = CausalNetwork(model.eval())
    assert network.leak is None
    found = network(**packed(CONTEXTS)).states
    alone = network(CONTEXTS[2][None]).states[0]
    torch.testing.assert_close(found[0, 8:20], alone, rtol=0, atol=2e-5)


def test_bits_of_a_padded_context_depend_on_the_shape_alone():
    network = CausalNetwork(small.model("llama"))
    documents = torch.tensor([[0] * 12 + [-1] * 20, [0] * 32])
    tokens = torch.stack([torch.cat([CONTEXTS[2], torch.zeros(20, dtype=torch.int64)]), torch.arange(32)])
    found = network(tokens, documents=documents, position_ids=torch.arange(32).expand(2, -1)).states
    assert torch.isfinite(found).all()
    tokens[0, 12:] = 5
    documents[0, 12:] = 0
    assert torch.equal(network(tokens, documents=documents).states[0, :12], found[0, :12])
    assert torch.equal(network(tokens).states[0, :12], found[0, :12])


def test_one_context_a_sequence_takes_plain_causal_attention_with_padding_or_without():
    network, calls = CausalNetwork(small.model("llama")), []
    network.model.model.register_forward_pre_hook(lambda _, __, named: calls.append(named), with_kwargs=True)
    documents = torch.tensor([[0] * 7 + [-1] * 5, [3] * 12])
    network(torch.zeros(2, 12, dtype=torch.int64), torch.arange(12).expand(2, -1), documents)
    assert calls[0]["attention_mask"] is None
    assert "position_ids" not in calls[0]  # by which transformers would look for contexts, padding included
    assert calls[0]["use_cache"] is False


def test_padding_makes_no_nan_in_16_bits_either():
    network = CausalNetwork(small.model("llama", attention="eager").bfloat16())
    assert network.leak is None
    found = network(**packed(CONTEXTS))
    assert torch.isfinite(found.states).all()


def test_contexts_that_share_a_sequence_need_their_positions():
    inputs = packed(CONTEXTS) | {"position_ids": None}
    with pytest.raises(InputError, match="need position_ids, the position of each token in its context"):
        CausalNetwork(small.model("llama"))(**inputs)


def test_a_model_that_lets_contexts_see_each_other_is_refused_where_they_share_a_sequence():
    config = transformers.BloomConfig(
        hidden_size=16, n_layer=2, n_head=4, vocab_size=small.VOCABULARY, initializer_range=0.5
    )
    network = CausalNetwork(transformers.AutoModelForCausalLM.from_config(config).eval())
    assert network(CONTEXTS[0][None]).states.shape == (1, 7, 16)
    with pytest.raises(
        InputError,
        match="BloomForCausalLM cannot isolate contexts that share a sequence: .*Use one context per sequence",
    ):
        network(**packed(CONTEXTS))
