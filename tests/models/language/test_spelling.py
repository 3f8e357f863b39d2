"""How many bytes of text tokens stand for."""

import pytest
import texts

pytest.importorskip("transformers")

from logitcache.models.language import load_tokenizer, spelling_of

TEXTS = ["Once upon a time", "ça coûte 3 €, né?", "  two  spaces\n\nand 日本 語\t", "▁", "<0x41> is A"]


def byte_level(*, prefix: bool, whole: str | None = None):
    """A tokenizer of bytes with a few merges, as GPT-2's."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he")]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(one) for one in merges)]
    inner = Tokenizer(models.BPE(vocab={one: number for number, one in enumerate(pieces)}, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<|end|>", special=True)])
    if whole is not None:
        inner.add_tokens([AddedToken(whole)])
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_with_marks_and_bytes(text):
    """The tokenizer that ships puts a space before each text."""
    tokenizer = load_tokenizer("hf:stories-mini")
    found, ids = spelling_of(tokenizer), tokenizer(text)["input_ids"]
    spelled = [one for one in ids if found.bytes[one]]
    assert found.bytes[ids].sum() == len(text.encode()) + 1
    assert found.leading_space[spelled[0]]
    assert len(found.bytes) == 512


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prefix", [False, True])
def test_pieces_of_bytes(text, prefix):
    tokenizer = byte_level(prefix=prefix)
    found, ids = spelling_of(tokenizer), tokenizer(f"{text}<|end|>")["input_ids"]
    added = prefix and not text.startswith(" ")
    assert found.bytes[ids].sum() == len(text.encode()) + added
    assert found.bytes[ids[-1]] == 0
    assert (found.leading_space is not None) == prefix
    if added:
        assert found.leading_space[ids[0]]


def test_tokens_that_were_added_stand_for_themselves():
    tokenizer = byte_level(prefix=False, whole="日本")
    found, ids = spelling_of(tokenizer), tokenizer("a日本b")["input_ids"]
    assert len(ids) == 3
    assert found.bytes[ids].tolist() == [1, 6, 1]


def test_words_without_marks_are_not_known():
    assert spelling_of(texts.wrapped("a b c")) is None
