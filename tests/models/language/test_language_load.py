from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from logitcache.errors import InputError, UnknownNameError
from logitcache.models import hash_weights, save_weights
from logitcache.models.language import CausalNetwork, load_language_network

transformers = pytest.importorskip("transformers")
small = pytest.importorskip("language_models")

TOKENS = torch.randint(small.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(4))


@pytest.fixture
def folder(tmp_path):
    """A Llama as people have it: bfloat16 on disk, its embedding tied to its head."""
    path = tmp_path / "llama"
    small.model("llama", tie_word_embeddings=True).bfloat16().save_pretrained(path)
    return path


def logits(network, tokens=TOKENS):
    found = network.module(tokens)
    return found.head(found.states)


def test_a_folder_is_loaded_as_float32_whatever_dtype_it_has(folder):
    found = load_language_network(f"hf:{folder}", small.VOCABULARY)
    assert {one.dtype for one in found.module.parameters()} == {torch.float32}
    assert found.name == f"hf:{folder}"
    assert found.module.pretrained
    assert not found.module.training
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(TOKENS).logits
    assert torch.equal(logits(found), expected)


def test_another_dtype_when_it_is_asked_for(folder):
    found = load_language_network(f"hf:{folder}?dtype=bfloat16", small.VOCABULARY)
    assert logits(found).dtype == torch.bfloat16
    with pytest.raises(UnknownNameError, match="unknown dtype 'int3'"):
        load_language_network(f"hf:{folder}?dtype=int3", small.VOCABULARY)


def test_a_state_dict_has_the_names_and_the_tensors_of_the_models_own_file(folder):
    network = load_language_network(f"hf:{folder}?dtype=bfloat16", small.VOCABULARY).module
    stored = load_file(folder / "model.safetensors")
    assert network.state_dict().keys() == stored.keys()
    assert hash_weights(network.state_dict()) == hash_weights(stored)


def test_weights_of_a_trained_student_are_saved_and_loaded_again(folder, tmp_path):
    spec = "llama:hidden=16,layers=2,heads=4"
    trained, file = load_language_network(spec, small.VOCABULARY), tmp_path / "student.safetensors"
    save_weights(trained.module.state_dict(), file, {})
    again = load_language_network(spec, small.VOCABULARY, str(file))
    assert again.weights == str(file)
    assert again.module.pretrained
    assert not trained.module.pretrained
    assert torch.equal(logits(again), logits(trained))
    assert again.module.head.weight is again.module.model.get_input_embeddings().weight
    copy = deepcopy(load_language_network(spec, small.VOCABULARY).module)  # as an average of weights is made
    copy.load_state_dict(trained.module.state_dict())
    assert hash_weights(copy.state_dict()) == hash_weights(trained.module.state_dict())
    with_head = load_file(file) | {"lm_head.weight": trained.module.head.weight.detach().clone()}
    save_file(with_head, file)  # as torch's own checkpoints have it
    assert torch.equal(logits(load_language_network(spec, small.VOCABULARY, str(file))), logits(trained))


def test_a_student_of_some_layers_computes_what_these_layers_compute(folder):
    teacher = load_language_network(f"hf:{folder}", small.VOCABULARY).module
    student = load_language_network(f"hf:{folder}?layers=0,2", small.VOCABULARY).module
    assert student.model.config.num_hidden_layers == 2
    assert [layer.self_attn.layer_idx for layer in student.model.model.layers] == [0, 1]
    assert sum(one.numel() for one in student.parameters()) < sum(one.numel() for one in teacher.parameters())
    seen = []
    layer = teacher.model.model.layers[1]
    layer.forward = lambda hidden_states, *_, **__: seen.append(1) or hidden_states  # it passes on what it is given
    assert torch.equal(teacher(TOKENS).states, student(TOKENS).states)
    assert seen


def test_kinds_of_layers_go_with_the_layers():
    model = small.model("gemma2", sliding_window=4)
    kinds = model.config.layer_types
    from logitcache.models.language.load import _keep_layers

    _keep_layers(model, "hf:x", "1,2")
    assert model.config.layer_types == kinds[1:]
    assert CausalNetwork(model).leak is None


@pytest.mark.parametrize("said", ["", "0,0", "0,3", "-1", "zero", "0;1"])
def test_layers_that_are_not_there_are_refused(folder, said):
    with pytest.raises(InputError, match=r"layers must be distinct numbers from 0 to 2, separated by commas, not"):
        load_language_network(f"hf:{folder}?layers={said}", small.VOCABULARY)


def test_a_llama_from_scratch_has_the_sizes_said():
    spec = "llama:hidden=48,layers=3,heads=4,kv_heads=2,intermediate=96,tied=true"
    network = load_language_network(spec, 512).module
    assert sum(one.numel() for one in network.parameters()) == 87_120
    assert network.columns == 512
    torch.manual_seed(0)
    first = hash_weights(load_language_network(spec, 512).module.state_dict())
    torch.manual_seed(0)
    assert hash_weights(load_language_network(spec, 512).module.state_dict()) == first
    untied = load_language_network("llama:hidden=16,layers=1,heads=2,tied=false", 20).module
    assert untied.head.weight is not untied.model.get_input_embeddings().weight
    assert untied.model.config.intermediate_size == 48  # 8/3 of 16, as a multiple of 8


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("hidden=48,heads=4", "lacks layers; expected"),
        ("hidden=48,layers=3,heads=5", "hidden must be a multiple of heads, not 48 with 5"),
        ("hidden=48,layers=3,heads=4,kv_heads=3", "heads must be a multiple of kv_heads, not 4 with 3"),
        ("hidden=12,layers=3,heads=4", "the head dimension must be even for rotary positions, not 3"),
        ("hidden=many,layers=3,heads=4", "hidden cannot be 'many'"),
        ("hidden=48,layers=0,heads=4", "layers must be positive"),
        ("hidden=48,layers=3,heads=4,width=3", "unknown size of llama: 'width'"),
        ("hidden=48,layers=3,heads=4,tied=maybe", "tied cannot be 'maybe'"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(said, message):
    with pytest.raises((InputError, UnknownNameError), match=message):
        load_language_network(f"llama:{said}", 512)


def test_a_network_with_fewer_logits_than_ids_is_refused_and_one_with_more_is_not(folder):
    with pytest.raises(InputError, match=r"has logits for 61 ids, but the data's vocabulary has 62\."):
        load_language_network(f"hf:{folder}", small.VOCABULARY + 1)
    assert load_language_network(f"hf:{folder}", small.VOCABULARY - 3).module.columns == small.VOCABULARY


def test_folders_that_hold_no_model_are_refused_in_one_sentence(folder, tmp_path):
    with pytest.raises(InputError, match="there is no folder .*/nowhere with a language model"):
        load_language_network(f"hf:{tmp_path}/nowhere", 61)
    with pytest.raises(InputError, match=r"is not a language model of transformers: it has no config\.json"):
        load_language_network(f"hf:{tmp_path}", 61)
    with pytest.raises(InputError, match=r"unknown option 'size' of .*; expected layers or dtype"):
        load_language_network(f"hf:{folder}?size=3", 61)
    weights = load_file(folder / "model.safetensors")
    lacking = {name: one for name, one in weights.items() if "layers.1.mlp" not in name}
    save_file(lacking, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks model\.layers\.1\.mlp.*Copy its files again"):
        load_language_network(f"hf:{folder}", 61)
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be loaded: "):
        load_language_network(f"hf:{folder}", 61)


def test_a_name_on_the_hub_is_not_waited_for_where_there_is_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr("logitcache.models.hub._in_reach", lambda _: False)
    with pytest.raises(
        InputError, match=r"hf:someone/nothing cannot be loaded: .*Download it on another machine and pass the folder"
    ):
        load_language_network("hf:someone/nothing", 61)


def test_ready_models_are_wrapped_and_anything_else_is_left_as_it_is():
    model = small.model("llama")
    found = load_language_network(model, small.VOCABULARY)
    assert found.name == "LlamaForCausalLM"
    assert isinstance(found.module, CausalNetwork)
    assert load_language_network(found.module, small.VOCABULARY).module is found.module
    other = nn.Embedding(9, 9)
    assert load_language_network(other, 9).module is other


def test_a_factory_is_called_with_the_number_of_ids(tmp_path, monkeypatch):
    (tmp_path / "mine_text.py").write_text(
        "import language_models as small\n\ndef make(ids):\n    assert ids == small.VOCABULARY\n    return small.model('gpt2')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = load_language_network("mine_text:make", small.VOCABULARY)
    assert found.name == "mine_text:make"
    assert found.module.columns == small.VOCABULARY


def test_unknown_names_are_answered_with_those_that_are_known():
    with pytest.raises(UnknownNameError, match=r"unknown language model 'gpt5'.*hf:PATH, llama:hidden"):
        load_language_network("gpt5", 61)


def test_without_transformers_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs the package transformers: pip install 'logitcache\[lm\]'"):
        load_language_network("llama:hidden=16,layers=1,heads=2", 9)


def test_gradients_are_the_same_with_checkpoints():
    grown, passes = [], []
    for enabled in (False, True):
        network = CausalNetwork(small.model("llama")).train()
        network.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
        network.checkpoint_gradients(enabled=not enabled)
        network.checkpoint_gradients(enabled=enabled)
        found = network(TOKENS)
        found.head(found.states).square().sum().backward()
        grown.append([one.grad for one in network.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*grown, strict=True))
    assert len(passes) == 1 + 2
