"""What storing does to a method, measured on the probe."""

import json
import re

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional as F

import logitcache
from logitcache.caches.fidelity import advice, sweep_encodings
from logitcache.encoding import TopKEncoding
from logitcache.methods import METHODS


def test_a_lossless_cache_loses_nothing_for_any_method(dump):
    found = logitcache.cache_fidelity(dump())
    assert found.kl_nats == {"T=1": 0.0, "T=2": 0.0, "T=4": 0.0}
    assert {one.method for one in found.methods} == {name for name, method in METHODS.items() if method.divergence}
    for one in found.methods:
        assert set(one.loss.values()) == set(one.gradient.values()) == {0.0}
        assert max(one.angle_degrees.values()) < 1e-3


def test_numbers_are_what_they_say(dump, images):
    """KD at T = 2 on the probe, by hand: loss, gradient and KL."""
    cache = dump(top_k=2, precision="f32")
    found = logitcache.cache_fidelity(cache, methods=["kd"], settings={"temperature": 2.0})
    samples, exact = cache.probe("sequential")
    exact, labels = torch.from_numpy(exact), torch.from_numpy(images.labels[samples])
    encoding = TopKEncoding(2, "f32")
    stored = {name: torch.from_numpy(c[samples]) for name, c in tiny.columns_of(cache).items()}
    completed = encoding.decode(stored, labels, 5).at(2.0)
    p, r = F.log_softmax(exact.double() / 2, 1), F.log_softmax(completed.double() / 2, 1)
    assert found.kl_nats["T=2"] == pytest.approx(float((p.exp() * (p - r)).sum(1).mean()))
    student = 0.1 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    q = F.softmax(student.double() / 2, 1)
    one, other = q - p.exp(), q - r.exp()  # gradients of T² KL, up to one factor
    (kd,) = found.methods
    assert kd.gradient["fresh"] == pytest.approx(float((one - other).norm() / one.norm()), rel=1e-3)
    cosine = float((one * other).sum() / one.norm() / other.norm())
    assert kd.angle_degrees["fresh"] == pytest.approx(np.degrees(np.arccos(cosine)), rel=1e-2)
    assert found.unranked == pytest.approx(
        float(((exact > exact.gather(1, labels[:, None])).sum(1) >= 2).float().mean())
    )


def test_more_bytes_lose_less(dump):
    found = {str(one.encoding): one for one in sweep_encodings(dump(), methods=["kd", "clkd"])}
    assert len(found) == 5
    by_name = {(one.encoding["kind"], one.encoding["dtype"]): one for one in found.values()}
    assert by_name["full", "f32"].kl_nats["T=1"] == 0.0
    assert by_name["full", "f16"].kl_nats["T=4"] < by_name["full", "u8"].kl_nats["T=4"]
    assert by_name["full", "u8"].kl_nats["T=4"] < by_name["topk", "u8"].kl_nats["T=4"]
    assert by_name["topk", "f16"].methods[1].refused == "clkd needs every logit of a row"
    sizes = [one.bytes_per_row for one in sweep_encodings(dump(), methods=["kd"])]
    assert sizes == sorted(sizes)


def test_a_poor_encoding_is_said_at_the_dump_and_a_good_one_is_not(dump, tmp_path):
    """What is advised is the cheapest that loses little, and does so."""
    poor = advice(dump(top_k=1))
    sentence = next(one for one in poor if one.startswith("rld at T=4 loses "))
    lost, kept, precision = re.fullmatch(
        r"rld at T=4 loses (\d+%|all) of its gradient at k=1: dump with --(.*) --precision (\w+) "
        r"\(\d+ bytes per row instead of \d+\).*",
        sentence,
    ).groups()
    error = logitcache.cache_fidelity(tmp_path / "c.zarr", methods=["rld"]).methods[0].gradient["trained"]
    assert lost == (f"{error:.0%}" if error < 1 else "all")
    errors = {
        (one.encoding.get("k"), one.encoding["dtype"]): (one.bytes_per_row, one.methods[0].gradient["trained"])
        for one in sweep_encodings(tmp_path / "c.zarr", methods=["rld"])
    }
    chosen = errors[int(kept.removeprefix("top-k ")) if kept.startswith("top-k") else None, precision]
    assert chosen[1] <= 0.05
    assert not any(size < chosen[0] and error <= 0.05 for size, error in errors.values())
    assert advice(dump(precision="u8", out=tmp_path / "good.zarr")) == []


def test_fidelity_on_the_command_line(dump, run, tmp_path):
    dump(top_k=2, precision="f16")
    shown = run("fidelity", "c.zarr", "--method", "rld", "--method", "kd", "--temperature", "4", "--sweep")
    assert shown.exit_code == 0
    assert "clkd cannot use these rows: clkd needs every logit of a row" in run("fidelity", "--method", "clkd").stdout
    assert "top-2 f16 (stored)" in shown.stdout
    found = json.loads(run("fidelity", "--json", "--method", "rld", "--set", "beta=1").stdout)
    assert found["stored"]["methods"][0]["gradient"]["trained"] > 0
    assert run("fidelity", "--method", "rdl").exit_code == 1
    assert "requires a method" in run("fidelity", "--set", "beta=1").stderr


def test_bytes_a_row_are_the_same_in_every_verb(dump, run, npz, tmp_path):
    """Plan, dump, info, stats, fidelity, its sweep and two caches side by side; in memory is another size, by another name."""
    words = f"--teacher tiny:net --data arrays:{npz} --encoding topk --top-k 2".split()
    dumped = run("dump", *words, "--out", "c.zarr").stdout
    found = json.loads(run("info", "c.zarr", "--json").stdout)["bytes_per_row"]
    assert found == pytest.approx(
        sum(file.stat().st_size for file in (tmp_path / "c.zarr").rglob("*") if file.is_file()) / 300
    )
    shown = [dumped, *(run(verb, "c.zarr").stdout for verb in ("info", "stats", "fidelity"))]
    for one in shown:
        assert f"{found:.1f} bytes per row" in " ".join(one.split()), one
    planned = float(re.search(r"([\d.]+) bytes per row", run("dump", *words, "--out", "d.zarr", "--plan").stdout)[1])
    assert planned == pytest.approx(found, rel=0.2)
    swept = run("fidelity", "c.zarr", "--method", "kd", "--sweep").stdout
    stored = next(line for line in swept.splitlines() if "(stored)" in line)
    assert f" {found:.1f} " in stored
    assert logitcache.cache_fidelity("c.zarr", methods=["kd"]).bytes_per_row == found
    (side, _) = logitcache.compare_caches("c.zarr", "c.zarr").sides
    assert side.bytes_per_row == found
    words = ["--student", "tiny:student", "--epochs", "1", "--out", "r"]
    assert run("train", "c.zarr", *words).exit_code == 0
    assert "in memory, B / sample" in run("compare", "r").stdout
