"""`logitcache generate`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from logitcache.generate.settings import GenerateRequest, GenerateSettings
from logitcache.runtime.wording import counted

from .options import ConfigOption, read_options, show_progress, with_options

if TYPE_CHECKING:
    from logitcache.generate.generate import Generated

__all__ = ["generate"]

_SHOWN = 3  # completions to print if no file is written


@with_options(GenerateRequest, GenerateSettings)
def generate(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="Run folder (for its student), transformers model folder, hf:PATH or hf:FILE.gguf.",
        ),
    ],
    config: ConfigOption = None,
    **options: Any,
) -> None:
    """Complete prompts with a trained student or a teacher, by greedy decoding or by sampling at a temperature.

    Completions written as tokens (.npz) can be dumped: training on a teacher's logits for the student's own text is on-policy
    distillation, offline.

    Example: logitcache generate runs/kd --data jsonl:prompts.jsonl --temperature 1 --out completions.jsonl
    """
    given = read_options(ctx, GenerateRequest, GenerateSettings)
    from logitcache.generate.generate import generate_completions

    with show_progress() as display:
        found = generate_completions(model, **given, on_progress=display)
    for one in found.completions[:_SHOWN] if found.out is None else []:
        typer.echo(f"prompt {one.prompt.number}: {one.text}")
    typer.echo(_summary(found))


def _summary(found: "Generated") -> str:
    count, ended = len(found.completions), sum(one.ended for one in found.completions)
    parts = [
        f"{counted(count, 'completion')}, {found.tokens / count:.1f} tokens on average, {ended:,} stopped at an end token",
        f"{found.tokens / found.seconds:,.0f} tokens/s",
    ]
    if found.left_out:
        parts.append(f"{counted(found.left_out, 'overlong prompt')} skipped")
    if found.rouge_l is not None:
        compared = sum(one.rouge_l is not None for one in found.completions)
        parts.append(f"ROUGE-L {found.rouge_l:.2%} over {counted(compared, 'reference')}")
    return f"{found.out}: {', '.join(parts)}" if found.out else ", ".join(parts)
