"""What the documents say is so."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import warm
from imports import test_image_imports
from logitcache.cli.app import app
from servers import ModelServer
from typer.core import TyperCommand

import logitcache
from logitcache import METHODS
from logitcache.data import NAMED_DATA
from logitcache.data.images.views import CHANGES, CROPS, MIXES, PRESETS
from logitcache.models import CIFAR_NETWORKS, load_network
from logitcache.models.language.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[1]
METHODS_PAGE = (ROOT / "docs/methods.md").read_text()
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.strip() for line in README.splitlines() if re.match(r"    logitcache \w", line) and "  the " not in line
]


PAGES = {page.name: page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))}
RECIPES = (ROOT / "recipes/README.md").read_text()


def typed(page: str) -> list[tuple[str, str]]:
    """The lines of a page that are typed, and the error that each is said to end with, or nothing."""
    found = re.findall(r"^    (?:torchrun .* -m )?logitcache (.*)\n(?:    error: (.*)\n)?", page, re.MULTILINE)
    return [(line, error) for line, error in found if "  the " not in line]


def inside(page: str) -> list[str]:
    """The commands named inside sentences, with options."""
    return re.findall(r"`logitcache ([a-z]+ -[^`]*)`", page)


EVERY_LINE = {line for page in (*PAGES.values(), README, RECIPES) for line, _ in typed(page)}
EVERY_LINE |= {line for page in (*PAGES.values(), README, RECIPES) for line in inside(page)}


@pytest.mark.parametrize("line", sorted(EVERY_LINE))
def test_the_commands_of_every_page_parse(run, monkeypatch, line):
    monkeypatch.setattr(TyperCommand, "format_help", lambda *_: None)  # drawing it takes longer than reading the line
    words = shlex.split(line)
    done = run(words[0], "--help", *words[1:])  # everything is read before help is given
    assert done.exit_code == 0, done.output


def test_a_command_that_does_not_exist_does_not_parse(run):
    assert run("stats", "--help", "c.zarr", "--no-such-option").exit_code == 2
    assert run("statistics", "--help").exit_code == 2


def test_the_readme_has_its_commands():
    assert [line.split()[1] for line in COMMANDS] == ["dump", "stats", "train", "compare"]


def test_the_readme_stays_short():
    assert len(README.split()) <= 750


@pytest.mark.parametrize("name", [*METHODS, *NAMED_DATA, *CROPS, *CHANGES, *MIXES, *PRESETS, *CIFAR_NETWORKS])
def test_every_name_is_on_the_page_of_names(name):
    assert f"`{name}`" in PAGES["names.md"]


def test_the_networks_on_the_page_of_names_exist():
    row = next(line for line in PAGES["names.md"].splitlines() if line.startswith("| `resnet8`"))
    assert set(re.findall(r"`([a-z0-9-]+)`", row)) == set(CIFAR_NETWORKS)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for text in (page.read_text(), README):
        base = page.parent if text != README else ROOT
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (base / target).exists(), target


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page: those that it names, and those of its headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    named = re.findall(r'<a id="([^"]+)">', text)
    return {*named, *(re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads)}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_anchors_of_links_exist(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", page.read_text()):
        assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"


def test_the_page_of_methods_is_what_the_code_says():
    generate = runpy.run_path(str(ROOT / "docs/generate.py"))
    assert generate["page"]() == METHODS_PAGE, "run python docs/generate.py"


def test_the_page_of_commands_is_what_the_code_says(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    generate = runpy.run_path(str(ROOT / "docs/generate.py"))
    assert generate["commands_page"]() == PAGES["cli.md"], "run python docs/generate.py"


def test_the_page_of_commands_has_every_option_that_is_understood():
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        section = PAGES["cli.md"].partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        listed = set(re.findall(r"(?:^\| |, )`(--[a-z-]+)`", section, re.MULTILINE))
        understood = {word for one in command.params for word in [*one.opts, *one.secondary_opts] if word[:2] == "--"}
        assert listed == understood - {"--help"}, name


def test_every_page_is_in_the_index_and_in_the_site():
    site = (ROOT / "mkdocs.yml").read_text()
    for name in set(PAGES) - {"README.md"}:
        assert f"]({name})" in PAGES["README.md"], name
        assert f": docs/{name}\n" in site, name


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param("plain or not compile", id="few compiled"),
        pytest.param("", id="all", marks=pytest.mark.slow),
    ],
)
def test_adding_a_method_works_as_its_page_says(run, tmp_path, monkeypatch, chosen):
    """The page's code, its commands, and the contract tests on it; torch.compile takes most of their time."""
    text = (ROOT / "docs/adding-a-method.md").read_text()
    code = "\n\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert "SURE = p_max^power" in run("methods", "mine:sure").stdout
    loss = logitcache.get_loss("mine:SURE", preset="hard")
    student, teacher = torch.randn(2, 4, 5)
    assert loss(student, teacher, torch.zeros(4, dtype=torch.int64)).shape == (4,)
    contract = ["-q", "-p", "no:cacheprovider", ROOT / "tests/methods/test_contract.py", "--method", "mine:sure"]
    contract += ["-k", chosen] if chosen else []
    code, said = warm.Command("pytest", contract, tmp_path).end(seconds=300)
    assert code == 0, said[-2000:]
    assert " passed" in said


def type_page(run, name: str) -> None:
    """Type line after line of a page in one folder; those with an ellipsis are not meant to be."""
    lines = [(line, error) for line, error in typed(PAGES[name]) if "..." not in line]
    assert len(lines) > 2
    for line, error in lines:
        done = run(*shlex.split(line))
        assert done.exit_code == bool(error), f"{line}\n{done.output}"
        assert re.search(re.escape(error).replace(re.escape("..."), ".*"), done.output), f"{line}\n{done.output}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faq.md", "stats.md", "views.md"])
def test_the_commands_of_a_page_run(run, name):
    """And end as it says; then its Python."""
    type_page(run, name)
    for code in re.findall(r"```python\n(.*?)```", PAGES[name], re.DOTALL):
        exec(compile(code, name, "exec"), {})


@pytest.mark.slow
def test_the_commands_on_text_run(run, tmp_path):
    """On files with what the page says that a line of them holds."""
    pytest.importorskip("transformers")
    lines = re.findall(r"`({\"(?:text|prompt|messages)\".*?})`", PAGES["text.md"])
    text, answer, chat = (json.loads(line) for line in lines)
    (tmp_path / "tales").mkdir()
    (tmp_path / "tales/cat.txt").write_text(f"{text['text']}\n\n{answer['prompt']}{answer['completion']}\n")
    (tmp_path / "answers.jsonl").write_text(f"{json.dumps(text)}\n{json.dumps(answer)}\n")
    (tmp_path / "chats.jsonl").write_text(json.dumps(chat))
    tokens = np.arange(400, dtype=np.uint16)
    np.savez(tmp_path / "tales.npz", tokens=tokens, documents=np.array([0, 300, 400]), vocabulary=512)
    type_page(run, "text.md")


def test_the_commands_on_servers_run(run, tmp_path):
    """Against a server of the tests: from a plan to a student, and what was kept of its answers."""
    pytest.importorskip("httpx2")
    load_tokenizer("hf:stories-mini").save_pretrained(tmp_path / "llama")
    stories = ["Once upon a time there was a cat. It was a good cat.", "Lily had a red ball. She liked to play."]
    lines = [{"prompt": story[:20], "completion": story[20:]} for story in stories]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    with ModelServer("vllm") as server:
        ids = [server.tokenizer(one)["input_ids"] for one in stories]
        answers = [server.vllm(one, 65) | {"prompt_token_ids": one} for one in ids]
        (tmp_path / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answers))
        folder = test_image_imports.images(tmp_path / "train")
        test_image_imports.fkd(tmp_path / "FKD_soft_label", folder, crops=4)
        test_image_imports.tinyvit(tmp_path / "teacher_logits", folder)
        typed_lines = [line for line, _ in typed(PAGES["servers.md"])]
        assert len(typed_lines) == 10
        for line in typed_lines:
            done = run(*shlex.split(line.replace("localhost:8000", f"127.0.0.1:{server.port}")))
            assert done.exit_code == 0, f"{line}\n{done.output}"


@pytest.mark.slow
def test_the_example_on_text_learns(tmp_path):
    """From rows of the largest, as a stranger runs it."""
    pytest.importorskip("transformers")
    file = ROOT / "docs/examples/text_loop.py"
    assert len(file.read_text().splitlines()) < 40
    logitcache.dump_logits("hf:stories-mini", "stories-mini", tmp_path / "stories.zarr", samples=(0, 60), top_k=16)
    line = [sys.executable, str(file), "stories.zarr", "3"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [float(share) for share in re.findall(r"epoch \d: ([0-9.]+)%", done.stdout)]
    assert len(found) == 3
    assert found[-1] > 10 > found[0]


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    path = tmp_path_factory.mktemp("stories") / "stories.zarr"
    logitcache.dump_logits("hf:stories-mini", "stories-mini", path, samples=(0, 12), top_k=16, sequence_length=128)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "needs"),
    [("hf_text", "accelerate"), ("lightning_text", "lightning"), ("accelerate_text", "accelerate")],
)
def test_the_examples_of_frameworks_on_text_learn(stories, tmp_path, example, needs):
    pytest.importorskip("transformers")
    pytest.importorskip(needs)
    file = ROOT / f"docs/examples/{example}.py"
    assert len(file.read_text().splitlines()) < 40
    line = [sys.executable, str(file), str(stories), "4"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [float(one) for one in re.findall(r"(?<![\w.])\d+\.\d+", done.stdout)]
    assert 0 < losses[-1] < 4.5, done.stdout[-500:]


@pytest.mark.slow
def test_the_example_of_trl_learns(tmp_path):
    """On prompts and completions, of which only the latter count."""
    pytest.importorskip("trl")
    pytest.importorskip("datasets")
    file = ROOT / "docs/examples/trl_sft.py"
    assert len(file.read_text().splitlines()) < 40
    words = ["cat", "dog", "ball", "sun", "hat", "car"]
    lines = [
        {"prompt": f"Lily had a {one}.", "completion": f" She liked the {one}. It was a good {one}."} for one in words
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    logitcache.dump_logits(
        "hf:stories-mini", f"jsonl:{tmp_path}/answers.jsonl", tmp_path / "a.zarr", rows="all", top_k=16
    )
    line = [sys.executable, str(file), "a.zarr", "6"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = json.loads(re.findall(r"^\[[0-9., ]+\]$", done.stdout, re.MULTILINE)[-1])
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.slow
def test_the_commands_on_caches_run(run, environment, amazon):
    """What they print comes from the caches they made."""
    amazon.create_bucket(Bucket="my-bucket")
    type_page(run, "caches.md")
    assert "samples 0 to 999 of 10,000" in run("stats", "two-views.zarr").stdout
    assert (
        "800 samples x 1 view"
        in run("slice", "two-views.zarr", *["--samples", "0:800", "--views", "1", "--out", "x.zarr"]).stdout
    )


def test_the_loop_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logitcache.dump_logits(
        "resnet20", "fashion-mnist-mini", "fashion.zarr", teacher_weights="demo", samples=(0, 300), threads=1
    )
    names = {"student": load_network("resnet8", 10).module}
    exec(compile(re.search(r"```python\n(.*?)```", README, re.DOTALL)[1], "README.md", "exec"), names)
    names["loss"].backward()
    assert all(one.grad is not None for one in names["student"].parameters())


@pytest.mark.slow
def test_the_python_of_the_page_on_runs_runs(run, tmp_path, capsys):
    block = re.search(r"```python\n(.*?)```", PAGES["runs.md"], re.DOTALL)
    exec(compile(block[1], "runs.md", "exec"), {})
    accuracy, agreement = (float(x) for x in capsys.readouterr().out.split())
    assert accuracy > 0.75
    assert agreement > 0.75


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "needs"),
    [
        ("plain_loop", "torch"),
        ("hf_trainer", "accelerate"),
        ("lightning_module", "lightning"),
        ("timm_recipe", "timm"),
    ],
)
def test_the_examples_learn(tmp_path, example, needs):
    """Two epochs, and an end: they are run as a stranger runs them, one line each."""
    pytest.importorskip(needs)
    file = ROOT / f"docs/examples/{example}.py"
    assert len(file.read_text().splitlines()) < 40
    cache = tmp_path / "fashion.zarr"
    logitcache.dump_logits(
        teacher="resnet20", teacher_weights="demo", data="fashion-mnist-mini", augment="cifar", views=2, out=cache, threads=2
    )  # fmt: skip
    line = [sys.executable, str(file), str(cache), "2"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.findall(r"(?:epoch 2: |train_accuracy': |train_loss': '?)([0-9.]+)", done.stdout)
    assert found, done.stdout[-500:]
    assert float(found[-1]) > 0.5
