"""Completions: greedy ones are the model's own, draws are the seed's and the prompt's, and files say exactly what was generated."""

import json
import sys

import numpy as np
import pytest
import torch

import logitcache
from logitcache.data import load_data
from logitcache.data.text.forms import as_prompt
from logitcache.errors import InputError
from logitcache.generate.rouge import rouge_l
from logitcache.models.language import load_language_network, load_tokenizer
from logitcache.models.language.generate import Sampling, choose_tokens, complete, end_tokens

pytest.importorskip("transformers")

TEACHER = "hf:stories-mini"
PROMPTS = [
    {"prompt": "Once upon a time there was a"},
    {"prompt": "Tom", "completion": " was sad."},
    {"instruction": "Tell a story.", "response": ["Lily had a ball.", "One day, Tom went to the park."]},
]


@pytest.fixture(scope="module")
def network():
    return load_language_network(TEACHER, 512).module


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in PROMPTS))
    return f"jsonl:{path}"


def generated(data, **how):
    return logitcache.generate_completions(TEACHER, data, **({"max_new_tokens": 10} | how))


def ids_of(found):
    return [one.ids.tolist() for one in found.completions]


@torch.no_grad()
def test_greedy_takes_the_likeliest_token_of_each_prompt_alone(network, file):
    """Without padding and without a cache; prompts of different lengths in one batch."""
    found = generated(file)
    for one in found.completions:
        ids = one.prompt.ids.tolist()
        for token in one.ids.tolist():
            assert token == int(network.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
        assert len(one.ids) == 10
        assert not one.ended


def test_draws_depend_on_seed_and_prompt_alone(file):
    how = {"temperature": 1.0, "top_p": 0.95, "seed": 3}
    found = ids_of(generated(file, **how))
    assert found == ids_of(generated(file, **how, batch_size=1))
    assert found[1:] == ids_of(generated(file, **how, samples=(1, 3)))
    assert found != ids_of(generated(file, **(how | {"seed": 4})))
    assert found != ids_of(generated(file))


def test_draws_have_the_probabilities_of_the_softmax():
    """4,000 prompts; the deviation of a share is at most 0.008. With top_p 0.75 the two likeliest are left: 0.5 / 0.8 and 0.3 / 0.8."""
    logits = 2 * torch.log(torch.tensor([0.05, 0.5, 0.15, 0.3])).expand(4000, 4)
    numbers = np.arange(4000)
    drawn = choose_tokens(logits, Sampling(temperature=2.0), numbers, 0)
    shares = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.05, 0.5, 0.15, 0.3]), rtol=0, atol=0.03)
    drawn = choose_tokens(logits, Sampling(temperature=2.0, top_p=0.75), numbers, 1)
    shares = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0, 0.625, 0, 0.375]), rtol=0, atol=0.03)
    assert (choose_tokens(logits, Sampling(), numbers, 0) == 1).all()


def test_a_completion_ends_at_an_end_token_and_others_go_on(network):
    prompts = [np.array([1, 403, 407]), np.array([403])]
    whole = complete(network, prompts, np.arange(2), Sampling(6), [])
    found = complete(network, prompts, np.arange(2), Sampling(6), [int(whole[0][2]), 2])
    assert found[0].tolist() == whole[0][:3].tolist()
    assert len(found[1]) == 6 or found[1][-1] == whole[0][2]


def test_only_ids_that_exist_are_chosen(network):
    free = complete(network, [np.array([403, 407])], np.arange(1), Sampling(3), [])[0]
    bound = complete(network, [np.array([403, 407])], np.arange(1), Sampling(3), [], vocabulary=int(free.max()))[0]
    assert free.max() >= bound.max() + 1


def test_penalties_of_the_model_change_nothing(network):
    """A chat model's own generation settings would; they are as before afterwards."""
    before = complete(network, [np.array([403, 407])], np.arange(1), Sampling(8), [])
    own = network.model.generation_config
    own.repetition_penalty, own.eos_token_id = 9.0, [2, 5]
    try:
        assert end_tokens(network, load_tokenizer(TEACHER)) == [2, 5]
        after = complete(network, [np.array([403, 407])], np.arange(1), Sampling(8), [])
        assert network.model.generation_config is own
    finally:
        own.repetition_penalty, own.eos_token_id = 1.0, 2
    assert after[0].tolist() == before[0].tolist()


def test_text_is_a_form_that_is_read_again(file, tmp_path):
    found = generated(file, rouge=True, out=tmp_path / "c.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [one["completion"] for one in lines] == [one.text for one in found.completions]
    assert lines[0]["prompt"] == PROMPTS[0]["prompt"]
    assert lines[0]["completion"][0] == " "
    assert lines[1]["references"] == [" was sad."]
    assert "rouge_l" not in lines[0]
    assert found.rouge_l == pytest.approx((lines[1]["rouge_l"] + lines[2]["rouge_l"]) / 2)
    again = generated(f"jsonl:{tmp_path / 'c.jsonl'}")
    assert [one.prompt.ids.tolist() for one in again.completions[:2]] == [
        one.prompt.ids.tolist() for one in found.completions[:2]
    ]


def test_tokens_are_read_again_as_they_were_generated(file, tmp_path):
    found = generated(file, temperature=1.0, out=tmp_path / "c.npz")
    read = load_data(f"tokens:{tmp_path / 'c.npz'}")
    for number, one in enumerate(found.completions):
        begin, end = read.documents[number : number + 2]
        assert read.tokens[begin:end].tolist() == [*one.prompt.ids.tolist(), *one.ids.tolist()]
        assert read.targets[begin:end].tolist() == [False] * len(one.prompt.ids) + [True] * len(one.ids)


def test_the_beginnings_of_plain_text_are_prompts(tmp_path):
    found = generated("stories-mini:test", prompt_tokens=6, samples=(0, 2), rouge=True)
    assert [len(one.prompt.ids) for one in found.completions] == [6, 6]
    assert found.rouge_l > 0
    (tmp_path / "t.jsonl").write_text('{"text": "Once upon a time there was a cat."}')
    one = generated(f"jsonl:{tmp_path}/t.jsonl", prompt_tokens=3).completions[0]
    assert load_tokenizer(TEACHER).decode(one.prompt.ids) + " " in "Once upon a time there was a cat."
    assert one.prompt.references


def test_long_prompts_are_left_out(file):
    found = generated(file, max_prompt_tokens=20)
    assert (len(found.completions), found.left_out) == (2, 1)
    assert [one.prompt.number for one in found.completions] == [0, 1]


USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}


@pytest.mark.parametrize(
    ("value", "prompt", "references"),
    [
        ({"prompt": "a"}, "a", ()),
        ({"prompt": "a", "completion": "b"}, "a", ("b",)),
        ({"prompt": "made of it", "instruction": "a", "output": ["b", "c"]}, None, ("b", "c")),
        ({"messages": [USER]}, [USER], ()),
        ({"messages": [USER, ASSISTANT]}, [USER], ("Hello.",)),
        ({"prompt": [USER], "completion": [ASSISTANT]}, [USER], ("Hello.",)),
        ({"prompt": [USER]}, [USER], ()),
    ],
)
def test_every_form_is_a_prompt(value, prompt, references):
    found = as_prompt(value, "p:1")
    assert found.references == references
    assert found.prompt == prompt or "### Instruction:\na\n" in found.prompt


def test_chats_are_prompts_up_to_the_assistant(tmp_path):
    tokenizer = load_tokenizer(TEACHER)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}said {% endif %}"
    )
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": [USER, ASSISTANT]}))
    one = generated(f"jsonl:{tmp_path}/c.jsonl", tokenizer=tokenizer).completions[0]
    assert tokenizer.decode(one.prompt.ids).strip() == "Hi said"
    assert one.prompt.references == ("Hello.",)


WRONG = [
    ({"temperature": -1.0}, "`temperature` must be 0 or more"),
    ({"top_p": 0.0}, "`top_p` must be greater than 0, and at most 1"),
    ({"samples": (2, 9)}, "`samples` 2:9 is out of range: there are 3 prompts"),
    ({"max_new_tokens": 600}, "a prompt of 103 tokens and `max_new_tokens` 600 are more than the 512 positions"),
    ({"max_prompt_tokens": 1}, "all 3 prompts are longer than `max_prompt_tokens` 1"),
    ({"out": "c.txt"}, r"c.txt must end in .jsonl \(text\) or .npz \(tokens\)"),
    ({"samples": (0, 1), "rouge": True}, "`rouge` requires references, but this data has none"),
]


@pytest.mark.parametrize(("how", "message"), WRONG)
def test_what_is_wrong_is_said(file, how, message):
    with pytest.raises(InputError, match=message):
        generated(file, **how)


def test_models_and_data_that_cannot_be_used_are_named(file, tmp_path):
    with pytest.raises(InputError, match="nothing is not a run or a model folder of transformers"):
        logitcache.generate_completions("nothing", file)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no folder student-hf: the run is unfinished"):
        logitcache.generate_completions(tmp_path / "run", file)
    with pytest.raises(InputError, match="stories-mini has no prompts: set the number of tokens"):
        generated("stories-mini")
    with pytest.raises(InputError, match="prompts must be text; expected jsonl:PATH"):
        generated("fashion-mnist-mini")
    (tmp_path / "t.jsonl").write_text('{"text": "a"}')
    with pytest.raises(InputError, match=r"t.jsonl:1 is plain text, which has no prompt"):
        generated(f"jsonl:{tmp_path}/t.jsonl")
    (tmp_path / "c.jsonl").write_text("here")
    with pytest.raises(InputError, match=r"c.jsonl already exists and was not changed"):
        generated(file, out=tmp_path / "c.jsonl")


def test_rouge_l_is_the_best_of_the_references():
    """The longest common subsequence of stems is "cat sat": precision 2 / 3, recall 2 / 4; of the second reference nothing."""
    score = rouge_l()
    assert score("The cats sat", ["a cat sat there", "no"]) == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_a_missing_package_is_one_sentence(monkeypatch, file):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(
        InputError, match=r"ROUGE-L requires the package rouge-score; install it with pip install 'logitcache\[rouge\]'"
    ):
        generated(file, rouge=True)


def test_the_command_says_what_was_generated(run, file):
    done = run("generate", TEACHER, "--data", file, "--max-new-tokens", "5", "--rouge", "--out", "c.jsonl")
    assert done.exit_code == 0, done.output
    assert "c.jsonl: 3 completions, 5.0 tokens on average, 0 stopped at an end token" in done.stdout
    assert "over 2 references" in done.stdout
    done = run("generate", TEACHER, "--data", file, "--max-new-tokens", "5", "--samples", "0:1")
    assert "prompt 0:  little" in done.output or "prompt 0: " in done.output
