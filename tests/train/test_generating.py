"""ROUGE-L of completions while a student trains."""

import json

import numpy as np
import pytest
import texts

import logitcache
from logitcache import TrainSettings
from logitcache.data import as_samples
from logitcache.data.exclusion import Reading
from logitcache.data.text.prompts import prompts_of
from logitcache.data.text.reading import TextReading
from logitcache.data.text.tokenizer import Tokenizer
from logitcache.errors import InputError, StoppedError
from logitcache.models.language.load import load_language_network
from logitcache.models.language.tokenizer import load_tokenizer
from logitcache.train.completing import completer_for

pytest.importorskip("transformers")
pytest.importorskip("rouge_score")

STUDENT = "hf:stories-mini?layers=0,4"
HOW = {"student": STUDENT, "method": "kd", "epochs": 2, "batch_size": 2, "lr": 1e-3}
LINES = [
    {"instruction": "Tell a story.", "response": "Once upon a time there was a cat."},
    {"prompt": "Lily had", "completion": " a red ball. She liked to play."},
    {"prompt": "Tom was", "completion": " sad and did not want to go."},
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Prompts and completions, and what the teacher that ships says of them."""
    folder = tmp_path_factory.mktemp("answers")
    file = folder / "answers.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in LINES))
    return f"jsonl:{file}", logitcache.dump_logits("hf:stories-mini", f"jsonl:{file}", folder / "c.zarr", rows="all")


def trained(cache, out, **changes):
    return logitcache.train_student(cache, out=out, **(HOW | {"loss_on": "completion"} | changes))


def test_rouge_l_of_an_epoch_is_that_of_its_student(answers, tmp_path):
    """From prompts and completions to a cache, a student, its completions and their ROUGE-L."""
    data, cache = answers
    found = trained(cache, tmp_path / "r", test_data=data, generate=3, generate_tokens=12)
    values = [one["rouge_l"] for one in found.metrics]
    assert len(values) == 2
    assert found.results["rouge_l"] == values[-1] > 0
    again = logitcache.generate_completions(tmp_path / "r", data, max_new_tokens=12, rouge=True, batch_size=2)
    assert again.rouge_l == pytest.approx(values[-1], abs=1e-12)
    recorded = json.loads((tmp_path / "r/run.json").read_text())["settings"]
    assert (recorded["generate"], recorded["generate_tokens"]) == (3, 12)
    without = trained(cache, tmp_path / "w", test_data=data)
    assert "generate" not in json.loads((tmp_path / "w/run.json").read_text())["settings"]
    assert without.metrics[-1]["loss"] == found.metrics[-1]["loss"]


def test_documents_that_are_held_out_are_completed(answers, tmp_path):
    found = trained(
        answers[1], tmp_path / "r", holdout=0.3, generate=5, generate_tokens=4, epochs=1, model_ema_decay=0.5
    )
    assert 0 <= found.results["rouge_l"] <= 1
    assert "ema_rouge_l" in found.results


def test_a_stop_is_heard_between_batches_of_prompts(answers, tmp_path, monkeypatch):
    from logitcache.train import completing

    begun = list[str]()
    complete_all = completing.complete_all

    def watched(*given, **named):
        begun.append("")
        return complete_all(*given, **named)

    monkeypatch.setattr(completing, "complete_all", watched)
    how = {"test_data": answers[0], "generate": 3, "generate_tokens": 2, "batch_size": 1, "epochs": 1}
    with pytest.raises(StoppedError, match="before its evaluation"):
        trained(answers[1], tmp_path / "r", **how, should_stop=lambda: bool(begun))
    done = trained(answers[1], tmp_path / "r", **how, resume=True)
    assert "rouge_l" in done.results


WRONG = [
    ({}, "`generate` needs test data of text"),
    ({"student": "texts:wide"}, "only by language models of transformers"),
    ({"generate_tokens": 600}, "has no prompts with completions that fit into the student's positions"),
    ({"generate": None, "generate_tokens": 5}, "`generate_tokens` requires `generate`"),
    ({"generate_temperature": -1.0}, "`generate_temperature` must be 0 or more"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_cannot_be_completed_is_said_before_training(answers, tmp_path, changes, message):
    data = {} if not changes else {"test_data": answers[0]}
    with pytest.raises(InputError, match=message):
        trained(answers[1], tmp_path / "r", **({"generate": 2} | data | changes))
    assert not (tmp_path / "r").exists()


def test_text_without_prompts_is_refused(answers, tmp_path):
    with pytest.raises(InputError, match="the test data has no prompts with completions"):
        trained(answers[1], tmp_path / "r", test_data=texts.stories(3, 20), generate=2)


def test_prompts_that_do_not_fit_are_counted_in_the_log(answers, caplog):
    network = load_language_network("hf:stories-mini", 512).module
    reading = Reading(text=TextReading(tokenizer=Tokenizer(load_tokenizer("hf:stories-mini"))))
    test = as_samples(answers[0], reading=reading)
    lengths = sorted(len(one.ids) for one in prompts_of(test, reading.text.tokenizer.wrapped, np.arange(3)))
    settings = TrainSettings(generate=5, generate_tokens=network.positions - lengths[1])
    with caplog.at_level("INFO", "logitcache"):
        found = completer_for(test, None, network, settings, ["hf:stories-mini"])
    assert len(found.prompts) == 2
    assert f"generation leaves out 1 of 3 test prompts, because they have more than {lengths[1]} tokens" in caplog.text
