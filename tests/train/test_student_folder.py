"""A trained language model is left as transformers loads it, beside the file of weights."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import texts
import torch
from safetensors.torch import load_file

import logitcache
from logitcache.errors import StoppedError
from logitcache.models.language import load_tokenizer, tokenizer_facts
from logitcache.runtime.files import fill_folder, remove_leftovers

transformers = pytest.importorskip("transformers")

STUDENT = "llama:hidden=16,layers=1,heads=2"
FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What the teacher that ships says of a few sentences: its tokenizer is recorded."""
    folder = tmp_path_factory.mktemp("stories")
    lines = [
        {"text": f"Once upon a time there was a {word}. It was {word} and happy."}
        for word in ("red", "big", "cat", "dog", "sun")
    ]
    (folder / "t.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return logitcache.dump_logits(teacher="hf:stories-mini", data=f"jsonl:{folder}/t.jsonl", out=folder / "c.zarr")


def trained(cache, out, **changes):
    given = {"student": STUDENT, "method": "kd", "epochs": 2, "batch_size": 2, "lr": 1e-2}
    return logitcache.train_student(cache, out=out, **(given | changes))


def logits_of(model, seed=0):
    tokens = torch.randint(0, 512, (2, 9), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(input_ids=tokens).logits


@pytest.mark.parametrize("student", [STUDENT, f"{STUDENT},tied=false", "hf:stories-mini?layers=0,3"])
def test_transformers_loads_what_was_trained(cache, tmp_path, student):
    found = trained(cache, tmp_path / "r", student=student)
    assert {one.name for one in (tmp_path / "r/student-hf").iterdir()} == FILES
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "r/student-hf")
    assert torch.equal(logits_of(loaded), logits_of(found.student.model))
    assert tokenizer_facts(load_tokenizer(f"hf:{tmp_path}/r/student-hf")) == tokenizer_facts(
        load_tokenizer("hf:stories-mini")
    )


def test_it_is_a_teacher_for_others(cache, tmp_path):
    """Its rows are its own logits, and text is read with its tokenizer."""
    student = trained(cache, tmp_path / "r").student
    (tmp_path / "t.txt").write_text("Once upon a time there was a sun.")
    given = {"teacher": f"hf:{tmp_path}/r/student-hf", "data": f"text:{tmp_path}/t.txt", "encoding": "full"}
    dumped = logitcache.dump_logits(out=tmp_path / "c.zarr", precision="f32", **given)
    ids = load_tokenizer("hf:stories-mini")("Once upon a time there was a sun.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = student.model(input_ids=ids).logits[0, :-1]
    rows = torch.from_numpy(dumped.rows(0, dumped.teacher, np.arange(len(expected)))["logits"])
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)


def test_the_best_epoch_and_the_average_have_folders_too(cache, tmp_path):
    trained(cache, tmp_path / "r", holdout=0.3, model_ema_decay=0.5)
    weights = set()
    for name in ("student", "student-best", "student-ema", "student-ema-best"):
        ours = load_file(tmp_path / f"r/{name}.safetensors")
        theirs = load_file(tmp_path / f"r/{name}-hf/model.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert (tmp_path / f"r/{name}-hf/tokenizer.json").exists()
        weights.add((tmp_path / f"r/{name}-hf/model.safetensors").read_bytes())
    assert len(weights) >= 2


def test_a_run_that_was_broken_off_leaves_the_same_folder(cache, tmp_path):
    trained(cache, tmp_path / "whole", holdout=0.3)
    steps = []
    with pytest.raises(StoppedError):
        trained(cache, tmp_path / "r", holdout=0.3, on_progress=steps.append, should_stop=lambda: len(steps) == 3)
    assert not (tmp_path / "r/student-hf").exists()
    left = tmp_path / "r/.student-hf.1.partial"
    left.mkdir()
    (left / "config.json").write_text("{")
    trained(cache, tmp_path / "r", holdout=0.3, resume=True)
    assert not left.exists()
    for name in ("student-hf", "student-best-hf"):
        files = [{one.name: one.read_bytes() for one in (tmp_path / run / name).iterdir()} for run in ("whole", "r")]
        assert files[0] == files[1]


def test_training_on_replaces_the_weights(cache, tmp_path):
    trained(cache, tmp_path / "r")
    before = load_file(tmp_path / "r/student-hf/model.safetensors")
    student = trained(cache, tmp_path / "r", epochs=3, resume=True, extend="stretch").student
    after = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "r/student-hf")
    assert torch.equal(logits_of(after), logits_of(student.model))
    assert not all(torch.equal(before[key], value) for key, value in student.state_dict().items())


def test_a_tokenizer_that_is_not_at_hand_is_left_out(cache, tmp_path):
    """A copy of the teacher without its tokenizer, whose ids came as they are."""
    teacher = Path(trained(cache, tmp_path / "t").path) / "student-hf"
    for one in teacher.glob("tokenizer*"):
        one.unlink()
    samples = texts.stories(6, 20)
    np.savez(tmp_path / "t.npz", tokens=samples.tokens, documents=samples.documents, vocabulary=512)
    dumped = logitcache.dump_logits(teacher=f"hf:{teacher}", data=f"tokens:{tmp_path}/t.npz", out=tmp_path / "c.zarr")
    trained(dumped, tmp_path / "r")
    assert {one.name for one in (tmp_path / "r/student-hf").iterdir()} == {one for one in FILES if "token" not in one}


def test_networks_of_other_kinds_have_no_folder(tmp_path):
    dumped = logitcache.dump_logits(teacher=texts.teacher(40), data=texts.contexts(20), out=tmp_path / "c.zarr")
    trained(dumped, tmp_path / "r", student="texts:Student")
    assert not (tmp_path / "r/student-hf").exists()


def test_a_model_that_cannot_be_written_still_ends_its_run(cache, tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise ValueError("not serializable")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", refuse)
    with caplog.at_level(logging.WARNING):
        found = trained(cache, tmp_path / "r")
    assert found.results["loss"] > 0
    assert (tmp_path / "r/student.safetensors").exists()
    assert not (tmp_path / "r/student-hf").exists()
    assert "was not saved to" in caplog.text
    assert "ValueError: not serializable" in caplog.text


def test_a_folder_is_filled_whole_or_left_as_it_was(tmp_path):
    folder = tmp_path / "f"
    with fill_folder(folder, last="b") as made:
        (made / "a").write_text("1")
        (made / "b").write_text("1")
    with pytest.raises(KeyboardInterrupt), fill_folder(folder, last="b") as made:
        (made / "a").write_text("2")
        raise KeyboardInterrupt
    assert {one.name: one.read_text() for one in folder.iterdir()} == {"a": "1", "b": "1"}
    assert [one.name for one in tmp_path.iterdir()] == ["f"]


def test_the_file_that_says_that_all_are_there_comes_last(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    replace = Path.replace

    def once(self, target):
        if self.name == "z":
            raise Killed
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", once)
    with pytest.raises(Killed), fill_folder(tmp_path / "f", last="a") as made:
        for name in ("a", "m", "z"):
            (made / name).write_text(name)
    assert [one.name for one in (tmp_path / "f").iterdir()] == ["m"]


def test_leftover_folders_are_removed(tmp_path):
    (tmp_path / ".student-hf.7.partial").mkdir()
    (tmp_path / ".student-hf.7.partial/config.json").write_text("{")
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())
