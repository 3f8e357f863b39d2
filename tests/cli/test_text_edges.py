"""What goes wrong with text on the command line, each with its sentence."""

import json
import re
import shutil
from importlib import resources
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from logitcache.cli.app import app
from typer.testing import CliRunner

from logitcache.caches import fidelity

pytest.importorskip("transformers")

TEACHER = "--teacher hf:stories-mini"
STUDENT = "--student llama:hidden=8,layers=1,heads=2 --epochs 1"
TOKENS = np.arange(1, 200, dtype=np.uint16)


@pytest.fixture
def typed(run):
    """Type a line; returns its exit code and what it prints, as one line."""

    def type_(line: str) -> tuple[int, str]:
        done = run(*line.split())
        return done.exit_code, " ".join(done.output.split())

    return type_


def tokens(name: str, **changes) -> None:
    np.savez(name, **({"tokens": TOKENS, "documents": np.array([0, 100, 199]), "vocabulary": 512} | changes))


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    """A cache of two contexts, as the command line leaves it."""
    folder = tmp_path_factory.mktemp("dumped")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tokens("ok.npz")
        line = f"dump {TEACHER} --data tokens:ok.npz --out t.zarr"
        assert CliRunner().invoke(app, line.split(), prog_name="logitcache").exit_code == 0
    return folder


@pytest.fixture
def cache(typed, dumped, tmp_path):
    """That cache in the folder of the test, with its data."""
    shutil.copytree(dumped, tmp_path, dirs_exist_ok=True)


FILES = {
    "one.jsonl": '{"text": "a \\ud800 cat"}',
    "one.npz": "no zip",
}
WRONG_FILES = [
    ("jsonl:one.jsonl", "one.jsonl:1: `text` contains an unpaired surrogate, which is not a character."),
    (
        "tokens:one.npz",
        "one.npz is not an .npz file. Write one with numpy.savez, with the arrays tokens and documents.",
    ),
    ("tokens:two.npz", "there is no file two.npz"),
    ("tokens:empty.npz", "empty.npz has no array tokens and no array documents; it has none"),
    ("text:", "text: names no file: expected text:PATH"),
    ("imagefolder:", "imagefolder: names no folder: expected imagefolder:PATH"),
    ("stories-mini:valid", "unknown split of stories-mini 'valid'. Known: test, train"),
    ("fashion-mnist-mini:valid", "unknown split of fashion-mnist-mini 'valid'. Known: test, train"),
    ("fashion-mnist-mini", "hf:stories-mini is a language model, but the data is not text"),
]


@pytest.mark.parametrize(("data", "message"), WRONG_FILES)
def test_a_file_that_cannot_be_used_is_one_sentence(typed, data, message):
    for name, content in FILES.items():
        Path(name).write_text(content)
    ZipFile("empty.npz", "w").close()
    code, said = typed(f"dump {TEACHER} --data {data} --out c.zarr")
    assert code == 1
    assert f"error: {message}" in said


@pytest.mark.parametrize("vocabulary", [np.array("many"), np.array([512, 3]), np.array(0.5)])
def test_a_vocabulary_that_is_no_number_is_refused(typed, vocabulary):
    tokens("odd.npz", vocabulary=vocabulary)
    code, said = typed(f"dump {TEACHER} --data tokens:odd.npz --out c.zarr")
    assert code == 1
    assert "error: odd.npz: vocabulary must be an integer, the number of ids, not" in said


def test_a_mark_of_byte_order_is_no_text(typed):
    Path("mark.jsonl").write_text('\ufeff{"text": "Once upon a time"}', encoding="utf-8")
    Path("mark.txt").write_text("\ufeffOnce upon a time", encoding="utf-8")
    assert typed(f"dump {TEACHER} --data jsonl:mark.jsonl --out a.zarr")[0] == 0
    assert typed(f"dump {TEACHER} --data text:mark.txt --out b.zarr")[0] == 0
    assert json.loads(Path("a.zarr/zarr.json").read_text())["attributes"]["logitcache"]["data"]["bytes"] == 16
    assert json.loads(Path("b.zarr/zarr.json").read_text())["attributes"]["logitcache"]["data"]["bytes"] == 16


OPTIONS = [
    ("--image-size 32", "--image-size is for images, but the data is text; leave it out"),
    ("--mean 0.5,0.5,0.5", "--mean is for images, but the data is text; leave it out"),
    ("--exif-orientation", "--exif-orientation is for images, but the data is text; leave it out"),
    ("--teacher-classes 600", "--teacher-classes is for images, but the data is text; leave it out"),
    ("--class-map map.json", "--class-map is for images, but the data is text; leave it out"),
    ("--channels-last", "--channels-last is for images, but the data is text; leave it out"),
    (
        "--documents-by blank-line",
        "--documents-by is for text:PATH; in tokens:PATH the documents are already separate. Leave it out.",
    ),
    ("--too-long cut", "--too-long applies to documents longer than --sequence-length; set that too"),
    ("--tokenizer hf:.", "holds no tokenizer: it has no tokenizer.json"),
    ("--tokenizer hf:", "hf: does not name a model; expected hf:PATH, a folder of transformers, or hf:FILE.gguf"),
]


@pytest.mark.parametrize(("option", "message"), OPTIONS)
def test_an_option_that_means_nothing_for_text_is_refused(typed, option, message):
    tokens("ok.npz")
    code, said = typed(f"dump {TEACHER} --data tokens:ok.npz {option} --out c.zarr")
    assert code == 1
    assert message in said


def test_options_of_images_are_refused_at_the_training_too(typed, cache):
    code, said = typed(f"train t.zarr {STUDENT} --image-size 32 --out r")
    assert code == 1
    assert "error: --image-size is for images, but the data is text; leave it out" in said


def test_a_context_beyond_the_positions_of_a_model_is_refused(typed, cache):
    Path("long.txt").write_text("Once upon a time there was a cat. " * 60)
    code, said = typed(f"dump {TEACHER} --data text:long.txt --out c.zarr")
    assert code == 1
    assert (
        "error: the longest context has 601 tokens, but the network has only 512 positions; dump with --sequence-length 512"
        in said
    )
    assert typed(f"dump {TEACHER} --data text:long.txt --sequence-length 512 --out c.zarr")[0] == 0
    code, said = typed(f"train t.zarr {STUDENT.replace('heads=2', 'heads=2,context=64')} --out r")
    assert code == 1
    assert "the longest context has 100 tokens, but the network has only 64 positions" in said
    code, said = typed(
        f"train t.zarr {STUDENT.replace('heads=2', 'heads=2,context=128')} --test-data text:long.txt --out r"
    )
    assert code == 1
    assert "a context has 601 tokens, but LlamaForCausalLM only has positions for 128" in said


def test_packed_sequences_may_be_longer_than_positions_reach(typed, cache):
    """Positions begin anew in each context."""
    code, said = typed(
        f"train t.zarr {STUDENT.replace('heads=2', 'heads=2,context=100')} --sequence-length 256 --out r"
    )
    assert code == 0, said


def test_test_data_of_another_vocabulary_is_refused(typed, cache):
    tokens("other.npz", vocabulary=1000)
    code, said = typed(f"train t.zarr {STUDENT} --test-data tokens:other.npz --out r")
    assert code == 1
    assert (
        "error: other.npz has a vocabulary of 1,000 ids, but 512 are expected; its tokens were made with another tokenizer"
        in said
    )


def test_text_that_was_dumped_is_read_again_with_the_tokenizer_of_its_teacher(typed):
    Path("a.txt").write_text("Once upon a time there was a cat.")
    assert typed(f"dump {TEACHER} --data text:a.txt --out c.zarr")[0] == 0
    assert typed("verify c.zarr --data text:a.txt")[0] == 0
    assert typed(f"train c.zarr {STUDENT} --data text:a.txt --out r")[0] == 0
    Path("a.txt").write_text("Once upon a time there was a dog.")
    code, said = typed("verify c.zarr --data text:a.txt")
    assert code == 1
    assert "the data of c.zarr has different labels" in said


def test_a_training_without_a_cache_has_the_usual_settings_too(typed):
    tokens("ok.npz")
    code, said = typed(f"train {STUDENT} --method ce --data tokens:ok.npz --out r")
    assert code == 0
    assert "defaults for this data: --batch-size 8" in said
    assert json.loads(Path("r/run.json").read_text())["settings"]["opt"] == "adamw"


def test_a_student_with_another_tokenizer_is_warned_of(typed, cache, caplog):
    folder = resources.files("logitcache.demo_text") / "teacher"
    for name in ("same", "other"):
        shutil.copytree(str(folder), name)
    content = json.loads(Path("other/tokenizer.json").read_text())
    content["model"]["merges"].pop()
    Path("other/tokenizer.json").write_text(json.dumps(content))
    assert typed("train t.zarr --student hf:./same --epochs 1 --out r/same")[0] == 0
    assert "another tokenizer" not in caplog.text
    assert typed("train t.zarr --student hf:./other --epochs 1 --out r/other")[0] == 0
    assert "hf:./other has a different tokenizer from the one that made the tokens" in caplog.text


def test_a_page_about_text_is_written(typed, cache):
    code, _ = typed("stats t.zarr --report page.html")
    assert code == 0
    assert "Most surprising tokens" in Path("page.html").read_text()


def test_stats_of_text_show_no_labels_that_look_wrong(typed, cache):
    """A token that the teacher did not expect is no error, and beginnings of documents are alike."""
    code, said = typed("stats t.zarr --all")
    assert code == 0
    assert "Rank of the true class" in said
    for words in ("label errors", "duplicates", "confused", "worst classes", "pixels"):
        assert words not in said
    found = json.loads(typed("stats t.zarr --json")[1])
    assert found["odd"] == found["duplicates"] == []


def test_what_storing_costs_is_measured_as_text_is_trained(typed, cache):
    """At temperature 1, with what was not kept as one class."""
    assert typed("slice t.zarr --top-k 16 --precision u8 --out s.zarr")[0] == 0
    usual = json.loads(typed("fidelity s.zarr --method kd --json")[1])["stored"]["methods"]
    said = "fidelity s.zarr --method kd --json --temperature 1 --set tail=bucket"
    assert usual == json.loads(typed(said)[1])["stored"]["methods"]
    hot = json.loads(typed(f"{said} --temperature 4")[1])["stored"]["methods"]
    assert hot != usual
    advice = typed("stats s.zarr --advise")[1]
    assert not re.search(r"advice: \w+ at T=[2-9]", advice)
    assert "or --encoding full" not in advice


def test_advice_looks_at_few_rows_of_many_classes(typed, cache, monkeypatch):
    """Of a vocabulary of 49,152 all 256 rows took ten minutes, at the end of every dump."""
    assert typed("slice t.zarr --top-k 16 --precision u8 --out s.zarr")[0] == 0
    seen = []
    measured = fidelity._measured
    monkeypatch.setattr(fidelity, "_VALUES", 10 * 512)
    monkeypatch.setattr(
        fidelity,
        "_measured",
        lambda encoding, *rest: seen.append((encoding, len(rest[1].ids))) or measured(encoding, *rest),
    )
    assert fidelity.advice("s.zarr")
    assert {rows for _, rows in seen} == {10}
    assert all(getattr(encoding, "k", 16) >= 16 for encoding, _ in seen)


def test_memory_is_that_of_a_row(typed, cache):
    assert typed(f"train t.zarr {STUDENT} --out r")[0] == 0
    said = typed("compare r")[1].replace("│", "").replace("┃", "")
    assert re.search(r"B /\s+row|B / row", " ".join(said.split()))
