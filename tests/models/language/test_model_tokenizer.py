import json
import shutil

import pytest

from logitcache.errors import InputError
from logitcache.models.language import load_tokenizer, tokenizer_facts

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture
def folder(tmp_path):
    """A tokenizer of byte pairs as a folder of transformers."""
    model = tokenizers.models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "<e>": 4}, merges=[("a", "b")])
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model), eos_token="<e>")
    wrapped.save_pretrained(tmp_path / "t")
    return tmp_path / "t"


def edit(folder, change):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return tokenizer_facts(load_tokenizer(f"hf:{folder}"))


def test_a_tokenizer_says_how_many_ids_exist_and_which_end_a_document(folder):
    found = tokenizer_facts(load_tokenizer(f"hf:{folder}"))
    assert found.vocabulary == 5  # the highest id is 4, though one below it is not there
    assert (found.bos, found.eos, found.chat_template_digest) == (None, 4, None)
    assert len(found.digest) == 32
    assert found.to_json()["digest"] == found.digest


def test_the_digest_does_not_depend_on_how_a_file_writes_it(folder):
    before = tokenizer_facts(load_tokenizer(f"hf:{folder}"))
    assert before.digest == "f50a4e1021278b8afe8872fb70494360"  # of every version of the libraries

    def older(content):
        content["model"]["merges"] = ["a b"]
        content["model"]["vocab"] = dict(reversed(content["model"]["vocab"].items()))

    assert edit(folder, older) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model"]["vocab"].update(c=3),
        lambda content: content["model"]["vocab"].update(a=1, b=0),
        lambda content: content["model"].update(merges=[]),
        lambda content: content["added_tokens"].clear(),
    ],
)
def test_the_digest_changes_with_vocabulary_merges_and_added_tokens(folder, change):
    before = tokenizer_facts(load_tokenizer(f"hf:{folder}")).digest
    (folder / "special_tokens_map.json").unlink(missing_ok=True)  # an older version's
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert edit(folder, change).digest != before


def test_a_chat_template_has_a_digest_of_its_own(folder):
    before = tokenizer_facts(load_tokenizer(f"hf:{folder}"))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    after = tokenizer_facts(load_tokenizer(f"hf:{folder}"))
    assert after.digest == before.digest
    assert after.chat_template_digest


def test_a_folder_without_a_tokenizer_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="there is no folder .*/nowhere with a tokenizer"):
        load_tokenizer(f"hf:{tmp_path}/nowhere")
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(InputError, match="holds no tokenizer: it has no tokenizer.json"):
        load_tokenizer(f"hf:{folder}")


def test_options_of_the_network_are_left_to_the_network(folder):
    assert load_tokenizer(f"hf:{folder}?layers=0,1").eos_token_id == 4


def test_a_tokenizer_on_the_hub_is_not_waited_for_where_there_is_no_network(monkeypatch):
    monkeypatch.setattr("logitcache.models.hub._in_reach", lambda _: False)
    with pytest.raises(
        InputError, match="the tokenizer of .* cannot be loaded: .*Download it on another machine and pass the folder"
    ):
        load_tokenizer("hf:someone/nothing")
