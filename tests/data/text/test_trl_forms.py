"""TRL's data for supervised fine-tuning: the same tokens count here as in its own trainer."""

import json

import numpy as np
import pytest
import texts

from logitcache.data import load_data
from logitcache.data.exclusion import Reading
from logitcache.data.text.reading import TextReading

pytest.importorskip("trl")
pytest.importorskip("datasets")

WORDS = "a b c d e f g end"
CHAT = [
    {"role": "user", "content": "a b"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "e f"},
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trl_counts_the_same_tokens(tmp_path):
    """Prompt and completion, a chat with assistant_only_loss, and a conversational prompt and completion."""
    import transformers
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from logitcache.data.text.tokenizer import Tokenizer

    tokenizer = texts.wrapped(WORDS, end="g")
    tokenizer.pad_token = "?"
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=16, **sizes))
    for row, theirs, rows in [
        ({"prompt": "a b ", "completion": "c d g"}, {"completion_only_loss": True}, "assistant"),  # TRL would add the g
        ({"messages": CHAT}, {"assistant_only_loss": True}, "assistant"),
        ({"prompt": CHAT[:3], "completion": CHAT[3:]}, {"completion_only_loss": True}, "completion"),
    ]:
        settings = SFTConfig(str(tmp_path / "trl"), report_to="none", use_cpu=True, bf16=False, **theirs)
        data = Dataset.from_list([row])
        prepared = SFTTrainer(model, settings, train_dataset=data, processing_class=tokenizer).train_dataset[0]
        (tmp_path / "d.jsonl").write_text(json.dumps(row))
        reading = TextReading(tokenizer=Tokenizer(tokenizer), rows=rows)
        ours = load_data(f"jsonl:{tmp_path}/d.jsonl", Reading(text=reading))
        assert ours.tokens.tolist() == prepared["input_ids"]
        assert np.where(ours.targets, ours.tokens.astype(int), -100).tolist() == prepared["labels"]
