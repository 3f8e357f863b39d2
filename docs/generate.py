# ruff: noqa: E501  (lines of a table)
"""Write the pages that are made from the code: docs/methods.md. Run it after a change; a test compares.

python docs/generate.py
"""

from pathlib import Path

from logitcache.methods import METHODS, Description, describe, spell

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
**needs** says whether a top-k row would do, at the price of an error that grows with the temperature, or every class must be kept.

"""


def page() -> str:
    """Return the page of all methods."""
    found = [describe(name) for name in METHODS]
    lines = ["| method | what it does | paper | objective | needs |", "|---|---|---|---|---|"]
    lines += [
        f"| [`{one.name}`](#{one.name}) | {one.summary} | {one.paper} | {one.objective.partition(',')[0]} | {one.needs.partition(';')[0]} |"
        for one in found
    ]
    return HEAD + "\n".join(lines) + "\n\n" + "\n".join(_section(one) for one in found)


def _section(one: Description) -> str:
    lines = [f"## {one.name}", "", one.text or one.summary, ""]
    facts = {"Paper": one.paper, "Checked against": one.source, "Objective": one.objective}
    facts |= {"Pieces": one.pieces, "Needs": one.needs}
    lines += [f"* {word}: {fact}" for word, fact in facts.items() if fact]
    lines += [f"* {word}: {' '.join(text.split())}" for word, text in one.notes.items()]
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


if __name__ == "__main__":
    (HERE / "methods.md").write_text(page())
