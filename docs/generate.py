# ruff: noqa: E501  (lines of a table)
"""Write the pages that are made from the code: docs/methods.md and docs/cli.md. Run it after a change; a test compares.

python docs/generate.py
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from logitcache.cli.app import USAGE, app

from logitcache.methods import METHODS, Description, Expected, describe, expected_of, expected_tasks, spell

HERE = Path(__file__).parent
HEAD = """# Methods

Written by `docs/generate.py` from the table, the signatures and the docstrings in `logitcache/methods/`; `logitcache methods NAME` prints the same.

An objective is made of pieces, and any piece can be replaced:

    objective = ce_weight · CE(student, y) + ramp · kd_weight · Σ_T divergence( scale(student), scale(refine(teacher, y)), T )

| piece | option of `train` | choices |
|---|---|---|
| refine | `--refine` | `none`, `loca`, `swap`: edits of the teacher's logits by the label, per batch |
| scale | `--standardize`, `--no-standardize` | z-scores over classes (LSKD) |
| temperature | `--temperature` | a number; several with commas, which are summed; `adaptive` (ATKD; brings z-scores); `deviation` (NormKD) |
| divergence | `--method` | the methods below |
| parameters | `--set name=value` | those of the method and of its pieces; one that two pieces share bears the plug-in's name (`loca_alpha`) |
| settings of the papers | `--preset` | listed with each method; what is given beside a preset wins |

So `--method dkd --refine loca`, `--method dkd --temperature adaptive`, `--method rld --standardize`, `--method mlkd --refine swap`. What has no meaning is refused with the
reason. A method of your own: [adding-a-method.md](adding-a-method.md).

z and s are the teacher's and the student's logits, p and q their softmax, y the true class, B the batch, C the classes.
**needs** says whether a top-k row would do, at the price of an error that grows with the temperature, or every class must be kept. The classes that a top-k row leaves over share their
probability evenly (`--tail uniform`), or count as one class (`--tail bucket`, for {bucket}). From caches of text, where nothing else is said, `train` takes a method's preset `language`, or
temperature 1 where it has none, and `--tail bucket` ([text.md](text.md)).

"""


EXPECTED = """Test accuracy after the last epoch with the defaults of each method: mean and deviation over seeds, and the gap to `ce` and to `kd` in percentage points with its standard
error. **A gap in brackets is within the noise** (below twice its error): other seeds may turn it round, so it ranks nothing. With three seeds errors themselves are rough. Both tasks are
small and short; a method that needs 240 epochs is not judged by them. `logitcache sweep CACHE --method all` makes such a table of data of your own."""


def page() -> str:
    """Return the page of all methods."""
    found = [describe(name) for name in METHODS]
    lines = ["| method | what it does | paper | objective | needs |", "|---|---|---|---|---|"]
    lines += [
        f"| [`{one.name}`](#{one.name}) | {one.summary} | {one.paper} | {one.objective.partition(',')[0]} | {one.needs.partition(';')[0]} |"
        for one in found
    ]
    bucket = ", ".join(f"`{name}`" for name, method in METHODS.items() if method.takes_bucket)
    head = HEAD.replace("{bucket}", bucket)
    measured = _expected() if expected_tasks() else []
    return head + "\n".join([*lines, "", *measured, ""]) + "\n".join(_section(one) for one in found)


def _expected() -> list[str]:
    """Return what to expect of the methods: a row a method, for each task accuracy and gaps."""
    tasks = expected_tasks()
    heads = [f"{task.name} (%) | over ce | over kd" for task in tasks]
    lines = ["## What to expect", "", *EXPECTED.splitlines(), ""]
    lines += [f"* **{task.name}**: {task.title}. {task.about}" for task in tasks]
    lines += ["", f"| method | {' | '.join(heads)} |", "|---|" + "---|" * 3 * len(tasks)]
    for name in METHODS:
        found = {one.task.name: one for one in expected_of(name)}
        lines.append(f"| [`{name}`](#{name}) | {' | '.join(_cells(found.get(task.name)) for task in tasks)} |")
    return [*lines, ""]


def _cells(one: Expected | None) -> str:
    if one is None:
        return " | | "
    spread = "" if one.deviation is None else f" ± {one.deviation:.1f}"
    gaps = [one.over.get(base) for base in ("ce", "kd")]
    return " | ".join(
        [
            f"{one.accuracy:.1f}{spread}",
            *("" if gap is None else f"({gap})" if gap.is_noise else f"{gap}" for gap in gaps),
        ]
    )


def _section(one: Description) -> str:
    lines = [f"## {one.name}", "", one.text or one.summary, ""]
    facts = {"Paper": one.paper, "Checked against": one.source, "Objective": one.objective}
    facts |= {"Pieces": one.pieces, "Needs": one.needs}
    lines += [f"* {word}: {fact}" for word, fact in facts.items() if fact]
    lines += [f"* {word}: {' '.join(text.split())}" for word, text in one.notes.items()]
    lines += [f"* Measured on {task}: {text}" for task, text in one.expected.items()]
    lines += [
        f"* Measured on {task} with {changes}: {text}"
        for changes, found in one.variants.items()
        for task, text in found.items()
    ]
    lines += [f"* **{one.warning[0].upper()}{one.warning[1:]}.**"] if one.warning else []
    if one.parameters:
        lines += ["", "| parameter | default | |", "|---|---|---|"]
        lines += [f"| `{word}` | {default} | {text} |" for word, default, text in one.parameters]
    if one.presets:
        lines += ["", "| preset | settings |", "|---|---|"]
        lines += [
            f"| `{name}` | {', '.join(f'{word} {spell(value)}' for word, value in preset.items())} |"
            for name, preset in one.presets.items()
        ]
    return "\n".join([*lines, ""])


COMMANDS_HEAD = """# Commands

Written by `docs/generate.py` from the command line itself; `logitcache COMMAND --help` prints the same. Data goes to stdout, everything else to stderr. Exit code 0: done; 1: an error, in
one sentence; 2: the command line cannot be read; 130 or 143: stopped by SIGINT or SIGTERM, and the same command goes on. `LOGITCACHE_DEBUG=1 logitcache COMMAND ...`, or
`logitcache --traceback COMMAND ...`, shows where an error came from, `logitcache --version` the version.

"""
TYPES = {int: "N", float: "X", str: "TEXT", Path: "PATH"}  # of options that name no other word


def commands_page() -> str:
    """Return the page of all commands: what the functions behind them say, whatever Typer makes of it on a terminal."""
    lines = ["| command | what it does |", "|---|---|"]
    commands = {str(one.name): one.callback for one in app.registered_commands if one.callback}
    lines += [f"| [`{name}`](#{name}) | {_escaped(_paragraphs(function)[0])} |" for name, function in commands.items()]
    return COMMANDS_HEAD + "\n".join(lines) + "\n\n" + "\n".join(map(_command, commands, commands.values()))


def _paragraphs(function: Callable[..., None]) -> list[str]:
    return [" ".join(part.split()) for part in (inspect.getdoc(function) or "").split("\n\n")]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _command(name: str, function: Callable[..., None]) -> str:
    shown = inspect.signature(function).parameters.values()
    found = [(one, one.annotation.__metadata__[0]) for one in shown if hasattr(one.annotation, "__metadata__")]
    arguments = [(one, info) for one, info in found if type(info).__name__ == "ArgumentInfo"]
    options = [(one, info) for one, info in found if type(info).__name__ == "OptionInfo"]
    needed = [f"{_names(one, info)[0]} {_word(one, info)}" for one, info in options if _is_required(one)]
    usage = ["logitcache", name, *needed, USAGE.get(name, "[OPTIONS]") if len(needed) < len(options) else ""]
    usage += [_argument(one, info) for one, info in arguments]
    *said, example = _paragraphs(function)
    lines = [f"## {name}", "", *(line for part in said for line in (part, ""))]
    lines += ["```text", " ".join(filter(None, usage)), "```", "", "Example:", ""]
    lines += [f"    {example.removeprefix('Example: ')}", ""]
    if arguments:
        lines += ["| argument | |", "|---|---|"]
        lines += [f"| `{info.metavar}` | {_escaped(info.help)} |" for _, info in arguments] + [""]
    for panel in dict.fromkeys(info.rich_help_panel for _, info in options):
        lines += [f"| {panel or 'option'} | default | |", "|---|---|---|"]
        lines += [*(_option(one, info) for one, info in options if info.rich_help_panel == panel), ""]
    return "\n".join(lines)


def _option(one: inspect.Parameter, info: Any) -> str:
    names, word = ", ".join(f"`{name}`" for name in _names(one, info)), _word(one, info)
    return f"| {names}{f' `{_escaped(word)}`' if word else ''} | {_default(one, info)} | {_escaped(info.help)} |"


def _names(one: inspect.Parameter, info: Any) -> list[str]:
    given = [
        name
        for words in (info.default, *(info.param_decls or ()))
        if isinstance(words, str)
        for name in words.split("/")
    ]
    return given or [f"--{one.name.strip('_').replace('_', '-')}"]


def _word(one: inspect.Parameter, info: Any) -> str:
    """Return what stands for an option's value; nothing for a flag."""
    kind = one.annotation.__origin__
    if "bool" in str(kind):
        return ""
    return str(
        info.metavar or TYPES.get(kind) or next(word for known, word in TYPES.items() if known.__name__ in str(kind))
    )


def _argument(one: inspect.Parameter, info: Any) -> str:
    """Return an argument as a usage line has it."""
    word = info.metavar if _is_required(one) else f"[{info.metavar}]"
    return f"{word}..." if "list" in str(one.annotation) else word


def _is_required(one: inspect.Parameter) -> bool:
    return one.default is inspect.Parameter.empty or one.default is ...


def _default(one: inspect.Parameter, info: Any) -> str:
    if _is_required(one):
        return "required"
    if isinstance(info.show_default, str):
        return info.show_default
    return "" if one.default is None or one.default is False else f"`{one.default}`"


if __name__ == "__main__":
    (HERE / "methods.md").write_text(page())
    (HERE / "cli.md").write_text(commands_page())
