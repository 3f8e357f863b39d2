"""Rows for other tools: the numbers that training sees, read back by the tools themselves."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import texts
import tiny
import torch
from safetensors import safe_open

import logitcache
from logitcache.caches.export import export_cache
from logitcache.encoding import dense, read_encoding
from logitcache.errors import InputError

ENCODINGS = [
    {"precision": "f32"},
    {"precision": "f16"},
    {"precision": "u8"},
    {"top_k": 2, "precision": "u8"},
    {"top_k": 1},
]


def logits_of(cache, view):
    """What a loss is given, by the encoding itself."""
    stored = {name: torch.from_numpy(column) for name, column in tiny.columns_of(cache, view).items()}
    labels = torch.from_numpy(cache.labels()).long()
    return dense(read_encoding(cache.manifest.encoding).decode(stored, labels, 5), 1.0).numpy()


def completed(rows):
    """By what the help says of the columns."""
    if "logits" in rows:
        return rows["logits"]
    found = np.repeat(rows["rest"][:, None], 5, 1)
    np.put_along_axis(found, rows["ids"].astype(int), rows["values"], 1)
    return found


@pytest.mark.parametrize("made", ENCODINGS, ids=str)
def test_parquet_holds_what_training_sees(dump, tmp_path, made, images):
    cache = dump(**made)
    (file,) = export_cache(cache, tmp_path / "rows.parquet")
    table = pq.read_table(file)
    columns = {name: np.stack(table[name].to_numpy()) for name in table.column_names}
    assert len(table) == 600
    for view in (0, 1):
        rows = {name: column[columns["view"] == view] for name, column in columns.items()}
        assert (rows["sample"] == np.arange(300)).all()
        assert (rows["label"] == images.labels).all()
        assert (rows["digest"] == cache.digests(view)).all()
        np.testing.assert_allclose(completed(rows), logits_of(cache, view), rtol=1e-5, atol=1e-5)
    notes = json.loads(table.schema.metadata[b"logitcache"])
    assert notes["fingerprint"] == cache.fingerprint
    assert notes["manifest"]["samples"] == 300
    assert pq.ParquetFile(file).num_row_groups == 6


@pytest.mark.parametrize("made", ENCODINGS, ids=str)
def test_safetensors_hold_a_view_each(dump, tmp_path, made):
    cache = dump(**made)
    files = export_cache(cache, tmp_path / "rows.safetensors")
    assert [file.name for file in files] == ["rows-00001-of-00002.safetensors", "rows-00002-of-00002.safetensors"]
    for view, file in enumerate(files):
        with safe_open(file, "numpy") as opened:
            rows = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            assert json.loads(opened.metadata()["logitcache"])["fingerprint"] == cache.fingerprint
        assert (rows["view"] == view).all()
        np.testing.assert_allclose(completed(rows), logits_of(cache, view), rtol=1e-5, atol=1e-5)


def test_a_stretch_keeps_the_numbers_of_its_samples(dump, tmp_path):
    cache = dump(samples=(100, 130))
    (file,) = export_cache(cache, tmp_path / "rows.parquet", view_ids=[1])
    table = pq.read_table(file)
    assert table["sample"].to_pylist() == list(range(100, 130))
    assert set(table["view"].to_pylist()) == {1}


@pytest.mark.parametrize(
    ("name", "views", "message"),
    [
        ("rows.csv", None, "must end in .parquet or .safetensors"),
        ("rows.parquet", [2], r"cannot export views \[2\] of .*; expected distinct views from 0 to 1"),
        ("rows.parquet", [0, 0], "expected distinct views"),
        ("rows.parquet", [], "expected distinct views"),
        ("taken.parquet", None, "exists; nothing was written"),
        ("taken.safetensors", [0], "exists; nothing was written"),
    ],
)
def test_what_cannot_be_exported_is_refused(dump, tmp_path, name, views, message):
    for suffix in ("parquet", "safetensors"):
        (tmp_path / f"taken.{suffix}").write_text("mine")
    with pytest.raises(InputError, match=message):
        export_cache(dump(), tmp_path / name, view_ids=views)
    assert (tmp_path / "taken.parquet").read_text() == "mine"


def test_a_stopped_export_leaves_nothing(dump, tmp_path):
    class Stopped(Exception):
        pass

    def stop(progress):
        raise Stopped

    for name in ("rows.parquet", "rows.safetensors"):
        with pytest.raises(Stopped):
            export_cache(dump(), tmp_path / "out" / name, on_progress=stop)
    assert not list((tmp_path / "out").glob("*"))


def test_the_command_says_what_it_wrote(run, dump):
    dump()
    done = run("export", "--out", "rows.parquet", "--view-ids", "1")
    assert done.exit_code == 0
    assert done.stdout.startswith("rows.parquet: ")
    assert run("export", "c.zarr", "--out", "rows.txt").exit_code == 1


def test_documents_are_lists_of_ids_and_log_probabilities_by_position(tmp_path):
    """List i is the distribution of token i + 1, of blocks that cut documents too; what is no target has an empty list."""
    samples = texts.contexts(30, longest=12, seed=3, targets=True)
    logitcache.dump_logits(texts.teacher(40), samples, tmp_path / "c.zarr", batch_size=4, block_rows=16, exclude=[4])
    with pytest.raises(InputError, match="`layout` documents needs a top-k cache"):
        export_cache(tmp_path / "c.zarr", tmp_path / "c.parquet", layout="documents")
    cache = logitcache.dump_logits(
        texts.teacher(40),
        samples,
        tmp_path / "k.zarr",
        top_k=6,
        precision="f32",
        batch_size=4,
        block_rows=16,
        exclude=[4],
    )
    export_cache(cache, tmp_path / "k.parquet", layout="documents")
    table = pq.read_table(tmp_path / "k.parquet")
    assert b"logitcache" in table.schema.metadata
    kept = [n for n in range(30) if n != 4]
    assert table["input_ids"].to_pylist() == [
        samples.tokens[samples.documents[n] : samples.documents[n + 1]].tolist() for n in kept
    ]
    exact = dict(zip(*cache.probe(cache.teacher), strict=True))
    seen, row = 0, 0
    for number, ids, values in zip(kept, table["token_ids"].to_pylist(), table["top_values"].to_pylist(), strict=True):
        begin, end = samples.documents[number : number + 2]
        assert len(ids) == len(values) == max(end - begin - 1, 0)
        row = samples.offsets[number]
        for place in range(begin + 1, end):
            said, logprobs = ids[place - begin - 1], values[place - begin - 1]
            assert len(said) == (7 if samples.targets[place] else 0)
            if not said:
                continue
            assert samples.tokens[place] in said
            assert logprobs == sorted(logprobs, reverse=True)
            if row in exact:
                logits = exact[row].astype(np.float64)
                expected = logits[said] - np.log(np.exp(logits).sum())
                assert np.allclose(logprobs, expected, atol=2e-3)
                seen += 1
            row += 1
    assert seen > 20
    with pytest.raises(InputError, match=r"must end in .parquet"):
        export_cache(cache, tmp_path / "k.safetensors", layout="documents")
