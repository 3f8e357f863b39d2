"""The command line as a stranger types it."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import tiny
import torch
import warm
from logitcache.cli.app import app
from logitcache.cli.demo import steps
from typer.testing import CliRunner

DUMP = "dump --teacher tiny:net --data arrays:data.npz --augment pad-crop-flip --views 2 --batch-size 64 --out"
TRAIN = "--student tiny:student --epochs 2 --batch-size 50"


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    """A folder with data and one cache, as the command line leaves them."""
    folder, (pixels, labels, classes) = tmp_path_factory.mktemp("dumped"), tiny.arrays()
    np.savez(folder / "data.npz", images=pixels, labels=labels, classes=np.array(classes))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert CliRunner().invoke(app, [*DUMP.split(), "c.zarr"], prog_name="logitcache").exit_code == 0
    return folder


@pytest.fixture
def ready(run, npz, dumped, tmp_path):
    """A folder with data and one cache."""
    shutil.copytree(dumped / "c.zarr", tmp_path / "c.zarr")
    return run


def test_what_is_taken_from_a_checkpoint_is_said(run, tmp_path):
    torch.save({"net": {f"module.{name}": x for name, x in tiny.net(5).state_dict().items()}}, tmp_path / "a.pth")
    np.savez(tmp_path / "d.npz", images=tiny.arrays()[0], labels=tiny.arrays()[1])
    result = run(
        "dump", "--teacher", "tiny:net", "--teacher-weights", "a.pth", "--data", "arrays:d.npz", "--out", "c.zarr"
    )
    assert result.exit_code == 0, result.output
    assert "a.pth: loaded weights below 'net', names without 'module.'\n" in result.stderr


def test_the_whole_way(run, npz):
    done = run(*DUMP.split(), "c.zarr")
    assert done.exit_code == 0
    assert re.fullmatch(r"c\.zarr: 300 samples x 2 views, 5 classes, finished; [\d.]+ bytes per row\n", done.stdout)
    assert re.search(r"dumping: 600/600 rows, view 2/2, [0-9,]+ rows/s, .*teacher accuracy [0-9.]+%", done.stderr)

    done = run("stats")
    assert done.exit_code == 0
    assert "using c.zarr (the newest cache here)" in done.stderr
    assert "c.zarr: tiny:net on arrays:data.npz, 300 samples x 2 views" in done.stdout
    assert "tiny:net, weights sha256" in run("info", "c.zarr").stdout

    done = run("verify", "c.zarr")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "c.zarr: 2 blocks intact; the probe agrees within rounding",
        "512 rows rendered again: the same pixels as the teacher saw",
    ]

    for method in ("ce", "kd", "rld"):
        done = run(
            "train",
            "c.zarr",
            "--method",
            method,
            *TRAIN.split(),
            "--test-data",
            "tiny:arrays:test",
            "--out",
            f"runs/{method}",
        )
        assert done.exit_code == 0
        assert re.fullmatch(
            rf"runs/{method}: {method}, tiny:student, test accuracy \d+\.\d\d%, teacher agreement \d+\.\d%\n",
            done.stdout,
        )
        assert len(re.findall(r"epoch +\d  lr .*  test \d+\.\d\d%  \d+\.\d s", done.stderr)) == 2

    done = run("compare", "runs")
    assert done.exit_code == 0
    assert [line.split()[3] for line in done.stdout.splitlines() if "runs/" in line] == ["ce", "kd", "rld"]
    rows = {run["method"]: run for run in json.loads(run("compare", "runs/ce", "runs/rld", "--json").stdout)["runs"]}
    assert rows.keys() == {"ce", "rld"}
    assert (rows["ce"]["bytes_per_sample"], rows["rld"]["bytes_per_sample"]) == (0, 2 * 5 * 2)
    assert (rows["ce"]["logits"], rows["rld"]["logits"]) == ("unused", "cached")


def test_stats_as_json_are_the_numbers(ready, npz):
    from logitcache import open_cache

    found = json.loads(ready("stats", "c.zarr", "--json").stdout)
    cache = open_cache("c.zarr")
    labels, logits = cache.labels(), cache.view(1, "tiny-net")["logits"].astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    view = found["views"][1]
    assert view["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert view["mis_instruction_rate"] == pytest.approx(1 - view["accuracy"])
    assert view["confidence"] == pytest.approx(p.max(1).mean())
    assert view["entropy_nats"] == pytest.approx(-(p * np.log(p)).sum(1).mean())
    assert view["top5_accuracy"] == 1.0
    assert found["bytes_total"] == sum(file.stat().st_size for file in cache.place.path.rglob("*") if file.is_file())
    assert 0 < found["probe"]["largest_gap"] < 1e-2
    assert found["manifest"]["encoding"] == {"kind": "full", "dtype": "f16"}


def test_a_live_teacher_is_rebuilt_from_the_manifest(ready):
    exact = ["--precision", "f32"]
    assert ready(*DUMP.split(), "exact.zarr", *exact).exit_code == 0
    for name, live in (("cached", []), ("live", ["--live-teacher"])):
        assert ready("train", "exact.zarr", *TRAIN.split(), *live, "--out", name).exit_code == 0
    from pathlib import Path

    assert Path("cached/student.safetensors").read_bytes() == Path("live/student.safetensors").read_bytes()
    assert "kd (live teacher)" in ready("compare", "live").stdout


def test_words_come_from_a_file_and_the_command_line_wins(ready):
    from pathlib import Path

    Path("recipe.toml").write_text(
        'student = "tiny:student"\nmethod = "rld"\nepochs = 9\nbatch-size = 50\nsched = "step"\n'
        "decay-milestones = [1, 2]\n[set]\nbeta = 2.5\n"
    )
    assert ready("train", "c.zarr", "--config", "recipe.toml", "--epochs", "1", "--out", "a").exit_code == 0
    settings = json.loads(Path("a/run.json").read_text())["settings"]
    assert (settings["method"], settings["epochs"], settings["batch_size"]) == ("rld", 1, 50)
    assert (settings["parameters"], settings["decay_milestones"]) == ({"beta": 2.5}, [1, 2])
    assert ready("train", "--config", "a/run.json", "--out", "b").exit_code == 0
    assert json.loads(Path("b/run.json").read_text())["settings"] == settings
    assert Path("a/student.safetensors").read_bytes() == Path("b/student.safetensors").read_bytes()


def test_a_memory_budget_is_a_size(ready):
    from pathlib import Path

    assert ready("train", "c.zarr", *TRAIN.split(), "--memory-budget", "1.5MB", "--out", "a").exit_code == 0
    assert json.loads(Path("a/run.json").read_text())["settings"]["memory_budget"] == 1_500_000
    assert ready("train", "--config", "a/run.json", "--out", "b").exit_code == 0
    done = ready("train", "c.zarr", *TRAIN.split(), "--memory-budget", "much")
    assert done.exit_code == 2
    assert "expected a size such as 500MB or 8GB, not 'much'" in " ".join(done.stderr.replace("│", " ").split())


def test_pieces_and_presets_go_from_the_command_line_into_the_run_and_the_table(ready):
    from pathlib import Path

    words = "--method dkd --preset resnet56-resnet20 --refine loca --temperature 2,4 --set calibration_temperature=1 --no-standardize"
    done = ready("train", "c.zarr", *TRAIN.split(), *words.split(), "--out", "a")
    assert done.exit_code == 0
    assert re.search(r"epoch   1 .* refined \d+\.\d\d%", done.stderr)
    settings = json.loads(Path("a/run.json").read_text())["settings"]
    assert (settings["preset"], settings["refine"], settings["temperature"]) == (
        "resnet56-resnet20",
        "loca",
        [2.0, 4.0],
    )
    (row,) = json.loads(ready("compare", "a", "--json").stdout)["runs"]
    assert (
        row["changes"]
        == "preset=resnet56-resnet20, refine=loca, standardize=false, temperature=2,4, calibration_temperature=1"
    )
    assert ready("train", "--config", "a/run.json", "--out", "b").exit_code == 0
    assert Path("a/student.safetensors").read_bytes() == Path("b/student.safetensors").read_bytes()
    refused = ready("train", "c.zarr", *TRAIN.split(), "--method", "rld", "--refine", "swap")
    assert refused.exit_code == 1
    assert "rld takes no refinement" in refused.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "'epoch' is not an option of this command; did you mean 'epochs'?"),
        ("epochs = [", "cannot be read"),
        ("epochs = 'many'", "integer"),
        ("epochs = true", "bad.toml: epochs must be a number or a string, not True"),
        ("amp = 1", "bad.toml: amp must be true or false, not 1"),
        ("set = 'x'", 'bad.toml: set must be a table, or a list of "name=value", not'),
    ],
)
def test_a_file_with_unknown_words_is_refused(ready, text, message):
    from pathlib import Path

    Path("bad.toml").write_text(text)
    done = ready("train", "c.zarr", "--config", "bad.toml", "--student", "tiny:student")
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_without_a_name_the_newest_cache_and_a_new_run_folder_are_used(ready):
    for expected in ("kd-tiny-student", "kd-tiny-student-2"):
        done = ready("train", *TRAIN.split())
        assert done.exit_code == 0
        assert "using c.zarr (the newest cache here)" in done.stderr
        assert done.stdout.startswith(f"runs/{expected}: ")


REFUSALS = [
    ("stats nowhere.zarr", 1, "there is no cache at nowhere.zarr. Check the path, or make one with"),
    ("train nowhere.zarr --student resnet8", 1, "there is no cache at nowhere.zarr"),
    ("train c.zarr --student resnet9", 1, "unknown network 'resnet9'; did you mean"),
    (
        "train c.zarr --student resnet8 --method rdl",
        1,
        "unknown method 'rdl'; did you mean 'rld'? Known: atkd, ce, clkd",
    ),
    ("train c.zarr --student resnet8 --set beta=2", 1, "unknown parameter 'beta' of kd; expected temperature"),
    ("train c.zarr --student resnet8 --set beta", 2, "expected name=value, not 'beta'"),
    ("train c.zarr --student resnet8 --augment none", 1, "has its own views (pad-crop-flip); leave out --augment"),
    ("train c.zarr", 2, "missing; add --student NAME"),
    ("train --resume", 2, "requires the folder of the run; add --out RUN"),
    ("train --resume --out nothing", 1, "nothing has no run to resume; leave out --resume to start one"),
    (
        "train c.zarr --student resnet8 --data arrays:other.npz",
        1,
        "has 300 samples, but this data set has 60. Pass the data",
    ),
    ("train c.zarr --student resnet8 --mean 1,2,x", 2, "expected comma-separated numbers, not '1,2,x'"),
    (
        "dump --teacher resnet20 --teacher-weights demo --data arrays:data.npz --out d.zarr",
        1,
        "is a resnet20 for 10 classes, but the data has 5",
    ),
    ("dump --teacher resnet20 --data arrays:data.npz --out d.zarr", 1, "teacher resnet20 has no weights"),
    ("dump --teacher tiny:net --data cifr10 --out d.zarr", 1, "unknown data set 'cifr10'; did you mean 'cifar10'"),
    (
        "dump --teacher tiny:net --data arrays:data.npz --out c.zarr",
        1,
        "c.zarr is a different cache; nothing in it was touched",
    ),
    ("dump --teacher tiny:net --data arrays:data.npz --out folder", 1, "folder exists and is not a logit cache"),
    ("dump --teacher tiny:net --data arrays:data.npz --augment flip --out d.zarr", 1, "unknown augmentation 'flip'"),
    ("dump --teacher tiny:net --data arrays:data.npz --precision f8 --out d.zarr", 1, "unknown precision 'f8'"),
    ("dump --teacher tiny:net --data arrays:data.npz", 2, "Missing option '--out'"),
    ("dump --teacher tiny:Poisoned --data arrays:data.npz --out d.zarr", 1, "returns logits that are not finite"),
    ("dump --teacher tiny:seven --data arrays:data.npz --out d.zarr", 1, "returns logits for 7 classes, not 5"),
    (
        "dump --teacher tiny:net --data arrays:bad.npz --out d.zarr",
        1,
        "labels must lie in 0 ... 4 (5 classes); sample 0 has 9",
    ),
    ("compare folder", 1, "folder neither is nor contains a run"),
    ("methods rdl", 1, "unknown method 'rdl'; did you mean 'rld'"),
    ("verify folder", 1, "folder is not a logit cache"),
    ("frobnicate", 2, "No such command 'frobnicate'"),
]


@pytest.mark.parametrize(("line", "code", "message"), REFUSALS, ids=[line for line, _, _ in REFUSALS])
def test_what_cannot_be_done_is_one_sentence_and_an_exit_code(ready, line, code, message, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("x")
    pixels, labels, names = tiny.arrays("test")
    np.savez(tmp_path / "other.npz", images=pixels, labels=labels, classes=np.array(names))
    np.savez(tmp_path / "bad.npz", images=pixels, labels=np.r_[9, labels[1:]], classes=np.array(names))
    done = ready(*line.split())
    assert done.exit_code == code
    assert not done.stdout
    said = " ".join(done.stderr.replace("│", " ").split())
    assert message in said
    assert ("error: " in said) == (code == 1)


def test_traceback_shows_where_an_error_came_from(run):
    from logitcache.errors import CacheNotFoundError

    with pytest.raises(CacheNotFoundError):
        run("--traceback", "stats", "nowhere.zarr")


def test_an_environment_variable_does_the_same(run, monkeypatch):
    from logitcache.errors import CacheNotFoundError

    monkeypatch.setenv("LOGITCACHE_DEBUG", "1")
    with pytest.raises(CacheNotFoundError):
        run("stats", "nowhere.zarr")
    monkeypatch.setenv("LOGITCACHE_DEBUG", "0")
    assert run("stats", "nowhere.zarr").exit_code == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            KeyError("what\never"),
            r"error: unexpected KeyError: 'what.*, in .*tests/cli/test_cli\.py, line \d+\. This is a bug .* LOGITCACHE_DEBUG=1 ",
        ),
        (MemoryError("no room for 3 GiB"), r"error: out of memory \(no room for 3 GiB\)\. Use a smaller --batch-size"),
    ],
    ids=["key", "memory"],
)
def test_what_nobody_expected_is_one_sentence_too(run, monkeypatch, error, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("logitcache.stats.cache_stats", fail)
    done = run("stats", "c.zarr")
    assert done.exit_code == 1
    assert re.match(said, done.stderr)
    assert done.stderr.count("\n") == 1
    monkeypatch.setenv("LOGITCACHE_DEBUG", "1")
    with pytest.raises(type(error)):
        run("stats", "c.zarr")


def test_ctrl_c_while_modules_are_imported_is_one_line():
    script = (
        "import os, signal, sys; from logitcache.cli.start import main; press = lambda *_: os.kill(os.getpid(), signal.SIGINT); "
        "sys.meta_path.insert(0, type('', (), {'find_spec': staticmethod(press)})); main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\nstopped before starting\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_ends_at_once_what_has_nothing_in_hand(run, monkeypatch, number, code):
    monkeypatch.setattr("logitcache.dump.dump.dump_logits", lambda **_: os.kill(os.getpid(), number))
    done = run("dump", "--teacher", "tiny:net", "--data", "tiny:arrays", "--out", "c.zarr")
    assert done.exit_code == code
    assert done.stderr.splitlines()[-1].startswith("stopped; committed data is intact")


@pytest.mark.parametrize("kind", ["flipped", "missing"])
def test_damage_is_found_repaired_and_dumped_again(ready, kind, tmp_path):
    chunk = tmp_path / "c.zarr/teachers/tiny-net/logits/c/1/0/0"
    whole = chunk.read_bytes()
    if kind == "missing":
        chunk.unlink()
    else:
        chunk.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    done = ready("verify", "c.zarr")
    assert done.exit_code == 1
    assert "teachers/tiny-net/logits/c/1/0/0: " in done.stdout
    assert "`logitcache verify --repair c.zarr` drops the damaged blocks" in done.stdout
    assert ready("train", "c.zarr", *TRAIN.split(), "--out", "a").exit_code == 1
    done = ready("verify", "--repair", "c.zarr")
    assert done.exit_code == 1
    assert "The damaged blocks were dropped." in done.stdout
    done = ready("train", "c.zarr", *TRAIN.split(), "--out", "b")
    assert done.exit_code == 1
    command = re.search(r"Complete it with:\s+logitcache (.*)", done.stderr)
    assert command
    assert ready(*command[1].split()).exit_code == 0
    assert ready("verify", "c.zarr").exit_code == 0
    assert chunk.read_bytes() == whole


def test_verify_says_when_the_data_has_changed(ready, tmp_path):
    pixels, labels, names = tiny.arrays()
    np.savez(tmp_path / "data.npz", images=255 - pixels, labels=labels, classes=np.array(names))
    done = ready("verify", "c.zarr")
    assert done.exit_code == 1
    assert "has different samples" in done.stdout
    done = ready("verify", "c.zarr", "--check-rows", "0")
    assert done.exit_code == 0
    assert "pixels were not compared (--check-rows 0, " in done.stdout
    assert json.loads(ready("verify", "c.zarr", "--json").stdout)["ok"] is False


def test_methods_are_listed_and_explained(run):
    listed = json.loads(run("methods", "--json").stdout)
    assert [word for word, _, _ in listed["rld"]["parameters"]] == [
        "temperature",
        "alpha",
        "beta",
        "confidence_temperature",
    ]
    assert "2408.07703" in run("methods").stdout
    explained = run("methods", "rld").stdout
    assert "MCD = τ₂² KL( p̃ || q̃ )" in explained


HELP = {
    "dump",
    "fidelity",
    "slice",
    "merge",
    "export",
    "info",
    "stats",
    "verify",
    "train",
    "sweep",
    "compare",
    "methods",
    "demo",
}


@pytest.mark.parametrize("command", sorted(HELP))
def test_help_teaches_the_command_with_an_example_that_parses(run, command):
    shown = run(command, "--help")
    assert shown.exit_code == 0
    text = " ".join(shown.stdout.replace("│", " ").split())
    example = re.search(rf"Example: logitcache ({command}.*?)(?= ╭|$)", text)
    assert example
    parsed = run(command, "--help", *example[1].split()[1:])  # everything is read before help is given
    assert parsed.exit_code == 0
    assert len(re.findall(r" --[a-z-]+ ", text)) >= 1


def test_the_module_runs_like_the_command():
    done = subprocess.run([sys.executable, "-m", "logitcache", "--version"], capture_output=True, text=True, check=True)
    from importlib.metadata import version

    assert done.stdout == f"logitcache {version('logitcache')}\n"


def test_the_version_stands_in_one_place():
    from importlib.metadata import version

    project = tomllib.loads((tiny.HERE.parent / "pyproject.toml").read_text())
    assert version("logitcache") == project["project"]["version"]


@pytest.mark.slow
def test_the_demo_runs_and_so_do_the_commands_it_prints(run, tmp_path):
    """With the real data and the real teacher, as `logitcache demo` does it; and by hand as it prints, but for two of its students."""
    done = run("demo")
    assert done.exit_code == 0
    printed = done.stdout.partition("To run the same commands yourself:")[2].split("\n")
    by_hand = [line for _, line in steps("fashion.zarr", "runs")]
    for found, line in zip(filter(None, printed), by_hand, strict=True):
        assert found.endswith(f" {line}")
    for line in by_hand:
        if line.split()[0] in ("dump", "stats", "verify") or "--method kd" in line:
            assert run(*line.split()).exit_code == 0, line
    first = {row["method"]: row for row in json.loads(run("compare", "logitcache-demo/runs", "--json").stdout)["runs"]}
    (again,) = json.loads(run("compare", "runs", "--json").stdout)["runs"]
    assert first.keys() == {"ce", "kd", "rld"}
    assert again["test_accuracy"] == first["kd"]["test_accuracy"] > first["ce"]["test_accuracy"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the knob")
def test_memory_that_tensors_free_is_kept(tmp_path):
    """A large tensor is made again and again: its pages are faulted in once."""
    code = (
        "import resource, sys, torch\n"
        "from logitcache.runtime.memory import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': keep_freed_memory()\n"
        "torch.ones(2**24)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(8): torch.ones(2**24)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    (tmp_path / "script.py").write_text(code)
    faults = {word: int(warm.Command("python", ["script.py", word], tmp_path).end()[1]) for word in ("keep", "plain")}
    assert faults["plain"] > 2 * faults["keep"] + 50


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    """`logitcache methods | head`: nothing is said of it."""
    code = (
        "import os, sys\n"
        "read, write = os.pipe()\n"
        "os.close(read)\n"
        "os.dup2(write, 1)\n"
        "sys.argv = ['logitcache', 'methods']\n"
        "from logitcache.cli.start import main\n"
        "main()\n"
    )
    (tmp_path / "script.py").write_text(code)
    assert "error" not in warm.Command("python", ["script.py"], tmp_path).end()[1]
