"""Dumps of text: every row where it says and what the model says, whatever happens to the dump and to the files."""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest
import texts
import tiny

import logitcache
from logitcache.data.text.modality import documents_of
from logitcache.errors import CacheMismatchError, InputError
from logitcache.store import open_cache

STUDENT = "llama:hidden=16,layers=1,heads=2"
STORIES = (
    "Once upon a time, there was a little dog. It was big and red.",
    "Lily had a ball.\n\nShe liked to play with it.\n \nOne day, it was gone.",
    "Tom saw a cat.",
)


def told_to(path, pause=0.0, **changes):
    given = {
        "teacher": texts.Teller(),
        "data": texts.contexts(120, targets=True),
        "encoding": "full",
        "precision": "f32",
        "batch_size": 4,
        "block_rows": 32,
        "on_progress": lambda _: time.sleep(pause),
    }
    return logitcache.dump_logits(out=path, **(given | changes))


def child(path):
    """Dump in a process of its own, until it is done."""
    return tiny.in_a_child(lambda: told_to(path, pause=0.004))


@pytest.mark.parametrize(("processes", "kills"), tiny.usual([(1, 3), (2, 3), (1, 60), (2, 60)], [(1, 3)]))
def test_dumps_killed_at_random_moments_end_in_the_bytes_of_an_unbroken_one(tmp_path, processes, kills):
    """SIGKILL; between kills a cache is refused or whole, and a row is where it says."""
    tiny.kill_dumps(tmp_path, told_to, child, processes=processes, kills=kills, longest=0.25)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import logitcache.dump.job\nlogitcache.dump.job.block_rows_for = lambda *_: 32\n"
    )
    words = f"dump --teacher texts:teacher --data texts:make --out {tmp_path / 'two.zarr'} --batch-size 4 --threads 1"
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "logitcache"]
    done = subprocess.run(
        [sys.executable, *start, *words.split()],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{tiny.HERE}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stderr
    cache = logitcache.dump_logits(
        teacher="texts:teacher", data="texts:make", out=tmp_path / "one.zarr", batch_size=4, threads=1, block_rows=32
    )
    assert cache.manifest.blocks > 5
    assert tiny.bytes_of(tmp_path / "two.zarr") == tiny.bytes_of(cache.place.path)


def test_training_is_given_the_row_of_each_token(tmp_path):
    """A student that says what its teacher said has nothing to learn: packed, accumulated, after a slice and a merge."""
    cache = told_to(tmp_path / "c.zarr")
    parts = [
        logitcache.slice_cache(cache, tmp_path / f"{first}.zarr", samples=(first, last))
        for first, last in ((0, 50), (50, 120))
    ]
    for number, one in enumerate([cache, parts[1], logitcache.merge_caches(parts[::-1], tmp_path / "both.zarr")]):
        found = logitcache.train_student(
            one,
            texts.Teller(),
            out=tmp_path / f"r{number}",
            method="kd",
            epochs=1,
            batch_size=5,
            grad_accum_steps=3,
            sequence_length=20,
            lr=1e-30,
            ce_weight=0.0,
            kd_weight=1.0,
        )
        assert found.results["loss"] < 1e-12
        assert found.metrics[0]["teacher_agreement"] == found.results["teacher_agreement"] == 1.0


@pytest.fixture
def folder(tmp_path):
    """Three files of stories, and the teacher that ships as a folder."""
    pytest.importorskip("transformers")
    shutil.copytree(str(resources.files("logitcache.demo_text") / "teacher"), tmp_path / "teacher")
    (tmp_path / "stories").mkdir()
    for number, story in enumerate(STORIES):
        (tmp_path / "stories" / f"{number}.txt").write_text(story)
    return tmp_path


def dump_words(*more, out="c.zarr"):
    return ("dump", "--teacher", "hf:teacher", "--data", "text:stories", "--out", out, *more)


@pytest.mark.parametrize(
    ("words", "contexts", "longest", "said"),
    [
        ((), 3, 31, ""),
        (("--documents-by", "blank-line"), 5, 20, ""),
        (("--sequence-length", "16"), 5, 16, "2 documents of 3 longer than 16 tokens: split into several contexts"),
        (("--sequence-length", "16", "--too-long", "cut"), 3, 16, "cut, 19 tokens are not used"),
        (("--sequence-length", "16", "--too-long", "drop"), 1, 7, "left out, 51 tokens are not used"),
        (("--sequence-length", "16", "--pack", "stream"), 4, 16, ""),
    ],
    ids=["as they are", "paragraphs", "split", "cut", "drop", "stream"],
)
def test_the_command_line_divides_text_as_told(run, folder, words, contexts, longest, said):
    result = run(*dump_words(*words))
    assert result.exit_code == 0, result.output
    found = documents_of(open_cache("c.zarr"))
    assert (len(found), found.longest) == (contexts, longest)
    assert said in " ".join(result.output.split())


def test_the_command_line_takes_answers_or_all_tokens(run, folder):
    (folder / "a.jsonl").write_text('{"prompt": "Once upon a time", "completion": ", there was a dog."}\n')
    rows = {}
    for which in ("completion", "all"):
        result = run(*dump_words("--data", "jsonl:a.jsonl", "--rows", which, out=f"{which}.zarr"))
        assert result.exit_code == 0, result.output
        rows[which] = documents_of(open_cache(f"{which}.zarr"))
    assert rows["completion"].targets[-1]
    assert 0 < len(rows["completion"].labels) < len(rows["all"].labels) == len(rows["all"].tokens) - 1


@pytest.mark.parametrize(
    "option", ["--sequence-length 16", "--too-long cut", "--pack stream", "--rows all", "--documents-by file"]
)
def test_options_for_text_are_refused_beside_images(run, npz, option):
    result = run("dump", "--teacher", "tiny:net", "--data", f"arrays:{npz}", "--out", "c.zarr", *option.split())
    assert result.exit_code == 1
    assert result.output.count("error: ") == 1
    assert not Path("c.zarr").exists()


def test_a_cache_trains_after_its_files_are_gone(run, folder):
    assert run(*dump_words()).exit_code == 0
    shutil.rmtree(folder / "stories")
    shutil.rmtree(folder / "teacher")
    result = run("train", "c.zarr", "--student", STUDENT, "--epochs", "1", "--out", "r")
    assert result.exit_code == 0, result.output


def test_text_given_at_training_is_read_with_the_tokenizer_of_the_dump(run, folder):
    """The same text is taken; other text and another tokenizer are refused."""
    assert run(*dump_words()).exit_code == 0
    given = ("train", "c.zarr", "--student", STUDENT, "--epochs", "1", "--data", "text:stories")
    result = run(*given, "--out", "same")
    assert result.exit_code == 0, result.output
    assert run("verify", "c.zarr", "--data", "text:stories").exit_code == 0
    (folder / "stories/2.txt").write_text("Tom saw a dog.")
    result = run(*given, "--out", "other")
    assert result.exit_code == 1
    assert "has different" in result.output
    file = folder / "teacher/tokenizer.json"
    other = json.loads(file.read_text())
    other["model"]["merges"].pop()
    file.write_text(json.dumps(other))
    result = run(*given, "--out", "other")
    assert result.exit_code == 1
    assert "the tokenizer of hf:teacher is not the one that the cache was made with" in " ".join(result.output.split())


def test_a_tokenizer_that_is_not_the_teachers_is_found_again(folder, monkeypatch):
    (folder / "teacher").rename(folder / "words")
    given = {"teacher": "texts:wide", "data": "text:stories", "tokenizer": "hf:words"}
    monkeypatch.chdir(folder)
    cache = logitcache.dump_logits(**given, out="c.zarr")
    assert cache.manifest.data["tokenizer"]["source"] == "hf:words"
    logitcache.train_student(cache, STUDENT, data="text:stories", epochs=1, out="r")
    shutil.rmtree("words")
    with pytest.raises((InputError, CacheMismatchError), match="hf:words"):
        logitcache.train_student(cache, STUDENT, data="text:stories", epochs=1, out="r2")
