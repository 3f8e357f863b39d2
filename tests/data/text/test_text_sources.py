"""Text by name: contexts, targets and lengths; and whatever is wrong, in one sentence with file and line."""

import json

import numpy as np
import pytest
import texts

from logitcache.data import load_data
from logitcache.data.exclusion import Reading
from logitcache.data.open import named_modality
from logitcache.data.text.reading import TextReading
from logitcache.errors import InputError, UnknownNameError

pytest.importorskip("transformers")

WORDS = "a b c d e f g end"


@pytest.fixture
def opened(tmp_path):
    """Write a file and open it."""
    from logitcache.data.text.tokenizer import Tokenizer

    def open_(kind, content, template=texts.TEMPLATE, end=None, **how):
        path = tmp_path / f"data.{ {'text': 'txt', 'jsonl': 'jsonl'}[kind] }"
        path.write_text("\n".join(map(json.dumps, content)) if kind == "jsonl" else content)
        reading = TextReading(tokenizer=Tokenizer(texts.wrapped(WORDS, template=template, end=end)), **how)
        return load_data(f"{kind}:{path}", Reading(text=reading))

    return open_


def listed(documents):
    return [one.tolist() for one in np.split(documents.tokens, documents.documents[1:-1])]


def targets(documents):
    return [one.astype(int).tolist() for one in np.split(documents.targets, documents.documents[1:-1])]


def tokens(tmp_path, **arrays):
    np.savez(tmp_path / "t.npz", **arrays)
    return f"tokens:{tmp_path / 't.npz'}"


def test_tokens_need_no_tokenizer(tmp_path):
    spec = tokens(tmp_path, tokens=np.arange(7, dtype="u2"), documents=np.array([0, 3, 7]))
    found = load_data(spec, Reading(text=TextReading(vocabulary=10)))
    assert listed(found) == [[0, 1, 2], [3, 4, 5, 6]]
    assert targets(found) == [[0, 1, 1], [0, 1, 1, 1]]
    assert found.vocabulary == 10
    split = load_data(spec, Reading(text=TextReading(vocabulary=10, sequence_length=2)))
    assert listed(split) == [[0, 1], [2], [3, 4], [5, 6]]
    spec = tokens(
        tmp_path, tokens=np.arange(4), documents=np.array([0, 4]), targets=np.array([1, 0, 1, 0], bool), vocabulary=9
    )
    found = load_data(spec)
    assert targets(found) == [[0, 0, 1, 0]]
    assert found.vocabulary == 9
    assert targets(load_data(spec, Reading(text=TextReading(rows="all")))) == [[0, 1, 1, 1]]


def test_tokens_that_are_not_compressed_stay_on_disk(tmp_path):
    arrays = {"tokens": np.arange(7, dtype="u2"), "documents": np.array([0, 3, 7]), "vocabulary": np.array(9)}
    found = load_data(tokens(tmp_path, **arrays))
    assert isinstance(found.tokens, np.memmap)
    np.savez_compressed(tmp_path / "z.npz", **arrays)
    packed = load_data(f"tokens:{tmp_path}/z.npz")
    assert not isinstance(packed.tokens, np.memmap)
    assert packed.digest() == found.digest()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"tokens": [1, 2]}, "t.npz has no array documents; it has tokens"),
        ({"tokens": [1, 2], "documents": [0, 2]}, "does not give the size of its vocabulary"),
        (
            {"tokens": [1, 20], "documents": [0, 2], "vocabulary": 9},
            r"t.npz: token 1 .* has id 20, but the vocabulary has ids 0 to 8",
        ),
        (
            {"tokens": [1, 2], "documents": [0, 1, 1, 2], "vocabulary": 9},
            "document 1 is empty: it begins and ends at token 1",
        ),
        ({"tokens": [1, 2], "documents": [0, 1, 2], "vocabulary": 9}, "has no target tokens"),
    ],
)
def test_what_is_wrong_with_tokens_is_said(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        load_data(tokens(tmp_path, **{name: np.array(values) for name, values in arrays.items()}))


def test_a_file_is_a_document_or_each_paragraph(opened):
    content = "a b\nc\n\n\n  \nd e\n\nf"
    assert listed(opened("text", content)) == [[1, 2, 3, 4, 5, 6]]
    assert listed(opened("text", content, documents_by="blank-line")) == [[1, 2, 3], [4, 5], [6]]
    assert opened("text", content).facts["bytes"] == len(content)


def test_folders_and_patterns_are_read_in_the_order_of_names(tmp_path):
    from logitcache.data.text.tokenizer import Tokenizer

    reading = Reading(text=TextReading(tokenizer=Tokenizer(texts.wrapped(WORDS))))
    for name, content in (("b.txt", "b b"), ("a.txt", "a a"), ("other.md", "c c")):
        (tmp_path / name).write_text(content)
    assert listed(load_data(f"text:{tmp_path}", reading)) == [[1, 1], [2, 2]]
    assert listed(load_data(f"text:{tmp_path}/*.md", reading)) == [[3, 3]]
    with pytest.raises(InputError, match="no file or folder matches"):
        load_data(f"text:{tmp_path}/nothing", reading)
    with pytest.raises(InputError, match="is text and needs a tokenizer"):
        load_data(f"text:{tmp_path}")


@pytest.mark.parametrize(
    ("how", "expected", "note"),
    [
        ({}, [[1, 2, 3, 4, 5], [6, 7]], None),
        ({"sequence_length": 2}, [[1, 2], [3, 4], [5], [6, 7]], "1 document of 2 longer than 2 tokens: split"),
        ({"sequence_length": 2, "too_long": "cut"}, [[1, 2], [6, 7]], "cut, 3 tokens are not used"),
        ({"sequence_length": 2, "too_long": "drop"}, [[6, 7]], "left out, 5 tokens are not used"),
        ({"sequence_length": 3, "pack": "stream"}, [[1, 2, 3], [4, 5, 6], [7]], None),
    ],
)
def test_long_documents_are_split_cut_or_dropped_and_counted(opened, how, expected, note):
    found = opened("jsonl", [{"text": "a b c d e"}, {"text": "f g"}], **how)
    assert listed(found) == expected
    assert found.notes == () if note is None else note in found.notes[0]


def test_answers_are_targets_unless_all_are_asked_for(opened):
    lines = [{"prompt": "a b ", "completion": "c d"}, {"text": "e f"}]
    lines += [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]}]
    found = opened("jsonl", lines)
    assert listed(found) == [[1, 2, 3, 4], [5, 6], [1, 2, 3, 8]]
    assert targets(found) == [[0, 0, 1, 1], [0, 1], [0, 1, 1, 1]]
    assert targets(opened("jsonl", lines, rows="all")) == [[0, 1, 1, 1], [0, 1], [0, 1, 1, 1]]
    cut = opened("jsonl", lines, sequence_length=3)
    assert targets(cut) == [[0, 0, 1], [0], [0, 1], [0, 1, 1], [0]]


TURNS = [("user", "a"), ("assistant", "b c"), ("user", "d"), ("assistant", "e f")]


@pytest.mark.parametrize("how", [{}, {"sequence_length": 3}, {"sequence_length": 4, "pack": "stream"}], ids=str)
def test_the_last_answer_of_a_chat_is_its_completion(opened, how):
    """Of the whole chat, also where it is split, and of each that is packed into one stream."""
    chat = {"messages": [{"role": role, "content": content} for role, content in TURNS]}
    lines = [{"text": "a b"}, chat, {"prompt": "a ", "completion": "b c"}, chat]
    alone = {"text": [1, 1], "chat": [0, 0, 0, 0, 0, 1, 1, 1], "pair": [0, 1, 1]}
    last = np.array([*alone["text"], *alone["chat"], *alone["pair"], *alone["chat"]], bool)
    each = np.array([*alone["text"], *[0, 1, 1, 1, 0, 1, 1, 1], *alone["pair"], *[0, 1, 1, 1, 0, 1, 1, 1]], bool)
    first = np.zeros(len(last), bool)
    every, some, only = (opened("jsonl", lines, rows=rows, **how) for rows in ("all", "assistant", "completion"))
    first[every.documents[:-1]] = True
    assert np.array_equal(every.answers, each)
    assert np.array_equal(every.completions, last)
    assert np.array_equal(some.targets, each & ~first)
    assert np.array_equal(some.completions, last)
    assert np.array_equal(only.targets, last & ~first)
    assert some.answers is only.answers is only.completions is None


def test_a_single_answer_needs_no_second_array(opened):
    chat = {"messages": [{"role": role, "content": content} for role, content in TURNS[:2]]}
    found = opened("jsonl", [chat, {"prompt": "a ", "completion": "b"}, {"text": "c"}], rows="all")
    assert found.completions is None
    assert found.answers.sum() == 3 + 1 + 1


def test_a_token_that_reaches_into_the_answer_is_one_of_it(opened):
    found = opened("jsonl", [{"prompt": "a ", "completion": "b"}, {"prompt": "a e", "completion": "nd a"}])
    assert listed(found)[1] == [1, 8, 1]
    assert targets(found) == [[0, 1], [0, 1, 1]]


DOLLY = {"instruction": "a b", "context": "", "response": "c d", "category": "open_qa"}
ALPACA = {"instruction": "a b", "input": "e f", "output": "c d", "text": "all of it once more"}


def test_an_instruction_is_a_prompt_and_its_response_ends():
    from logitcache.data.text.forms import as_document

    plain, more = as_document(DOLLY, "d:1"), as_document(ALPACA, "d:2")
    assert plain.text.endswith("request.\n\n### Instruction:\na b\n\n### Response:\nc d")
    assert more.text.endswith("### Instruction:\na b\n\n### Input:\ne f\n\n### Response:\nc d")
    assert "a task. Write" in plain.text
    assert "a task, paired with an input that provides further context. Write" in more.text
    for one in (plain, more):
        assert one.text[one.answer :] == "c d"
        assert one.ends


def test_the_end_of_a_response_is_a_target(opened):
    """And of no other form: what a prompt's completion ends with stands in it."""
    found = opened("jsonl", [DOLLY, {"prompt": "a ", "completion": "b"}], end="g")
    first, second = listed(found)
    assert first[-3:] == [3, 4, 7]
    assert targets(found)[0] == [0] * (len(first) - 3) + [1, 1, 1]
    assert second == [1, 2]
    assert listed(opened("jsonl", [DOLLY]))[0][-2:] == [3, 4]


def test_a_conversational_prompt_and_completion_are_a_chat(opened):
    """TRL's form: messages on both sides."""
    sides = {"prompt": [{"role": "user", "content": "a b"}], "completion": [{"role": "assistant", "content": "c"}]}
    found = opened("jsonl", [sides, {"messages": sides["prompt"] + sides["completion"]}])
    assert listed(found)[0] == listed(found)[1]
    assert targets(found)[0] == targets(found)[1] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"instruction": "a"}, "data.jsonl:2 has no `response`: an object needs .*; it has instruction"),
        ({"instruction": "", "response": "a"}, "data.jsonl:2: `instruction` is empty"),
        ({"instruction": "a", "context": 5, "response": "a"}, "data.jsonl:2: `context` must be text, not int"),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": "b"}, "data.jsonl:2: `prompt` must be text"),
        ({"txt": "a"}, "data.jsonl:2 has no `text`: an object needs .*; it has txt"),
        ({"prompt": "a"}, "data.jsonl:2 has no `completion`"),
        ({"text": ""}, "data.jsonl:2: `text` is empty"),
        ({"text": "   "}, "data.jsonl:2: the document is empty"),
        ({"prompt": "a", "completion": ""}, "data.jsonl:2: `completion` is empty"),
        ({"text": 5}, "data.jsonl:2: `text` must be text, not int"),
        ([1], "data.jsonl:2 is a list, not an object"),
        ({"messages": []}, "data.jsonl:2: the document is empty"),
        ({"messages": ["a"]}, "data.jsonl:2: `messages` must be a list of objects"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_with_its_number(opened, line, message):
    with pytest.raises(InputError, match=message):
        opened("jsonl", [{"text": "a b"}, line])


def test_templates_that_mark_no_answers_are_refused(opened, tmp_path):
    chat = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    with pytest.raises(InputError, match=r"data.jsonl:1: the chat template .* does not mark the assistant's turns"):
        opened("jsonl", chat, template="{% for m in messages %}{{ m.content }} {% endfor %}")
    with pytest.raises(InputError, match=r"data.jsonl:1: the tokenizer has no chat template"):
        opened("jsonl", chat, template=None)
    with pytest.raises(InputError, match=r"data.jsonl:1: the chat template .* rejects the chat"):
        opened("jsonl", chat, template="{% generation %}{% endgeneration %}{{ raise_exception('no') }}")
    (tmp_path / "data.jsonl").write_text('{"text": "a b"}\n{"text": ')
    from logitcache.data.text.tokenizer import Tokenizer

    reading = Reading(text=TextReading(tokenizer=Tokenizer(texts.wrapped(WORDS))))
    with pytest.raises(InputError, match=r"data.jsonl:2 is not valid JSON"):
        load_data(f"jsonl:{tmp_path}/data.jsonl", reading)


def test_parquet_has_the_same_forms(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from logitcache.data.text.tokenizer import Tokenizer

    reading = Reading(text=TextReading(tokenizer=Tokenizer(texts.wrapped(WORDS))))
    pq.write_table(pa.table({"text": ["a b", "c d e"], "id": [1, 2]}), tmp_path / "d.parquet")
    assert listed(load_data(f"parquet:{tmp_path}/d.parquet", reading)) == [[1, 2], [3, 4, 5]]
    pq.write_table(pa.table({"text": ["a b"], "hash": [b"0"], "embedding": [b"1"]}), tmp_path / "d.parquet")
    assert listed(load_data(f"parquet:{tmp_path}/d.parquet", reading)) == [[1, 2]]
    pq.write_table(pa.table({"content": ["a b"]}), tmp_path / "d.parquet")
    with pytest.raises(
        InputError,
        match=r"d.parquet needs the columns `text`, `prompt` and `completion`, `instruction` .*; it has content",
    ):
        load_data(f"parquet:{tmp_path}/d.parquet", reading)
    (tmp_path / "d.parquet").write_text("no")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        load_data(f"parquet:{tmp_path}/d.parquet", reading)


def test_a_hugging_face_data_set_has_the_same_forms(tmp_path):
    datasets = pytest.importorskip("datasets")
    from logitcache.data.text.tokenizer import Tokenizer

    reading = Reading(text=TextReading(tokenizer=Tokenizer(texts.wrapped(WORDS))))
    made = datasets.Dataset.from_dict({"prompt": ["a b", "c"], "completion": [" d", " e"], "id": [1, 2]})
    datasets.DatasetDict({"train": made, "validation": made.select([1])}).save_to_disk(tmp_path / "d")
    assert named_modality(f"hf:{tmp_path}/d").name == "text"
    assert listed(load_data(f"hf:{tmp_path}/d", reading)) == [[1, 2, 4], [3, 5]]
    assert listed(load_data(f"hf:{tmp_path}/d:validation", reading)) == [[3, 5]]
    made.rename_column("prompt", "question").remove_columns("completion").save_to_disk(tmp_path / "e")
    with pytest.raises(InputError, match=r"hf:.*/e needs the columns `text`, .*; it has question, id"):
        load_data(f"hf:{tmp_path}/e", reading)
    with pytest.raises(InputError, match=r"hf:.*/d:train is text and needs a tokenizer"):
        load_data(f"hf:{tmp_path}/d:train")


def test_options_are_checked_and_recorded():
    with pytest.raises(UnknownNameError, match="unknown .too_long. 'splt'; did you mean 'split'"):
        TextReading(too_long="splt")
    with pytest.raises(InputError, match="sequence.length. must be 2 or more"):
        TextReading(sequence_length=1)
    with pytest.raises(InputError, match="stream cuts text into windows"):
        TextReading(pack="stream")
    reading = TextReading(sequence_length=9, too_long="cut")
    assert TextReading.from_json(reading.to_json()) == reading


def test_the_tokenizer_makes_ids_of_many_texts_and_knows_how_many_there_are(tmp_path):
    from logitcache.data.text.tokenizer import Tokenizer
    from logitcache.models.language.tokenizer import load_tokenizer

    one = Tokenizer(texts.wrapped(WORDS))
    one.wrapped.save_pretrained(tmp_path / "t")
    loaded = Tokenizer(load_tokenizer(f"hf:{tmp_path / 't'}"))
    assert len(one) == len(loaded) == 9
    assert loaded.facts == one.facts
    assert [ids.tolist() for ids in loaded.encode(["a b", "", "g x"])] == [[1, 2], [], [7, 0]]
    with pytest.raises(InputError, match="not backed by the package tokenizers"):
        Tokenizer(object())


def test_a_tokenizer_adds_the_tokens_that_it_adds_by_itself(tmp_path):
    """A Llama's texts begin with a token that says so; it is never a target, and belongs to no answer."""
    from tokenizers.processors import TemplateProcessing

    from logitcache.data.text.sources import open_text
    from logitcache.data.text.tokenizer import Tokenizer

    wrapped = texts.wrapped(WORDS)
    begin = wrapped.convert_tokens_to_ids("g")
    wrapped.backend_tokenizer.post_processor = TemplateProcessing(single="g $A", special_tokens=[("g", begin)])
    reading = TextReading(tokenizer=Tokenizer(wrapped))
    (tmp_path / "a.txt").write_text("a b c")
    plain = open_text("text", str(tmp_path / "a.txt"), reading)
    assert plain.tokens.tolist() == [begin, *wrapped.convert_tokens_to_ids(["a", "b", "c"])]
    assert plain.targets.tolist() == [False, True, True, True]
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "a ", "completion": "b c"}) + "\n")
    answered = open_text("jsonl", str(tmp_path / "b.jsonl"), reading)
    assert answered.targets.tolist() == [False, False, True, True]
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": ""}) + "\n")
    with pytest.raises(InputError, match="is empty"):
        open_text("jsonl", str(tmp_path / "c.jsonl"), reading)
