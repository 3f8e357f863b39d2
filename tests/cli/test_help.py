"""Help and shell completion: what a user sees before anything runs."""

import re

import pytest
import typer
from logitcache.cli import completion
from logitcache.cli.app import app

from logitcache.errors import unknown_name


def commands():
    return [str(one.name) for one in app.registered_commands]


@pytest.fixture
def shown(run, monkeypatch):
    """A function that returns the help of a command, so wide that no line is folded."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)

    def show(command):
        done = run(command, "--help")
        assert done.exit_code == 0
        return done.stdout

    return show


def test_options_of_large_commands_are_in_titled_panels(shown):
    titles = {name: re.findall(r"^╭─ (.*?) ─", shown(name), re.MULTILINE) for name in ("dump", "train")}
    assert titles["dump"][1:] == [
        "Teacher",
        "Data",
        "Output",
        "Text",
        "Encoding",
        "Preprocessing of images",
        "Run",
        "Teacher behind a server",
    ]
    assert titles["train"][2:] == [
        "Student and teacher",
        "Output",
        "Method",
        "Data",
        "Text",
        "Preprocessing of images",
        "Optimization",
        "Run",
    ]


@pytest.mark.parametrize("command", commands())
def test_flags_are_shown_as_flags(shown, command):
    assert "bool" not in shown(command)


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("dump", "--teacher NAME --data SPEC --out PATH [OPTIONS]"),
        ("train", "--student NAME [OPTIONS] [CACHE]"),
        ("export", "--out FILE [OPTIONS] [CACHE]"),
        ("stats", "[OPTIONS] [CACHE] [OTHER]"),
    ],
)
def test_the_usage_line_names_what_is_required(shown, command, usage):
    assert f"Usage: logitcache {command} {usage} " in shown(command)


def options():
    """Every option: name to command to the word for its value."""
    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        for one in command.params:
            for flag in one.opts:
                if flag.startswith("--"):
                    found.setdefault(flag, {})[name] = one.metavar or ""
    return found


def test_an_option_means_the_same_in_every_command():
    """`--teacher` names a network; a teacher in a cache is chosen with `--cached-teacher`. Values of one name have one form."""
    found = options()
    assert found["--teacher"] == {"dump": "NAME", "verify": "NAME"}
    verbs = ("info", "stats", "fidelity", "slice", "export", "train")
    assert found["--cached-teacher"] == dict.fromkeys(verbs, "SLUG")
    several = {flag: set(words.values()) for flag, words in found.items() if len(set(words.values())) > 1}
    assert several == {
        "--augment": {"RECIPE[,RECIPE]", "RECIPE"},  # a dump may pair two
        "--batch-size": {"SAMPLES|auto", "SAMPLES"},
        "--out": {"PATH", "FILE", "FOLDER", "RUN"},
    }
    assert not [flag for flag in found if f"{flag}-to" in found]


@pytest.mark.parametrize(
    ("line", "new"),
    [
        ("train --report-to csv", "--log-to"),
        ("verify --rows=0", "--check-rows"),
        ("export --views 0,1", "--view-ids"),
        ("stats --teacher t", "--cached-teacher"),
    ],
)
def test_an_option_that_had_another_name_says_so(run, line, new):
    done = run(*line.split())
    assert done.exit_code == 2
    assert f"renamed to {new}" in done.stderr


def test_the_shell_completes_methods_and_networks():
    assert completion.methods("rl") == ["rld"]
    assert completion.networks("resnet8") == ["resnet8", "resnet8x4"]
    assert {"torchvision:resnet18", "torchvision:resnet101"} <= set(completion.networks("torchvision:resnet1"))
    assert completion.networks("nobody:") == []


def test_the_shell_completes_caches_and_the_folders_above_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("a.zarr", "all/b.zarr", "other", ".hidden.zarr"):
        (tmp_path / path).mkdir(parents=True)
    for path in ("a.zarr", "all/b.zarr", ".hidden.zarr"):
        (tmp_path / path / "zarr.json").touch()
    (tmp_path / "afile").touch()
    assert completion.caches("") == ["a.zarr", "all/", "other/"]
    assert completion.caches("a") == ["a.zarr", "all/"]
    assert completion.caches("all/") == ["all/b.zarr"]
    assert completion.caches("nowhere/") == []


def test_a_misspelt_name_among_many_is_answered_with_the_closest_three():
    many = [f"resnet{size}{letter}" for size in range(10, 60) for letter in ("", "a", "b", "c")]
    said = str(unknown_name("timm network", "resnt50", many, "`timm.list_models()`"))
    assert said == (
        "unknown timm network 'resnt50'; did you mean 'resnet50', 'resnet50c' or 'resnet50b'? "
        "`timm.list_models()` lists all 200."
    )
    assert str(unknown_name("timm network", "xyz", many, "`timm.list_models()`")) == (
        "unknown timm network 'xyz'. `timm.list_models()` lists all 200."
    )
    assert len(str(unknown_name("class", "xyz", many))) < 500
