"""Settings: one source for Python, the command line, help and run.json."""

import copy
import functools
import inspect
import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import typer
from logitcache.cli.app import app

import logitcache
from logitcache import Callbacks, DumpSettings, TrainSettings
from logitcache.dump.settings import DumpRequest
from logitcache.errors import CacheIncompleteError, CacheMismatchError, InputError, StoppedError, UnknownNameError
from logitcache.runs.compare import group_runs
from logitcache.runtime.settings import option_of, options_in
from logitcache.train.metrics import EpochMetrics
from logitcache.train.optimize import OPTIMIZERS, make_optimizer
from logitcache.train.settings import TrainRequest

SHORT = TrainSettings(epochs=2, batch_size=48, lr=0.01)
EVERY_KIND = [
    TrainSettings(),
    TrainSettings(
        method="dkd", parameters={"beta": 2.0, "several": [1, 2]}, temperature=[2.0, "adaptive"], mean=[0.1, 0.2, 0.3],
        decay_milestones=[3, 5], standardize=False, opt="adamw", betas=(0.8, 0.9), eps=1e-6, memory_budget=10,
    ),
    DumpSettings(),
    DumpSettings(teacher_weights=["a", "b"], class_map=[3, 1], samples=[2, 8], batch_size="auto", std=(0.1, 0.2, 0.3)),
]  # fmt: skip


@pytest.fixture
def data(images, test_images):
    return {"data": images, "test_data": test_images}


def recorded(path):
    return json.loads((Path(path) / "run.json").read_text())["settings"]


def rewrite(path, **changes):
    """Change the settings in a run.json; None removes a name."""
    file = Path(path) / "run.json"
    content = json.loads(file.read_text())
    settings = content["settings"] | changes
    content["settings"] = {name: value for name, value in settings.items() if value is not None or name not in changes}
    file.write_text(json.dumps(content))


def weights(result):
    return torch.cat([value.flatten().double() for value in result.student.state_dict().values()])


@pytest.mark.parametrize("module", ["runtime.settings", "runtime.progress", "train.settings", "dump.settings"])
def test_settings_do_not_import_torch(module):
    code = f"import sys, logitcache.{module}; print('torch' in sys.modules, 'zarr' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_front_door_leads_to_settings_without_torch():
    code = (
        "import sys, logitcache; logitcache.TrainSettings(); logitcache.DumpSettings(); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: TrainSettings(weigth_decay=0.1), "unknown setting 'weigth_decay'; did you mean 'weight_decay'"),
        (lambda: replace(TrainSettings(), epoch=3), "unknown setting 'epoch'; did you mean 'epochs'"),
        (lambda: DumpSettings(view=3), "unknown setting 'view'; did you mean 'views'"),
        (lambda: TrainSettings.from_json({"lrr": 0.1}), "unknown setting 'lrr'; did you mean 'lr'"),
        (lambda: logitcache.train_student("c.zarr", "resnet8", batchsize=3), "did you mean 'batch_size'"),
        (lambda: logitcache.dump_logits("resnet8", "cifar10", "c.zarr", topk=3), "did you mean 'top_k'"),
        (lambda: logitcache.plan_dump("resnet8", "cifar10", "c.zarr", augmet="none"), "did you mean 'augment'"),
    ],
)
def test_an_unknown_name_is_refused_with_a_suggestion(call, hint):
    with pytest.raises(UnknownNameError, match=hint):
        call()


def test_an_unknown_option_is_refused_on_the_command_line(run):
    for line in ("train --weigth-decay 0.1", "dump --teacher a --data b --out c --view 3"):
        done = run(*line.split())
        assert done.exit_code == 2
        assert "No such option" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 2.5}, "`epochs` must be a whole number of 1 or more, not 2.5"),
        ({"workers": -1}, "`workers` must be 0 or more, not -1"),
        ({"image_size": 0}, "`image_size` must be 1 or more, not 0"),
        ({"lr": None}, "`lr` must be a number, not None"),
        ({"lr": "0.1"}, "`lr` must be a number, not '0.1'"),
        ({"lr": True}, "`lr` must be a number, not True"),
        ({"amp": 1}, "`amp` must be True or False, not 1"),
        ({"compiled": "yes"}, "`compiled` must be True or False, not 'yes'"),
        ({"standardize": "no"}, "`standardize` must be True or False, not 'no'"),
        ({"warmup_epochs": 241}, "`warmup_epochs` must be from 0 to the number of epochs, not 241"),
        ({"decay_milestones": [-1]}, r"`decay_milestones` must be 0 or more each, not \(-1,\)"),
        ({"decay_milestones": 3}, "`decay_milestones` must be a sequence of whole numbers, not 3"),
        ({"label_smoothing": 1.0}, "`label_smoothing` must be from 0 to below 1, not 1"),
        ({"amp": True, "amp_dtype": "half"}, "`amp_dtype` must be bfloat16 or float16, not 'half'"),
        ({"opt": 3}, "`opt` must be the name of an optimizer, or a callable that returns one, not 3"),
    ],
)
def test_a_value_out_of_range_is_refused_on_construction(changes, message):
    with pytest.raises(InputError, match=message):
        TrainSettings(**changes)


def test_settings_of_another_class_are_refused():
    with pytest.raises(InputError, match="settings must be a TrainSettings, not a DumpSettings"):
        logitcache.train_student("c.zarr", "resnet8", settings=DumpSettings())


def test_settings_cannot_be_changed_by_anybody():
    mine = {"beta": 2.0}
    settings = TrainSettings(parameters=mine, mean=[0.5, 0.5, 0.5])
    mine["beta"] = 3.0
    assert settings.parameters == {"beta": 2.0}
    assert settings.mean == (0.5, 0.5, 0.5)
    with pytest.raises(FrozenInstanceError):
        settings.lr = 0.1


def test_a_data_set_is_left_as_it_is():
    """A list of samples is not copied, and is recorded by its type as other objects are."""
    samples = [(torch.zeros(3, 4, 4), 0)]
    settings = TrainSettings(data=samples)
    assert settings.data is samples
    assert settings.record()["data"] == "list"


def test_numbers_of_numpy_become_pythons():
    settings = TrainSettings(seed=np.int64(3), lr=np.float32(0.5), mean=np.array([0.5, 0.25, 0.5]).tolist())
    assert (type(settings.seed), type(settings.lr)) == (int, float)
    assert settings.to_json()["seed"] == 3


def test_the_text_of_settings_shows_what_differs_from_the_defaults():
    assert repr(TrainSettings(epochs=2, opt="adamw")) == "TrainSettings(opt='adamw', epochs=2)"
    assert repr(TrainSettings(nesterov=True, lr=1)) == "TrainSettings(lr=1, nesterov=True)"


@pytest.mark.parametrize("settings", EVERY_KIND, ids=str)
def test_settings_come_back_from_json(settings):
    assert type(settings).from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(
    ("function", "kinds", "positional"),
    [
        (logitcache.train_student, (TrainRequest, TrainSettings), ["cache", "student"]),
        (logitcache.dump_logits, (DumpRequest, DumpSettings), ["teacher", "data", "out"]),
        (logitcache.plan_dump, (DumpRequest, DumpSettings), ["teacher", "data", "out"]),
    ],
)
def test_signature_and_help_show_every_option_with_its_default(function, kinds, positional):
    shown = inspect.signature(function).parameters
    fields = {one.name: one for kind in kinds for one in options_in(kind)}
    assert shown.keys() == fields.keys()
    assert [name for name, one in shown.items() if one.kind is one.POSITIONAL_OR_KEYWORD] == positional
    text = " ".join(inspect.getdoc(function).split())
    for name, one in fields.items():
        missing = inspect.Parameter.empty if one.default is not None and name in positional else one.default
        assert shown[name].default == missing
        assert f" {name}: {' '.join(option_of(one).help.split())}" in text


def test_fields_are_shown_group_by_group():
    names = [one.name for one in options_in(TrainSettings)]
    assert names.index("method") < names.index("data") < names.index("opt") < names.index("epochs") < names.index("amp")
    assert len(names) == len(fields(TrainSettings))


@pytest.mark.parametrize(
    ("command", "kinds", "others"),
    [
        ("train", (TrainRequest, TrainSettings), {"cache", "config", "help"}),
        ("dump", (DumpRequest, DumpSettings), {"plan", "config", "help"}),
    ],
)
def test_the_options_of_the_command_line_are_the_fields(command, kinds, others):
    params = {one.name: one for one in typer.main.get_command(app).commands[command].params}
    every = {one.name: one for kind in kinds for one in options_in(kind)}
    typed = {name: one for name, one in every.items() if option_of(one).form not in ("argument", "python")}
    assert params.keys() - {"help"} == typed.keys() | others - {"help"}
    teacher = "--cached-teacher" if command == "train" else "--teacher"
    for name, one in typed.items():
        flag = {"compiled": "--compile", "parameters": "--set", "teacher": teacher}.get(
            name, f"--{name.replace('_', '-')}"
        )
        assert flag in params[name].opts
        assert params[name].help == option_of(one).help
        assert params[name].required == (name in ("teacher", "data", "out") and command == "dump")
        if not params[name].required:
            assert params[name].default == one.default
    secondary = {name: one.secondary_opts for name, one in params.items() if one.secondary_opts}
    switches = {"standardize": ["--no-standardize"], "pair_views": ["--no-pair-views"], "keep_best": ["--no-keep-best"]}
    assert secondary == (switches if command == "train" else {})


def test_a_run_records_what_decides_the_result_and_nothing_else(dump, data, tmp_path):
    """By the names that runs have always had, and some new ones."""
    logitcache.train_student(
        dump(), "tiny:still", settings=SHORT, workers=0, log_to=["csv"], out=tmp_path / "r", **data
    )
    names = """amp amp_dtype augment batch_size cache ce_weight channels_last clip_grad compiled crop_pct data decay_milestones
        decay_rate deterministic device epochs grad_accum_steps gradient_checkpointing
        image_size kd_warmup kd_weight label_smoothing live_teacher lr mean
        memory_budget method model_ema_decay momentum nesterov norm_weight_decay opt pair_views parameters preset refine sched
        seed standardize std student student_weights tail teacher teacher_weights temperature test_data warmup_epochs
        weight_decay"""
    found = recorded(tmp_path / "r")
    assert list(found) == sorted([*names.split(), "betas", "class_weights", "drop_last", "eps"])
    assert (found["data"], found["student"], found["cache"]) == ("ArrayImages", "tiny:still", str(tmp_path / "c.zarr"))
    assert (found["momentum"], found["weight_decay"], found["epochs"]) == (0.9, 5e-4, 2)


def test_objects_are_recorded_by_type_or_qualified_name():
    half = functools.partial(torch.optim.AdamW, betas=(0.9, 0.5))
    assert TrainSettings(opt=torch.optim.Adagrad).record()["opt"] == "torch.optim.adagrad.Adagrad"
    assert TrainSettings(opt=half).record()["opt"] == "torch.optim.adamw.AdamW(betas=(0.9, 0.5))"
    assert TrainSettings(method=tiny.net).record()["method"] == "tiny.net"
    assert TrainSettings(live_teacher=tiny.net(5)).record()["live_teacher"] == "Sequential"
    assert TrainSettings(data=Path("x/y")).record()["data"] == "x/y"


def test_a_settings_object_serves_two_runs_and_options_replace_its_fields(dump, data, tmp_path):
    cache, settings = dump(), replace(SHORT, **data)
    first, again, flat, other = (
        logitcache.train_student(cache, "tiny:still", settings=settings, out=tmp_path / "a"),
        logitcache.train_student(cache, "tiny:still", settings=settings, out=tmp_path / "b"),
        logitcache.train_student(
            cache=cache, student="tiny:still", epochs=2, batch_size=48, lr=0.01, out=tmp_path / "c", **data
        ),
        logitcache.train_student(cache, "tiny:still", settings=settings, lr=0.02, out=tmp_path / "d"),
    )
    assert torch.equal(weights(first), weights(again))
    assert torch.equal(weights(first), weights(flat))
    assert not torch.equal(weights(first), weights(other))
    assert recorded(tmp_path / "a") == recorded(tmp_path / "b") == recorded(tmp_path / "c")
    assert recorded(tmp_path / "d") == recorded(tmp_path / "a") | {"lr": 0.02}
    assert settings == replace(SHORT, **data)


def test_a_dump_takes_settings_old_keywords_and_both(images, tmp_path):
    settings = DumpSettings(augment="pad-crop-flip", views=2, precision="f32", batch_size=64)
    teacher = tiny.net(tiny.CLASSES)
    logitcache.dump_logits(teacher, images, tmp_path / "a.zarr", settings=settings)
    logitcache.dump_logits(
        teacher=teacher, data=images, out=tmp_path / "b.zarr", augment="pad-crop-flip", views=2, precision="f32", batch_size=64
    )  # fmt: skip
    one = logitcache.dump_logits(teacher, images, tmp_path / "c.zarr", settings=settings, views=1)
    assert tiny.bytes_of(tmp_path / "a.zarr") == tiny.bytes_of(tmp_path / "b.zarr")
    assert len(one.manifest.views) == 1
    assert logitcache.plan_dump(teacher, images, tmp_path / "d.zarr", settings=settings).rows == 600
    assert logitcache.plan_dump(teacher, images, tmp_path / "d.zarr", settings=settings, views=3).rows == 900


def test_a_cache_knows_the_command_line_of_its_settings(npz, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    settings = DumpSettings(views=2, samples=(0, 200), amp=True, mean=(0.5, 0.5, 0.5), top_k=2)
    cache = logitcache.dump_logits("tiny:net", f"arrays:{npz}", tmp_path / "c.zarr", settings=settings)
    words = "--views 2 --samples 0:200 --top-k 2 --mean 0.5,0.5,0.5 --amp"
    assert (
        cache.command == f"logitcache dump --teacher tiny:net --data arrays:{npz} --out {tmp_path / 'c.zarr'} {words}"
    )
    blocks = logitcache.dump_logits("tiny:net", f"arrays:{npz}", tmp_path / "d.zarr", block_rows=100)
    assert blocks.command in ("", None)


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_every_optimizer_gets_the_settings_it_has(opt):
    values = {"momentum": 0.5, "nesterov": True, "betas": (0.7, 0.8), "eps": 1e-3}
    mine = {name: values[name] for name in OPTIMIZERS[opt]}
    (group,) = make_optimizer(tiny.net(5), TrainSettings(opt=opt, weight_decay=0.25, **mine)).param_groups
    assert {name: group[name] for name in mine} == mine
    assert group["weight_decay"] == 0.25
    bare = getattr(torch.optim, type(make_optimizer(tiny.net(5), TrainSettings(opt=opt))).__name__)
    (usual,), (theirs,) = (
        make_optimizer(tiny.net(5), TrainSettings(opt=opt)).param_groups,
        bare(tiny.net(5).parameters()).param_groups,
    )
    ours = (
        {"momentum": 0.9, "weight_decay": 5e-4, "lr": 0.05}
        if "momentum" in theirs
        else {"weight_decay": 5e-4, "lr": 0.05}
    )
    assert {name: usual[name] for name in usual if name != "params"} == {
        name: ours.get(name, theirs[name]) for name in theirs if name != "params"
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"opt": "adam", "momentum": 0.9},
            "`momentum` does not apply to adam, which has `betas` and `eps`; leave it out",
        ),
        ({"opt": "adam", "momentum": 0.0}, "`momentum` does not apply to adam"),
        ({"opt": "sgd", "betas": (0.9, 0.99)}, "`betas` does not apply to sgd, which has `momentum` and `nesterov`"),
        ({"opt": "sgd", "eps": 1e-8}, "`eps` does not apply to sgd"),
        ({"opt": "rmsprop", "nesterov": True}, "`nesterov` requires SGD with momentum"),
        ({"opt": "rmsprop", "betas": (0.9, 0.99)}, "`betas` does not apply to rmsprop"),
        ({"opt": torch.optim.SGD, "momentum": 0.9}, "`momentum` cannot be set for your own optimizer"),
        ({"opt": torch.optim.SGD, "nesterov": True}, "`nesterov` cannot be set for your own optimizer"),
        ({"opt": torch.optim.Adam, "betas": (0.9, 0.99)}, "`betas` cannot be set for your own optimizer"),
        ({"opt": torch.optim.Adam, "eps": 1e-8}, "`eps` cannot be set for your own optimizer"),
        (
            {"opt": "adam", "betas": (0.9, 1.0)},
            r"`betas` must be (two numbers|a sequence of numbers) from 0 to below 1, not \(0.9, 1.0\)",
        ),
        ({"opt": "adam", "betas": 0.9}, "`betas` must be (two numbers|a sequence of numbers)"),
        ({"opt": "adam", "eps": -1.0}, "`eps` must be 0 or more, not -1"),
    ],
)
def test_a_setting_that_the_optimizer_does_not_have_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        TrainSettings(**changes)


def test_a_callable_optimizer_keeps_its_own_weight_decay_unless_one_is_given():
    mine = functools.partial(torch.optim.AdamW, weight_decay=0.3)
    decays = [
        [group["weight_decay"] for group in make_optimizer(tiny.net(5), TrainSettings(opt=mine, **given)).param_groups]
        for given in (
            {},
            {"weight_decay": 0.1},
            {"norm_weight_decay": 0.0},
            {"weight_decay": 0.1, "norm_weight_decay": 0.0},
        )
    ]
    assert decays == [[0.3], [0.1], [0.3, 0.0], [0.1, 0.0]]
    assert TrainSettings(opt=mine).record()["weight_decay"] is None
    with pytest.raises(InputError, match="opt must return a torch optimizer, not a list"):
        make_optimizer(tiny.net(5), TrainSettings(opt=list))


def test_a_callable_optimizer_trains_as_the_named_one_and_resumes(dump, data, tmp_path):
    cache, settings = dump(), replace(SHORT, **data)
    mine = functools.partial(torch.optim.AdamW, betas=(0.8, 0.9), weight_decay=5e-4)
    named = logitcache.train_student(
        cache, "tiny:still", settings=settings, opt="adamw", betas=(0.8, 0.9), out=tmp_path / "a"
    )
    settings = replace(settings, opt=mine)
    whole = logitcache.train_student(cache, "tiny:still", settings=settings, out=tmp_path / "b")
    assert torch.equal(weights(named), weights(whole))
    asked = iter([False] * 9 + [True])
    with pytest.raises(StoppedError):
        logitcache.train_student(
            cache, "tiny:still", settings=settings, should_stop=lambda: next(asked), out=tmp_path / "c"
        )
    with pytest.raises(CacheMismatchError, match="opt: there"):
        logitcache.train_student(
            cache, "tiny:still", settings=settings, opt=torch.optim.AdamW, resume=True, out=tmp_path / "c"
        )
    resumed = logitcache.train_student(cache, "tiny:still", settings=settings, resume=True, out=tmp_path / "c")
    assert torch.equal(weights(resumed), weights(whole))


def test_betas_and_eps_are_set_on_the_command_line(run, npz, dump, tmp_path):
    dump(data=f"arrays:{npz}")
    words = ["train", "c.zarr", "--student", "tiny:still", "--epochs", "1", "--lr", "0.01"]
    assert run(*words, *["--opt", "adamw", "--betas", "0.8,0.9", "--eps", "1e-4", "--out", "a"]).exit_code == 0
    found = recorded(tmp_path / "a")
    assert (found["betas"], found["eps"], found["momentum"]) == ([0.8, 0.9], 1e-4, None)
    assert run("train", "--config", "a/run.json", "--out", "b").exit_code == 0
    assert recorded(tmp_path / "b") == found
    done = run(*words, *["--opt", "adamw", "--momentum", "0.9", "--out", "c"])
    assert done.exit_code == 1
    assert "error: --momentum does not apply to adamw, which has --betas and --eps; leave it out" in done.stderr
    assert run(*words, *["--betas", "0.8;0.9"]).exit_code == 2
    assert run(*words, *["--nesterov", "--out", "d"]).exit_code == 0
    assert (recorded(tmp_path / "d")["momentum"], recorded(tmp_path / "d")["nesterov"]) == (0.9, True)


def test_an_old_run_whose_optimizer_ignored_the_momentum_resumes(run, npz, dump, tmp_path):
    """As older versions wrote it: momentum 0.9 for adamw, no betas, no eps."""
    dump(data=f"arrays:{npz}")
    settings = TrainSettings(opt="adamw", lr=0.01, epochs=2, batch_size=48)
    whole = logitcache.train_student(tmp_path / "c.zarr", "tiny:still", settings=settings, out=tmp_path / "whole")
    for name in ("python", "command"):
        asked = iter([False] * 9 + [True])
        with pytest.raises(StoppedError):
            logitcache.train_student(
                tmp_path / "c.zarr", "tiny:still", settings=settings, out=tmp_path / name, should_stop=lambda a=asked: next(a)
            )  # fmt: skip
        rewrite(tmp_path / name, momentum=0.9, betas=None, eps=None)
    resumed = logitcache.train_student(
        tmp_path / "c.zarr", "tiny:still", settings=settings, out=tmp_path / "python", resume=True
    )
    assert torch.equal(weights(resumed), weights(whole))
    done = run("train", "--resume", "--out", "command")
    assert done.exit_code == 0, done.stderr
    files = [tmp_path / folder / "student.safetensors" for folder in ("command", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    rewrite(tmp_path / "whole", momentum=0.9, betas=None, eps=None)
    done = run("train", "--config", "whole/run.json", "--out", "repeated")
    assert done.exit_code == 0, done.stderr
    assert recorded(tmp_path / "repeated")["momentum"] is None


def test_an_old_run_and_a_new_one_are_compared_as_equals(dump, data, tmp_path):
    cache = dump()
    for seed in (0, 1):
        logitcache.train_student(
            cache, "tiny:still", settings=SHORT, opt="adamw", seed=seed, out=tmp_path / f"r{seed}", **data
        )
    rewrite(tmp_path / "r0", momentum=0.9, betas=None, eps=None)
    (group,) = group_runs(logitcache.compare_runs([tmp_path / "r0", tmp_path / "r1"]))
    assert group.seeds == 2


def test_a_setting_that_only_some_runs_have_tells_groups_apart(dump, data, tmp_path):
    cache = dump()
    for name, more in {"plain": {}, "clipped": {"clip_grad": 1.0}}.items():
        logitcache.train_student(cache, "tiny:still", settings=SHORT, out=tmp_path / name, **more, **data)
    runs = logitcache.compare_runs([tmp_path / "plain", tmp_path / "clipped"])
    for order in (runs, runs[::-1]):
        differs = {group.differs for group in group_runs(order)}
        assert differs == {"clip_grad=None", "clip_grad=1"}


class Watch(Callbacks):
    """Counts what it is told, and stops after some steps."""

    def __init__(self, steps=None):
        self.steps, self.epochs, self.asked, self.limit = [], [], 0, steps

    def on_step(self, progress):
        self.steps.append(progress)

    def on_epoch(self, metrics):
        self.epochs.append(metrics["epoch"])

    def should_stop(self):
        self.asked += 1
        return self.limit is not None and len(self.steps) >= self.limit


def test_callbacks_are_told_of_steps_and_epochs_and_stop_a_run(dump, data, tmp_path):
    cache, watch, steps = dump(), Watch(), []
    whole = logitcache.train_student(
        cache, "tiny:still", settings=SHORT, callbacks=watch, on_progress=steps.append, out=tmp_path / "a", **data
    )
    assert (len(watch.steps), watch.epochs, watch.asked) == (14, [1, 2], 13)
    assert watch.steps == steps
    assert watch.steps[-1].task == "epoch 2/2"
    with pytest.raises(StoppedError, match="step 3 of 7 of epoch 1"):
        logitcache.train_student(cache, "tiny:still", settings=SHORT, callbacks=Watch(3), out=tmp_path / "b", **data)
    resumed = logitcache.train_student(
        cache, "tiny:still", settings=SHORT, callbacks=Callbacks(), resume=True, out=tmp_path / "b", **data
    )
    assert torch.equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("by", ["callbacks", "function", "both"])
def test_either_of_two_callbacks_stops_a_run(dump, data, tmp_path, by):
    told, watch = [], Watch(3 if by in ("callbacks", "both") else None)
    stop = (lambda: True) if by == "function" else None if by == "callbacks" else lambda: len(watch.steps) >= 5
    with pytest.raises(StoppedError, match=rf"step {1 if by == 'function' else 3} of 7 of epoch 1"):
        logitcache.train_student(
            dump(), "tiny:still", settings=SHORT, callbacks=watch, should_stop=stop, on_epoch=told.append,
            out=tmp_path / "b", **data,
        )  # fmt: skip
    assert not told


def test_callbacks_are_told_of_a_dump_and_stop_it(images, tmp_path):
    arguments = {"teacher": tiny.net(tiny.CLASSES), "data": images, "batch_size": 64, "block_rows": 128}
    watch = Watch(2)
    with pytest.raises(CacheIncompleteError):
        logitcache.dump_logits(**arguments, out=tmp_path / "c.zarr", callbacks=watch)
    assert watch.steps
    rest, told = Watch(), []
    logitcache.dump_logits(**arguments, out=tmp_path / "c.zarr", callbacks=rest, on_progress=told.append)
    assert rest.steps == told
    assert rest.steps[-1].done == rest.steps[-1].total == 300


def test_a_result_has_the_metrics_of_every_epoch(dump, data, tmp_path):
    cache, told = dump(), []
    result = logitcache.train_student(
        cache, "tiny:still", settings=SHORT, on_epoch=told.append, out=tmp_path / "run", **data
    )
    assert result.path == result.out == tmp_path / "run"
    assert result.metrics == told
    assert [epoch["epoch"] for epoch in result.metrics] == [1, 2]
    assert result.metrics[-1]["test_accuracy"] == result.results["test_accuracy"]
    known = EpochMetrics.__annotations__.keys()
    assert result.metrics[0].keys() <= known
    again = logitcache.train_student(cache, "tiny:still", settings=SHORT, resume=True, out=tmp_path / "run", **data)
    assert again.metrics == result.metrics
    assert again.results == result.results


def test_a_student_must_be_named(dump):
    with pytest.raises(InputError, match="there is no student to train; pass the name of a network or a module"):
        logitcache.train_student(dump())


def test_a_seed_that_torch_cannot_take_is_refused():
    with pytest.raises(InputError, match=r"`seed` must be below 2\*\*63, not 18446744073709551616"):
        TrainSettings(seed=2**64)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (TrainSettings, {"mean": 0.5}, "`mean` must be a sequence of numbers, not 0.5"),
        (TrainSettings, {"std": torch.tensor([0.5])}, "`std` must be a sequence of numbers, not tensor"),
        (TrainSettings, {"memory_budget": "8GB"}, "`memory_budget` must be a number of bytes, not '8GB'"),
        (TrainSettings, {"parameters": [1]}, "`parameters` must be a mapping of names to values"),
        (DumpSettings, {"samples": "0:5"}, "`samples` must be two whole numbers, as"),
        (DumpSettings, {"samples": 5}, "`samples` must be two whole numbers, as"),
    ],
)
def test_a_value_of_the_wrong_type_is_one_sentence(kind, changes, message):
    with pytest.raises(InputError, match=message):
        kind(**changes)


@pytest.mark.parametrize("name", ["parameters", "class_weights"])
def test_settings_with_a_mapping_have_a_hash_and_cannot_be_changed(name):
    given = {"alpha": 1.0, "beta": [1.0, 2.0]}
    settings, same = TrainSettings(**{name: given}), TrainSettings(**{name: dict(reversed(given.items()))})
    assert settings == same
    assert hash(settings) == hash(same)
    assert len({settings, same, TrainSettings(**{name: {"alpha": 2.0}}), TrainSettings()}) == 3
    given["alpha"] = 3.0
    kept = getattr(settings, name)
    assert kept == {"alpha": 1.0, "beta": (1.0, 2.0)} == kept
    with pytest.raises(TypeError):
        kept["alpha"] = 3.0
    assert pickle.loads(pickle.dumps(settings)) == copy.deepcopy(settings) == settings
    assert settings.to_json()[name] == {"alpha": 1.0, "beta": [1.0, 2.0]}
    assert repr(settings) == f"TrainSettings({name}={{'alpha': 1.0, 'beta': (1.0, 2.0)}})"


@pytest.mark.parametrize("out", [3, b"c.zarr", ["c.zarr"]])
def test_a_path_that_is_none_is_a_sentence(out):
    for take in (
        lambda: logitcache.dump_logits(teacher=tiny.net(tiny.CLASSES), data=tiny.arrays(), out=out),
        lambda: TrainRequest(cache="c.zarr", student="resnet8", out=out),
    ):
        with pytest.raises(InputError, match="`out` must be a path, not "):
            take()


@pytest.mark.parametrize("paths", [3, [3], None])
def test_runs_that_are_no_paths_are_a_sentence(paths):
    with pytest.raises(InputError, match="a run must be the path of its folder, not "):
        logitcache.compare_runs(paths)
