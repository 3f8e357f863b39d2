"""Caches of other tools: small writers, after the published formats, and what must come out of each of them."""

import itertools
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import texts
import tiny
import torch

import logitcache
from logitcache.encoding import read_encoding
from logitcache.errors import CacheMismatchError, InputError, UnknownNameError
from logitcache.imports.import_rows import import_rows
from logitcache.methods import get_loss
from logitcache.store import open_cache

IDS, K = 60, 12
RANDOM = np.random.default_rng(0)
TABLE = torch.from_numpy(3 * RANDOM.standard_normal((IDS, IDS))).log_softmax(1).numpy()  # of the next token, after each
LENGTHS = (9, 30, 1, 17, 24)


def written():
    """Documents that a bigram wrote: each token is drawn from the row of the one before."""
    found = []
    for length in LENGTHS:
        tokens = [int(RANDOM.integers(IDS))]
        while len(tokens) < length:
            tokens.append(int(RANDOM.choice(IDS, p=np.exp(TABLE[tokens[-1]]) / np.exp(TABLE[tokens[-1]]).sum())))
        found.append(tokens)
    return found


DOCUMENTS = written()


def largest(token, k=K):
    """The k likeliest ids after a token, and their log-probabilities, falling."""
    order = np.argsort(-TABLE[token])[:k]
    return order.tolist(), TABLE[token][order].tolist()


def decoded(cache):
    labels = torch.from_numpy(cache.labels()).long()
    columns = cache.rows(0, cache.teacher, np.arange(len(labels)))
    encoding = read_encoding(cache.manifest.encoding)
    columns = {name: torch.from_numpy(one) for name, one in columns.items()}
    return encoding.decode(columns, labels, len(cache.manifest.classes)), labels


def check(cache, atol=5e-3, own=True, documents=DOCUMENTS, targets=None):
    """Every row is that of the token before it: its k largest, and the token's own where that is said; none is beside it."""
    rows, labels = decoded(cache)
    places = [
        (before, token)
        for document in documents
        for at, (before, token) in enumerate(itertools.pairwise(document), 1)
        if targets is None or targets(document, at)
    ]
    assert labels.tolist() == [token for _, token in places]
    exact = torch.from_numpy(TABLE[[before for before, _ in places]])
    k = cache.manifest.encoding["k"]
    smallest = exact.gather(1, rows.ids).masked_fill(rows.ids == labels[:, None], torch.inf).amin(1)
    left_out = exact.scatter(1, rows.ids, -torch.inf).amax(1)
    assert bool((left_out <= smallest + 2 * atol).all())  # of nearly equal ones a codec may turn the order round
    assert rows.ids.shape[1] == k + 1
    named = torch.ones_like(rows.unranked) if own else ~rows.unranked
    gaps = (rows.values - exact.gather(1, rows.ids)).abs()
    assert float(gaps[named].max()) < atol
    gaps[rows.ids == labels[:, None]] = 0
    assert float(gaps.max()) < atol
    mass = 1 - exact.exp().gather(1, rows.ids).sum(1)
    assert torch.allclose(rows.rest[:, 2].exp()[named].double(), mass[named], rtol=0.02, atol=3 * atol)
    assert logitcache.verify_cache(cache.place.path).ok


def lines(path, entries):
    path.write_text("".join(json.dumps(one) + "\n" for one in entries))
    return path


def vllm_line(tokens, **more):
    entries = [None]
    for before, token in itertools.pairwise(tokens):
        ids, values = largest(before, K + 1)
        entry = {
            str(i): {"logprob": v, "rank": n, "decoded_token": "?"}
            for n, (i, v) in enumerate(zip(ids, values, strict=True), 1)
        }
        rank = int((TABLE[before] >= TABLE[before][token]).sum())
        entries.append({str(token): {"logprob": TABLE[before][token], "rank": rank, "decoded_token": "?"}} | entry)
    return {"choices": [{"prompt_logprobs": entries, "prompt_token_ids": tokens} | more]}


def sglang_line(tokens):
    own, top = [[None, tokens[0], None]], [None]
    for before, token in itertools.pairwise(tokens):
        own.append([TABLE[before][token], token, None])
        top.append([[v, i, None] for i, v in zip(*largest(before, K + 1), strict=True)])
    return {"meta_info": {"input_token_logprobs": own, "input_top_logprobs": top}}


def test_answers_of_vllm_and_sglang_that_were_kept(tmp_path):
    """As a client keeps them, and as vLLM's batch runner does; a file that is cut short names its line."""
    answers = [vllm_line(one) for one in DOCUMENTS]
    check(import_rows("vllm", lines(tmp_path / "a.jsonl", answers), tmp_path / "a.zarr", vocabulary=IDS))
    batch = [
        {
            "custom_id": str(n),
            "response": {"status_code": 200, "body": vllm_line(one, prompt_token_ids=None)},
            "prompt": one,
        }
        for n, one in enumerate(DOCUMENTS)
    ]
    check(import_rows("vllm", lines(tmp_path / "b.jsonl", batch), tmp_path / "b.zarr", vocabulary=IDS))
    check(
        import_rows(
            "sglang", lines(tmp_path / "s.jsonl", map(sglang_line, DOCUMENTS)), tmp_path / "s.zarr", vocabulary=IDS
        )
    )
    gives = open_cache(tmp_path / "s.zarr").manifest.teachers[0]["gives"]
    assert gives == {"by": "sglang", "values": "log-probabilities", "temperature": 1.0, "rest": "mass"}
    whole = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a.jsonl:\d is not valid JSON"):
        import_rows("vllm", tmp_path / "a.jsonl", tmp_path / "n.zarr", vocabulary=IDS)
    bare = [vllm_line(one, prompt_token_ids=None) for one in DOCUMENTS]
    with pytest.raises(InputError, match=r"n.jsonl:1 lacks the token ids of its prompt.*return_token_ids"):
        import_rows("vllm", lines(tmp_path / "n.jsonl", bare), tmp_path / "n.zarr", vocabulary=IDS)
    answers[3]["choices"][0]["prompt_logprobs"].pop()
    with pytest.raises(InputError, match=r"m.jsonl:4: prompt_logprobs has 16 entries for 17 tokens"):
        import_rows("vllm", lines(tmp_path / "m.jsonl", answers), tmp_path / "n.zarr", vocabulary=IDS)
    assert not (tmp_path / "n.zarr").exists()


@pytest.mark.slow
def test_an_import_that_is_killed_goes_on(tmp_path):
    """Between kills a cache is refused or whole; the last has the bytes of one that was never killed."""
    source = lines(tmp_path / "a.jsonl", map(vllm_line, DOCUMENTS))

    def imported(path):
        import_rows("vllm", source, path, vocabulary=IDS, block_rows=8)

    def child(path):
        return tiny.in_a_child(lambda: imported(path))

    tiny.kill_dumps(tmp_path, imported, child, processes=1, kills=4, longest=0.4)


def parquet(path, columns):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_what_was_exported_comes_back_with_the_same_losses(tmp_path):
    samples = texts.stories(6, 60)
    cache = logitcache.dump_logits("hf:stories-mini", samples, tmp_path / "c.zarr", top_k=K, block_rows=64)
    logitcache.export_cache(cache, tmp_path / "c.parquet", layout="documents")
    back = import_rows("distillkit", tmp_path / "c.parquet", tmp_path / "b.zarr", vocabulary=512, rows_temperature=1.0)
    (one, labels), (other, same) = decoded(cache), decoded(back)
    assert torch.equal(labels, same)
    assert torch.equal(one.ids, other.ids)
    assert back.manifest.encoding == {"kind": "topk-mass", "k": K, "dtype": "f16"}
    assert "label" not in back.manifest.teachers[0]["gives"]
    student = torch.randn(len(labels), 512, generator=torch.Generator().manual_seed(0))
    for method in ("kd", "loca", "rld", "reverse_kl"):
        loss = get_loss(method, temperature=1.0)
        first, second = (loss(student, rows, labels).mean() for rows in (one, other))
        assert abs(first - second) < 2e-3 * abs(first), method


CODECS = {
    "exact": {"d": IDS, "k": K, "exact_k": K, "residual_bins": [], "delta_encoding": False},
    "bfloat16, polynomial and bins": {
        "d": IDS,
        "k": K,
        "exact_k": 3,
        "exact_dtype": "bfloat16",
        "polynomial_terms": [0, 1, 2, "sqrt"],
        "term_dtype": "float32",
        "residual_bins": [
            {"scale_dtype": "float16", "element_bits": 11, "num_elements": 5},
            {"scale_dtype": "float32", "element_bits": 9, "num_elements": 3},
            {"scale_dtype": "float32", "element_bits": 1, "num_elements": 1},
        ],
        "delta_encoding": False,
        "normalize_t": True,
    },
    "differences": {
        "d": IDS,
        "k": K,
        "exact_k": 1,
        "residual_bins": [{"scale_dtype": "float32", "element_bits": 16, "num_elements": K - 1}],
        "delta_encoding": True,
    },
}


def packed(values, bits):
    """Integers as bytes, the first bit first."""
    text = "".join(f"{one:0{bits}b}" for one in values)
    text += "0" * (-len(text) % 8)
    return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]


def floats(values, dtype):
    if dtype == "bfloat16":  # rounded to nearest, ties to even
        bits = np.array(values, "<f4").view("<u4").astype(np.uint64)
        return list(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())
    return list(np.array(values, {"float16": "<f2", "float32": "<f4"}[dtype]).tobytes())


def compressed(values, codec):
    """The bytes of one row of falling log-probabilities, after DistillKit's published configuration."""
    values = np.array(values)
    if codec["delta_encoding"]:
        values = np.concatenate([values[:1], np.diff(values)])
    exact = codec["exact_k"]
    found, rest = floats(values[:exact], codec.get("exact_dtype", "float32")), values[exact:]
    if terms := codec.get("polynomial_terms"):
        t = np.linspace(0, 1, len(rest)) if codec.get("normalize_t") else np.arange(len(rest))
        shape = np.stack([np.sqrt(t) if one == "sqrt" else t**one for one in terms], 1)
        fit = np.linalg.lstsq(shape, rest, rcond=None)[0].astype(np.float32)
        found += floats(fit, codec["term_dtype"])
        rest = rest - shape @ fit
    for part in codec["residual_bins"]:
        some, rest = rest[: part["num_elements"]], rest[part["num_elements"] :]
        bits = part["element_bits"]
        scale = np.abs(some).max() / (1 if bits == 1 else 2 ** (bits - 1)) or 1.0
        low, high = (0, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        scale = float(np.float16(scale)) if part["scale_dtype"] == "float16" else scale
        codes = (some > 0).astype(int) if bits == 1 else np.clip(np.round(some / scale), low, high).astype(int) - low
        found += floats([scale], part["scale_dtype"]) + packed(codes.tolist(), bits)
    return found


def distillkit(path, codec):
    rows = [
        [largest(before) for before in one] for one in DOCUMENTS
    ]  # one more than there are targets: after the last token
    parquet(
        path / "data_0.parquet",
        {
            "input_ids": pa.array(DOCUMENTS, pa.list_(pa.uint64())),
            "compressed_logprobs": pa.array(
                [[compressed(values, codec) for _, values in one] for one in rows], pa.list_(pa.list_(pa.uint8()))
            ),
            "bytepacked_indices": pa.array(
                [[packed(ids, 6) for ids, _ in one] for one in rows], pa.list_(pa.list_(pa.uint8()))
            ),
        },
    )
    (path / "compression_config.yaml").write_text(json.dumps(codec))
    return path


@pytest.mark.parametrize(
    ("name", "atol"), [("exact", 5e-3), ("bfloat16, polynomial and bins", 0.03), ("differences", 5e-3)]
)
def test_distillkits_codec_is_decoded_as_its_configuration_says(tmp_path, name, atol):
    """Labels outside the k largest are not in these rows: methods that read labels refuse them."""
    source = distillkit(tmp_path / "set", CODECS[name])
    cache = import_rows("distillkit", source, tmp_path / "c.zarr", vocabulary=IDS, rows_temperature=1)
    check(cache, atol=atol, own=False)
    assert cache.manifest.teachers[0]["gives"]["label"] == "among the largest"
    rows, _ = decoded(cache)
    assert bool(rows.unranked.any())
    with pytest.raises(
        CacheMismatchError, match=r"without the probability of a token .*Choose one that does not: .*kd"
    ):
        logitcache.train_student(cache, "llama:hidden=8,layers=1,heads=1", out=tmp_path / "run", method="rld")


def test_distillkits_legacy_rows_are_decoded_and_logits_are_refused(tmp_path):
    codec = {
        "k": K,
        "exact_k": 8,
        "polynomial_degree": 3,
        "vocab_size": IDS,
        "with_sqrt_term": True,
        "invert_polynomial": True,
    }
    t = np.arange(1, K - 8 + 1)
    shape = np.stack([*(t ** (-float(power)) for power in range(4)), np.sqrt(t)], 1)

    def words(ids):
        """Ten ids of six bits in each word, the lowest bits first."""
        return [sum(one << (6 * n) for n, one in enumerate(ids[at : at + 10])) for at in range(0, K, 10)]

    def save(path, shift):
        rows = [[largest(before) for before in one] for one in DOCUMENTS]
        fit = [
            [np.linalg.lstsq(shape, np.array(v[8:]) + shift, rcond=None)[0].tolist() for _, v in one] for one in rows
        ]
        parquet(
            path / "data_0.parquet",
            {
                "input_ids": pa.array(DOCUMENTS, pa.list_(pa.uint64())),
                "packed_indices": pa.array(
                    [[words(ids) for ids, _ in one] for one in rows], pa.list_(pa.list_(pa.uint64()))
                ),
                "exact_values": [[(np.array(values[:8]) + shift).tolist() for _, values in one] for one in rows],
                "coeffs": fit,
            },
        )
        (path / "codec.json").write_text(json.dumps(codec))
        return path

    given = {"codec": tmp_path / "set" / "codec.json", "vocabulary": IDS, "rows_temperature": 1.0}
    check(import_rows("distillkit", save(tmp_path / "set", 0.0), tmp_path / "c.zarr", **given), own=False)
    with pytest.raises(InputError, match="log-probabilities above 0: are they logits"):
        import_rows("distillkit", save(tmp_path / "logits", 9.0), tmp_path / "d.zarr", **given)


def base_file(path, chunks, length, first_token=None):
    """What llama-perplexity --kl-divergence-base writes: codes of the second half of each chunk."""
    data = [b"_logits_", struct.pack("<3i", length, IDS, len(chunks)), np.array(chunks, "<i4").tobytes()]
    for chunk in chunks:
        shown = chunk if first_token is None else [first_token, *chunk[1:]]
        for before in shown[length // 2 : length - 1]:
            logits = TABLE[before] + 5.0
            top, low = logits.max(), max(logits.min(), logits.max() - 16)
            scale = np.float32((top - low) / 65535)
            total = np.log(np.exp(logits - top).sum())
            codes = np.where(logits > low, np.round((logits - low) / scale), 0).astype("<u2")
            row = np.zeros(2 * ((IDS + 1) // 2), "<u2")
            row[:IDS] = codes
            data += [struct.pack("<2f", scale, low - top - total), row.tobytes()]
    path.write_bytes(b"".join(data))
    return path


def test_llama_cpps_base_file_has_rows_for_the_second_half_of_each_chunk(tmp_path):
    chunks = [(DOCUMENTS[1] + DOCUMENTS[3])[at : at + 15] for at in (0, 15, 30)]
    file = base_file(tmp_path / "base.bin", chunks, 15)
    cache = import_rows("llama.cpp", file, tmp_path / "c.zarr", bos=-1, top_k=K)
    check(cache, documents=chunks, targets=lambda document, at: at > 7)
    with pytest.raises(InputError, match=r"does not record the token that the model saw .*`bos`"):
        import_rows("llama.cpp", file, tmp_path / "d.zarr")
    shown = import_rows("llama.cpp", file, tmp_path / "e.zarr", bos=1)
    assert shown.array("tokens")[::15].tolist() == [1, 1, 1]
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"it was truncated"):
        import_rows("llama.cpp", file, tmp_path / "d.zarr", bos=-1)
    (tmp_path / "other.bin").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(InputError, match=r"does not start with _logits_"):
        import_rows("llama.cpp", tmp_path / "other.bin", tmp_path / "d.zarr", bos=-1)


def axolotl(path, form, alignment):
    """Lists of the last positions: of the token itself, or of the next one."""
    entries = []
    for tokens in DOCUMENTS:
        rows = [largest(before) for before in (tokens[:-1] if alignment == "token" else tokens)]
        if form == 1:
            lists = [[{"logprob": v, "token": f"token_id:{i}"} for i, v in zip(*row, strict=True)] for row in rows]
            entries.append({"input_ids": tokens, "logprobs": lists})
        else:
            entries.append(
                {"input_ids": tokens, "target_token_ids": [ids for ids, _ in rows], "logprobs": [v for _, v in rows]}
            )
    return lines(path, entries)


@pytest.mark.parametrize("form", [1, 2])
@pytest.mark.parametrize("alignment", ["token", "next"])
def test_axolotls_lists_are_aligned_as_was_said_and_as_the_data_shows(tmp_path, form, alignment):
    given = {"vocabulary": IDS, "rows_temperature": 1.0}
    file = axolotl(tmp_path / "set.jsonl", form, alignment)
    check(import_rows("axolotl", file, tmp_path / "c.zarr", alignment=alignment, **given), own=False)
    other = {"token": "next", "next": "token"}[alignment]
    with pytest.raises(InputError, match=r"not aligned with the tokens: .* for the one (before|after) it"):
        import_rows("axolotl", file, tmp_path / "d.zarr", alignment=other, **given)


@pytest.mark.parametrize("form", [1, 2])
@pytest.mark.parametrize("alignment", ["token", "next"])
def test_axolotls_chats_are_made_tokens_with_the_template(tmp_path, form, alignment):
    """Lists are of the answer, which stands last; columns bear the names of axolotl's example, and nulls and further keys are there."""
    words = ["?", *(f"w{n}" for n in range(1, IDS))]
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    texts.wrapped(" ".join(words[1:]), template=template).save_pretrained(tmp_path / "tokenizer")
    entries = []
    for tokens in DOCUMENTS:
        begin = min(2, len(tokens))
        said = [" ".join(words[one] for one in some) for some in (tokens[:begin], tokens[begin:])]
        rows = [largest(before) for before in tokens[begin - 1 : len(tokens) - (alignment == "token")]]
        lists = [
            [{"logprob": v, "token": f"token_id:{i}", "bytes": None} for i, v in zip(*row, strict=True)] for row in rows
        ]
        ids = [some for some, _ in rows]
        lists = lists if form == 1 else [values for _, values in rows]
        if alignment == "token":  # the prompt's last token has no list of its own
            lists, ids = [None, *lists], [None, *ids]
        chat = [{"role": "user", "content": said[0]}, {"role": "assistant", "content": said[1]}]
        entries.append(
            {"messages_combined": chat, "llm_logprobs": lists} | ({"target_token_ids": ids} if form == 2 else {})
        )
    given = {"field_messages": "messages_combined", "logprobs_field": "llm_logprobs", "rows_temperature": 1.0}
    given |= {"alignment": alignment, "tokenizer": f"hf:{tmp_path / 'tokenizer'}"}
    file = lines(tmp_path / "set.jsonl", entries)
    cache = import_rows("axolotl", file, tmp_path / "c.zarr", **given)
    check(cache, own=False, targets=lambda document, at: at >= 2)
    with pytest.raises(
        InputError, match=r"neither input_ids nor messages, but messages_combined, llm_logprobs.*`field_messages`"
    ):
        import_rows("axolotl", file, tmp_path / "d.zarr", **(given | {"field_messages": None}))
    with pytest.raises(InputError, match=r"has no lists logprobs, but .*`logprobs_field`"):
        import_rows("axolotl", file, tmp_path / "d.zarr", **(given | {"logprobs_field": None}))


def test_what_a_source_does_not_say_is_asked_for(tmp_path):
    file = axolotl(tmp_path / "set.jsonl", 2, "token")
    given = {"vocabulary": IDS, "rows_temperature": 1.0, "alignment": "token"}

    def refuses(says, kind="axolotl", source=file, error=InputError, **changes):
        with pytest.raises(error, match=says):
            import_rows(kind, source, tmp_path / "n.zarr", **(given | changes))

    refuses("`alignment` token, as in vLLM", alignment=None)
    refuses("unknown alignment 'tokens'; did you mean 'token'", error=UnknownNameError, alignment="tokens")
    refuses("set `rows_temperature` 1 if it was 1", rows_temperature=None)
    refuses("temperature 2 cannot be imported", rows_temperature=2.0)
    refuses("does not record the size of the vocabulary", vocabulary=None)
    refuses("token 0 .*has id", vocabulary=3)
    refuses("unknown kind of source 'axolot'; did you mean 'axolotl'", kind="axolot", error=UnknownNameError)
    refuses("`alignment` is only for axolotl; leave it out", kind="vllm", rows_temperature=None)
    refuses("there is no file or folder", source=tmp_path / "nothing")
    entry = {"input_ids": [1, 2], "target_logprobs": [[-1.0]], "logprobs": [[-1.0]]}
    refuses("normalized over the k largest", source=lines(tmp_path / "p.jsonl", [entry]))
    refuses("name their tokenizer", source=lines(tmp_path / "q.jsonl", [{"messages": [], "logprobs": []}]))
    entry = {"input_ids": [1, 2], "logprobs": [[-1.0]] * 3, "target_token_ids": [[1]] * 3}
    refuses("2 tokens but 3 lists", source=lines(tmp_path / "r.jsonl", [entry]))
    folder = distillkit(tmp_path / "set", CODECS["exact"])
    dk = {"kind": "distillkit", "source": folder, "alignment": None}
    (folder / "compression_config.yaml").write_text(json.dumps(CODECS["exact"] | {"d": 600}))
    refuses("9 bytes of ids, but 12 ids of 10 bits .*; check d", **dk)
    (folder / "compression_config.yaml").write_text(json.dumps(CODECS["exact"] | {"kk": 600}))
    refuses("missing or unknown: kk", **dk)
    (folder / "compression_config.yaml").unlink()
    refuses("require the configuration of their codec. Set `codec` FILE", **dk)
    assert not (tmp_path / "n.zarr" / "zarr.json").exists()


@pytest.mark.parametrize(
    ("kind", "make", "change", "says"),
    [
        ("vllm", vllm_line, lambda e: e["choices"].__setitem__(0, "x"), "lacks the token ids of its prompt"),
        (
            "vllm",
            vllm_line,
            lambda e: e["choices"][0]["prompt_token_ids"].__setitem__(0, -1),
            "are out of range; expected ids",
        ),
        (
            "vllm",
            vllm_line,
            lambda e: e["choices"][0]["prompt_token_ids"].__setitem__(0, 2**32 + 5),
            "out of range; expected ids",
        ),
        (
            "vllm",
            vllm_line,
            lambda e: e["choices"][0]["prompt_logprobs"][3].update(a={"logprob": -1}),
            "does not have the expected form",
        ),
        (
            "sglang",
            sglang_line,
            lambda e: e["meta_info"].update(input_token_logprobs=[1, 2]),
            "does not have the expected form",
        ),
        (
            "sglang",
            sglang_line,
            lambda e: e["meta_info"]["input_top_logprobs"][3].append(
                [-4, *e["meta_info"]["input_top_logprobs"][3][0][1:]]
            ),
            "has a duplicate class",
        ),
    ],
)
def test_lines_of_another_form_are_one_sentence(tmp_path, kind, make, change, says):
    entries = [json.loads(json.dumps(make(one))) for one in DOCUMENTS]
    change(entries[1])
    with pytest.raises(InputError, match=rf"a\.jsonl.*{says}|{says}.*a\.jsonl"):
        import_rows(kind, lines(tmp_path / "a.jsonl", entries), tmp_path / "c.zarr", vocabulary=IDS)


def test_a_row_that_names_a_class_twice_is_refused(tmp_path):
    entries = [json.loads(line) for line in axolotl(tmp_path / "set.jsonl", 2, "token").read_text().splitlines()]
    entries[0]["target_token_ids"][0] = [1] * K
    given = {"vocabulary": IDS, "rows_temperature": 1.0, "alignment": "token"}
    with pytest.raises(InputError, match="document 0 of 9 tokens, .*row 0 names a class twice"):
        import_rows("axolotl", lines(tmp_path / "a.jsonl", entries), tmp_path / "c.zarr", **given)
    codec = {"d": IDS, "k": "x", "exact_k": K}
    folder = distillkit(tmp_path / "set", CODECS["exact"])
    (folder / "compression_config.yaml").write_text(json.dumps(codec))
    with pytest.raises(InputError, match="has k: 'x'; expected an integer"):
        import_rows("distillkit", folder, tmp_path / "c.zarr", vocabulary=IDS, rows_temperature=1.0)


def test_axolotls_ids_are_whole_numbers(tmp_path):
    entry = {"input_ids": [1.5, 2.5], "logprobs": [[-1.0]], "target_token_ids": [[1]]}
    with pytest.raises(InputError, match="are not a list of ids"):
        given = {"vocabulary": IDS, "rows_temperature": 1.0, "alignment": "token"}
        import_rows("axolotl", lines(tmp_path / "a.jsonl", [entry]), tmp_path / "c.zarr", **given)


def test_the_command_says_what_rows_can_serve(run, tmp_path):
    file = axolotl(tmp_path / "set.jsonl", 1, "token")
    words = f"import axolotl {file} --vocabulary {IDS} --rows-temperature 1 --alignment token --teacher-name big"
    words += f" --out {tmp_path / 'c.zarr'}"
    found = run(*words.split())
    assert "5 samples of 76 rows" in found.output
    assert (
        "the 11 largest log-probabilities, the label's and the mass of the rest, as f16; for temperature 1 only"
        in found.output
    )
    assert "methods that read labels refuse these rows" in found.output
    assert open_cache(tmp_path / "c.zarr").manifest.teachers[0]["name"] == "axolotl:big"
    assert run(*words.split()).exit_code == 0  # it is there already


def test_a_path_that_is_not_a_cache_is_refused_before_the_source_is_read(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="exists and is not a logit cache; nothing in it was touched"):
        import_rows("vllm", tmp_path / "none.jsonl", tmp_path)
