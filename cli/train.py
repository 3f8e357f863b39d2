"""`logitcache train`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from logitcache.runtime.processes import started_by_torchrun, this_one_leads

from .options import (
    CacheArgument,
    ConfigOption,
    TeacherOption,
    WorkersOption,
    newest_unless,
    numbers,
    parameters,
    show_progress,
    size,
    spelled,
    stopping,
)

__all__ = ["train"]


def train(
    ctx: typer.Context,
    student: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="The student: a CIFAR network (resnet8, ...), torchvision:NAME, or package.module:factory.",
        ),
    ] = None,
    cache: CacheArgument = None,
    teacher: TeacherOption = None,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="How to learn from the teacher; `logitcache methods` lists them.")
    ] = "kd",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", show_default=False, help="A parameter of the method; repeatable."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Another setting of its paper; `logitcache methods NAME` lists them.",
        ),
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(
            metavar="loca|swap|none", show_default="the method's", help="Edit of the teacher's logits by the label."
        ),
    ] = None,
    standardize: Annotated[
        bool | None,
        typer.Option(
            "--standardize/--no-standardize", show_default="the method's", help="Z-score both networks' logits first."
        ),
    ] = None,
    temperature: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            show_default="the method's",
            help="A number, several with commas between them, adaptive or deviation.",
        ),
    ] = None,
    tail: Annotated[
        str | None,
        typer.Option(
            metavar="uniform|bucket",
            show_default="uniform",
            help="Of a top-k cache: complete what was not kept evenly, or count it as one class.",
        ),
    ] = None,
    pair_views: Annotated[
        bool | None,
        typer.Option(
            "--pair-views/--no-pair-views",
            show_default="as the method's paper, where the cache has pairs",
            help="Sum the objective over the views of a pair.",
        ),
    ] = None,
    ce_weight: Annotated[
        float | None, typer.Option(metavar="W", show_default="the method's", help="Weight of cross-entropy.")
    ] = None,
    kd_weight: Annotated[
        float | None, typer.Option(metavar="W", show_default="the method's", help="Weight of the distillation term.")
    ] = None,
    kd_warmup: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            show_default="the method's",
            help="Share of the epochs over which that weight grows from 0.",
        ),
    ] = None,
    student_weights: Annotated[
        str | None, typer.Option(metavar="FILE", show_default=False, help="Weights the student begins with.")
    ] = None,
    live_teacher: Annotated[
        bool,
        typer.Option(
            "--live-teacher", help="Run the teacher in every step instead of reading what it said: the baseline."
        ),
    ] = False,
    teacher_weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", show_default="as dumped", help="The live teacher's weights, where they have moved."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            show_default="as dumped",
            help="The data, where it has moved; or the data of --method ce without a cache.",
        ),
    ] = None,
    test_data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC", show_default="the data's test split", help="Images to measure accuracy on after each epoch."
        ),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            show_default=False,
            help="Only without a cache: how images are shown, as at a dump.",
        ),
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", show_default="as dumped", help="Mean of the student's input.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", show_default="as dumped", help="Deviation, likewise.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", min=1, show_default="as dumped", help="Height and width of the student's input."
        ),
    ] = None,
    crop_pct: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", show_default="as dumped", help="Share of the shorter side kept when an image is resized."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data set.")] = 240,
    batch_size: Annotated[int, typer.Option(metavar="IMAGES", min=1, help="Images of a step.")] = 64,
    grad_accum_steps: Annotated[
        int, typer.Option(metavar="N", min=1, help="Parts into which a batch that does not fit at once is divided.")
    ] = 1,
    opt: Annotated[
        str, typer.Option(metavar="NAME", help="Optimizer: sgd, adamw, adam, adamax, nadam, radam or rmsprop.")
    ] = "sgd",
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 0.05,
    momentum: Annotated[float, typer.Option(help="Of SGD and RMSprop.")] = 0.9,
    nesterov: Annotated[bool, typer.Option("--nesterov", help="SGD looks ahead.")] = False,
    weight_decay: Annotated[float, typer.Option(help="Of every parameter.")] = 5e-4,
    norm_weight_decay: Annotated[
        float | None, typer.Option(show_default="the same", help="Of biases and normalisation.")
    ] = None,
    clip_grad: Annotated[
        float | None, typer.Option(metavar="NORM", show_default="any", help="Largest norm of a gradient.")
    ] = None,
    label_smoothing: Annotated[
        float, typer.Option(metavar="SHARE", help="Of a label, spread over all classes by cross-entropy.")
    ] = 0.0,
    model_ema_decay: Annotated[
        float | None,
        typer.Option(
            metavar="DECAY", show_default="no mean", help="Keep a running mean of the weights too, evaluated and saved."
        ),
    ] = None,
    sched: Annotated[str, typer.Option(metavar="step|cosine|onecycle", help="How the learning rate changes.")] = "step",
    warmup_epochs: Annotated[int, typer.Option(min=0, help="Epochs over which it first grows.")] = 0,
    decay_milestones: Annotated[
        str | None,
        typer.Option(
            metavar="E,E,...",
            show_default="62.5, 75 and 87.5 % of the epochs",
            help="Epochs after which --sched step lets it fall.",
        ),
    ] = None,
    decay_rate: Annotated[float, typer.Option(help="Factor of such a fall.")] = 0.1,
    amp: Annotated[bool, typer.Option("--amp", help="Run the student under autocast.")] = False,
    amp_dtype: Annotated[
        str, typer.Option(metavar="bfloat16|float16", help="Its type; float16 with a scaled loss.")
    ] = "bfloat16",
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Lay pixels and weights out as GPUs' convolutions like.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Have torch.compile translate student and loss first.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the student's weights and the order of samples.")] = 0,
    device: Annotated[str, typer.Option(metavar="NAME", help="Where to train: auto, cpu, cuda, ...")] = "auto",
    workers: WorkersOption = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            show_default="whole views",
            help="What decoded rows may take, 8GB say; larger views stream in windows, shuffled inside a window only.",
        ),
    ] = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Metrics beside metrics.jsonl: csv, tensorboard, wandb; repeatable.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out; its settings are those it was begun with.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", show_default="a new folder in runs/", help="Where weights, metrics and settings go."
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Train a student from a cache; what was decided at the dump is not asked again.

    The defaults are the papers' CIFAR-100 recipe.

    Example: logitcache train fashion.zarr --method rld --student resnet8 --epochs 6 --sched cosine
    """
    given: dict[str, Any] = {
        name: value for name, value in ctx.params.items() if name not in ("config", "resume", "out", "set_")
    }
    given["parameters"], given["temperature"] = (
        parameters(set_ or []),
        None if temperature is None else spelled(temperature),
    )
    given["mean"], given["std"] = numbers(mean, float, "--mean"), numbers(std, float, "--std")
    given["decay_milestones"] = numbers(decay_milestones, int, "--decay-milestones")
    given["memory_budget"] = None if memory_budget is None else size(memory_budget, "--memory-budget")
    if resume:
        if out is None:
            raise typer.BadParameter("which run? Name its folder with --out RUN.", param_hint="--resume")
        from logitcache.runs.directory import read_run

        recorded = read_run(out)["settings"]
        given |= {name: recorded[name] for name in given if name in recorded and _left_alone(ctx, name)}
    if given["student"] is None:
        raise typer.BadParameter("which network? Name it with --student NAME.", param_hint="--student")
    if given["cache"] is None and not (method == "ce" and given["data"]):
        given["cache"] = newest_unless(None)
    if started_by_torchrun():  # its C++ warns, in each process, of what replicas.py does on purpose
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from logitcache.train.train import train_student

    leads = this_one_leads()
    with show_progress(quiet=not leads) as display, stopping("step") as asked:
        result = train_student(
            **given,
            resume=resume,
            out=out,
            should_stop=asked,
            on_progress=display,
            on_epoch=lambda metrics: display.say(_epoch_line(metrics)),
        )
    if not leads:
        return
    line = [f"{result.out}: {given['method']}, {given['student']}"]
    if "test_accuracy" in result.results:
        line.append(f"test accuracy {result.results['test_accuracy']:.2%}")
    if "teacher_agreement" in result.results:
        line.append(f"agrees with the teacher on {result.results['teacher_agreement']:.1%}")
    typer.echo(", ".join(line))


def _left_alone(ctx: typer.Context, name: str) -> bool:
    """Whether the command line and --config say nothing about a parameter."""
    source = ctx.get_parameter_source("set_" if name == "parameters" else name)
    return source is not None and source.name == "DEFAULT"


def _epoch_line(metrics: dict[str, Any]) -> str:
    windows = f"  in {metrics['windows']} windows" if "windows" in metrics else ""
    test = f"  test {metrics['test_accuracy']:.2%}" if "test_accuracy" in metrics else ""
    refined = f"  refined {metrics['refined_rows']:.2%}" if "refined_rows" in metrics else ""
    return (
        f"epoch {metrics['epoch']:>3}  lr {metrics['lr']:.3g}  loss {metrics['loss']:.4f}{refined}  "
        f"train {metrics['train_accuracy']:.2%}{test}  {metrics['seconds']:.1f} s{windows}"
    )
