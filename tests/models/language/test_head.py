import pytest
import torch
from torch import nn

from logitcache.models.language import CausalNetwork, find_head

transformers = pytest.importorskip("transformers")
small = pytest.importorskip("language_models")

TOKENS = torch.randint(small.VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", small.FAMILIES)
def test_hidden_states_and_head_give_the_models_own_logits_to_the_bit(family, tied):
    model = small.model(family, tie_word_embeddings=tied)
    expected = model(TOKENS).logits
    network = CausalNetwork(model)
    found = network(TOKENS)
    assert network.splits
    assert network.columns == expected.shape[-1] == small.VOCABULARY
    assert found.states.shape == (3, 11, 16)
    assert torch.equal(found.head(found.states), expected)
    assert (found.head.weight is model.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("family", small.FAMILIES)
def test_the_attributes_of_a_head_say_what_it_computes(family):
    network = CausalNetwork(small.model(family))
    states = torch.randn(5, 16, dtype=torch.float64)
    head = network.double().head
    expected = states @ head.weight.T
    expected = (expected if head.bias is None else expected + head.bias) * head.scale
    if head.soft_cap is not None:
        expected = head.soft_cap * torch.tanh(expected / head.soft_cap)
    torch.testing.assert_close(head(states), expected, rtol=1e-12, atol=1e-12)


def test_scale_cap_and_bias_are_those_of_the_family():
    heads = {family: CausalNetwork(small.model(family)).head for family in small.FAMILIES}
    assert heads["cohere"].scale == 0.0625
    assert heads["granite"].scale == 1 / 7
    assert heads["gemma2"].soft_cap == 0.5
    assert heads["phi"].bias is not None
    assert heads["llama"].bias is None
    assert heads["llama"].scale == 1.0


class Odd(nn.Linear):
    """An output layer with something of its own."""

    def forward(self, states):
        return super().forward(states) + 1


def test_a_model_with_an_output_layer_of_its_own_returns_all_its_logits(caplog):
    model = small.model("llama", tie_word_embeddings=False)
    model.set_output_embeddings(Odd(16, small.VOCABULARY))
    network = CausalNetwork(model)
    assert not network.splits
    assert "its logits are computed for all tokens at once" in caplog.text
    assert torch.equal(network(TOKENS), model(TOKENS).logits)


def test_a_model_that_changes_its_logits_in_a_way_that_is_not_known_returns_them_all(monkeypatch):
    model = small.model("llama")
    own = type(model).forward

    def forward(self, *args, **named):
        output = own(self, *args, **named)
        output.logits = output.logits + torch.arange(small.VOCABULARY) / 100
        return output

    monkeypatch.setattr(type(model), "forward", forward)
    assert find_head(model) is not None
    network = CausalNetwork(model)
    assert not network.splits
    assert torch.equal(network(TOKENS), model(TOKENS).logits)
