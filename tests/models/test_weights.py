import argparse
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import nn

from logitcache.errors import InputError, UnknownNameError
from logitcache.models import hash_weights, load_network, read_weights, save_weights
from logitcache.models.weights import read_notes

WEIGHTS = tiny.net(5).state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "wrap", [dict, lambda w: {"model": w, "epoch": 3}, lambda w: {"state_dict": w}, lambda w: {"model_state_dict": w}]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoints_are_read_as_the_literature_saves_them(tmp_path, wrap, prefix):
    torch.save(wrap({prefix + name: value for name, value in WEIGHTS.items()}), tmp_path / "a.pth")
    assert same(read_weights(str(tmp_path / "a.pth")), WEIGHTS)


def test_safetensors_carry_notes(tmp_path):
    save_weights(WEIGHTS, tmp_path / "a.safetensors", {"network": "tiny", "classes": ["x"]})
    assert same(read_weights(str(tmp_path / "a.safetensors")), WEIGHTS)
    assert read_notes(str(tmp_path / "a.safetensors")) == {"network": "tiny", "classes": ["x"]}
    save_file(WEIGHTS, tmp_path / "b.safetensors")
    assert read_notes(str(tmp_path / "b.safetensors")) == {}


def test_a_hash_is_of_the_content_and_not_of_the_file(tmp_path):
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    torch.save(WEIGHTS, tmp_path / "a.pt")
    assert hash_weights(read_weights(str(tmp_path / "a.safetensors"))) == hash_weights(
        read_weights(str(tmp_path / "a.pt"))
    )
    changed = {**WEIGHTS, "0.bias": WEIGHTS["0.bias"] + 1e-6}
    assert hash_weights(changed) != hash_weights(WEIGHTS)
    assert hash_weights({name: value.double() for name, value in WEIGHTS.items()}) != hash_weights(WEIGHTS)


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


def test_a_pickle_that_runs_code_is_refused(tmp_path, capsys):
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"model": Evil()}, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(InputError, match="holds Python objects besides tensors, which could run code"):
            read_weights(str(tmp_path / name))
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("name", "content"), [("a.safetensors", b"nonsense"), ("a.pt", b"nonsense"), ("b.pt", b"")])
def test_files_that_are_no_weights_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        InputError,
        match="is not a safetensors file|is not a weights file that torch can read|is empty",
    ):
        read_weights(str(tmp_path / name))


def test_a_missing_file_and_an_empty_dict_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no weights file"):
        read_weights(str(tmp_path / "a.pt"))
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        read_weights(str(tmp_path / "a.pt"))


def test_networks_come_by_name_factory_or_module():
    assert load_network("resnet8", 7).module(torch.zeros(1, 3, 28, 28)).shape == (1, 7)
    assert load_network("tiny:net", 7).module.eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 7)
    assert load_network("torchvision:resnet18", 7).module.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    module = nn.Linear(1, 1)
    assert load_network(module, 7).module is module


def test_weights_for_other_classes_are_refused_by_number(tmp_path):
    save_weights(load_network("resnet8", 7).module.state_dict(), tmp_path / "a.safetensors", {})
    with pytest.raises(InputError, match="is a resnet8 for 7 classes, but the data has 10"):
        load_network("resnet8", 10, str(tmp_path / "a.safetensors"))


def test_checkpoints_from_before_batch_counters_load(tmp_path):
    old = {name: value + 1 for name, value in WEIGHTS.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "a.pt")
    loaded = load_network("tiny:net", 5, str(tmp_path / "a.pt")).module.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in old.items())


def test_weights_of_another_network_are_refused(tmp_path):
    save_weights(load_network("resnet14", 10).module.state_dict(), tmp_path / "a.safetensors", {})
    with pytest.raises(InputError, match="does not match resnet8: it has layer1.1.bn1.bias, .* which are unknown"):
        load_network("resnet8", 10, str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("name", "weights", "error", "message"),
    [
        ("resnet9", None, UnknownNameError, "unknown network 'resnet9'; did you mean 'resnet"),
        ("torchvision:resnet17", None, UnknownNameError, "unknown torchvision network 'resnet17'; did you mean"),
        ("torchvision:resnet18", "IMAGENET1K_V9", UnknownNameError, "did you mean 'IMAGENET1K_V1'"),
        ("timm:resnet17", None, UnknownNameError, "unknown timm network 'resnet17'; did you mean"),
        (
            "timm:resnet18.a9_in9k",
            "DEFAULT",
            InputError,
            "timm:resnet18.a9_in9k cannot be created: .* Download its weights",
        ),
        ("tiny:nothing", None, InputError, "network 'tiny:nothing' cannot be imported"),
        ("tiny:arrays", None, InputError, "a factory must take the number of classes and return a torch module"),
    ],
)
def test_networks_that_are_not_are_refused(name, weights, error, message, monkeypatch):
    monkeypatch.setattr(tiny, "arrays", lambda classes: classes)
    with pytest.raises(error, match=message):
        load_network(name, 10, weights)


def test_timms_networks_come_with_their_preprocessing(tmp_path):
    network = load_network("timm:resnet10t", 7)
    save_weights(network.module.state_dict(), tmp_path / "a.safetensors", {})
    found = load_network("timm:resnet10t", 7, str(tmp_path / "a.safetensors"))
    assert found.preprocessing["image_size"] == network.module.pretrained_cfg["input_size"][-1]
    assert set(found.preprocessing) == {"mean", "std", "image_size", "crop_pct"}
    pixels = torch.randn(2, 3, 64, 64)
    assert (found.module.eval()(pixels) == network.module.eval()(pixels)).all()
    with pytest.raises(InputError, match="is a timm:resnet10t for 7 classes, but the data has 5"):
        load_network("timm:resnet10t", 5, str(tmp_path / "a.safetensors"))


def test_torchvisions_weights_come_with_their_preprocessing(monkeypatch):
    """The download itself is torch's; what is ours is to ask for the right one and to read its transforms."""
    asked = []

    def give(self, *_args, **_more):
        asked.append(self.name)
        return load_network("torchvision:resnet18", 1000).module.state_dict()

    monkeypatch.setattr("torchvision.models.ResNet18_Weights.get_state_dict", give)
    network = load_network("torchvision:resnet18", 10, "IMAGENET1K_V1")
    assert asked == ["IMAGENET1K_V1"]
    assert network.preprocessing == {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "image_size": 224,
        "crop_pct": 0.875,
    }


def saved(tmp_path, content, name="a.pth"):
    torch.save(content, tmp_path / name)
    return str(tmp_path / name)


def prefixed(prefix):
    return {prefix + name: value for name, value in WEIGHTS.items()}


PREFIXES = [
    "module.",
    "_orig_mod.",
    "model.",
    "student.",
    "backbone.",
    "net.",
    "module._orig_mod.",
    "_orig_mod.module.",
]


@pytest.mark.parametrize("prefix", [*PREFIXES, "module.student.", "distiller.model.student."])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_prefix_that_the_names_share_is_dropped_and_logged(tmp_path, caplog, prefix, suffix):
    caplog.set_level("INFO", "logitcache")
    file = tmp_path / f"a.{suffix}"
    (torch.save if suffix == "pth" else save_file)(prefixed(prefix), file)
    network = load_network("tiny:net", 5, str(file))
    assert same(network.module.state_dict(), WEIGHTS)
    assert caplog.messages == [f"{file}: loaded weights, names without {prefix!r}"]


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "model_state_dict", "net", "model_ema", "ema", "weights", "student"]
)
def test_a_key_of_a_checkpoint_is_found_and_logged(tmp_path, caplog, key):
    caplog.set_level("INFO", "logitcache")
    file = saved(tmp_path, {"epoch": 3, "optimizer": {"state": {}}, key: prefixed("module."), "best": 91.0})
    assert same(load_network("tiny:net", 5, file).module.state_dict(), WEIGHTS)
    assert caplog.messages == [f"{file}: loaded weights below {key!r}, names without 'module.'"]


def test_what_training_scripts_save_beside_weights_is_loaded(tmp_path):
    args = argparse.Namespace(lr=0.1, data=Path("x"))
    numbers = {"best": np.float64(91.2), "loss": np.float32(0.3), "step": np.int64(7)}
    assert same(read_weights(saved(tmp_path, {"state_dict": WEIGHTS, "args": args, **numbers})), WEIGHTS)


def test_of_weights_and_their_average_the_weights_are_taken_and_a_key_chooses(tmp_path, caplog):
    caplog.set_level("INFO", "logitcache")
    average = {name: value * 0 for name, value in WEIGHTS.items()}
    file = saved(tmp_path, {"state_dict_ema": average, "state_dict": WEIGHTS})
    assert same(read_weights(file, WEIGHTS), WEIGHTS)
    assert caplog.messages == [f"{file}: loaded weights below 'state_dict' ({file}:state_dict_ema would match too)"]
    assert same(read_weights(f"{file}:state_dict_ema", WEIGHTS), average)
    with pytest.raises(InputError, match="has no state dict 'ema'; expected one of state_dict, state_dict_ema"):
        read_weights(f"{file}:ema", WEIGHTS)


def test_a_teacher_and_a_student_in_one_checkpoint_must_be_told_apart(tmp_path):
    other = {name: value + 1 for name, value in WEIGHTS.items()}
    both = prefixed("student.") | {f"teacher.{name}": value for name, value in other.items()}
    file = saved(tmp_path, {"state_dict": both})
    with pytest.raises(
        InputError,
        match=r"several sets of weights for this network; choose .*:state_dict.student or .*:state_dict.teacher",
    ):
        read_weights(file, WEIGHTS)
    assert same(read_weights(f"{file}:state_dict.teacher", WEIGHTS), other)


@pytest.mark.parametrize("prefix", ["", "model.", "module.student."])
def test_a_deeper_network_of_the_same_names_is_refused_below_a_prefix_too(tmp_path, prefix):
    deeper = load_network("resnet14", 5).module.state_dict()
    file = saved(tmp_path, {"state_dict": {prefix + name: value for name, value in deeper.items()}})
    with pytest.raises(InputError, match=r"does not match resnet8: it has layer1\.1\..*, which are unknown"):
        load_network("resnet8", 5, file)


def test_of_two_networks_in_one_checkpoint_the_one_whose_shapes_fit_is_taken(tmp_path):
    wider = {f"teacher.{name}": torch.cat([value, value]) for name, value in WEIGHTS.items() if value.ndim}
    assert same(read_weights(saved(tmp_path, {**wider, **prefixed("student.")}), WEIGHTS), WEIGHTS)


def test_averaged_models_of_torch_are_read(tmp_path):
    assert same(read_weights(saved(tmp_path, {"n_averaged": torch.tensor(3), **prefixed("module.")}), WEIGHTS), WEIGHTS)


def test_a_network_of_lazy_modules_is_refused_with_the_remedy():
    with pytest.raises(InputError, match=r"Sequential has uninitialized parameters \(lazy modules\)"):
        load_network(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), 3)


def test_names_that_are_the_networks_own_are_kept(tmp_path):
    own = {f"module.{name}": value for name, value in WEIGHTS.items()}
    assert same(read_weights(saved(tmp_path, own), own), own)
    assert same(read_weights(saved(tmp_path, {f"module.{name}": value for name, value in own.items()}), own), own)


def test_a_checkpoint_of_another_network_is_refused_with_the_difference(tmp_path):
    file = saved(tmp_path, {"state_dict": prefixed("module.")})
    with pytest.raises(InputError, match="does not match resnet8: it lacks"):
        load_network("resnet8", 5, file)


def test_a_server_out_of_reach_is_not_waited_for(monkeypatch):
    hub = pytest.importorskip("huggingface_hub.constants")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "ENDPOINT", "https://127.0.0.1:9")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    began = time.monotonic()
    with pytest.raises(
        InputError, match="timm:resnet10t cannot be created: .* Download its weights on another machine"
    ):
        load_network("timm:resnet10t", 1000, "DEFAULT")
    assert time.monotonic() - began < 20
    assert not hub.HF_HUB_OFFLINE
