"""`logitcache dump`."""

from typing import Annotated, Any

import typer

from logitcache.errors import InputError
from logitcache.runtime.processes import this_one_leads
from logitcache.runtime.wording import bytes_text

from .options import ConfigOption, WorkersOption, numbers, rows_or_auto, show_progress, span, stopping
from .render import print_pairs

__all__ = ["dump"]


def dump(
    ctx: typer.Context,
    teacher: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="The teacher: a CIFAR network (resnet56, wrn-40-2, ...), torchvision:NAME, timm:NAME, or package.module:factory. "
            "Given again: several, asked in one pass.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="SPEC",
            help="The data: fashion-mnist-mini, cifar10, cifar100, fashion-mnist (each also :test), imagefolder:PATH, arrays:FILE.npz, or "
            "package.module:factory.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Where the cache goes: a folder or s3://BUCKET/PATH. A dump that was stopped is continued there.",
        ),
    ],
    teacher_weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="The teacher's weights: safetensors, a torch checkpoint, the name of torchvision weights, or `demo` for the "
            "teacher that ships with logitcache. For each of several teachers one, in their order.",
        ),
    ] = None,
    teacher_classes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            show_default="those of the data; with --class-map 1,000",
            help="How many classes the teacher answers for.",
        ),
    ] = None,
    class_map: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default="the same classes",
            help="JSON: name of each class of the data to the teacher's class number; only these logits are stored.",
        ),
    ] = None,
    average: Annotated[
        bool, typer.Option("--average", help="Store the mean of several teachers' logits, instead of each one's.")
    ] = False,
    test_time_views: Annotated[
        str,
        typer.Option(
            metavar="none|flip",
            help="With flip an answer is the mean of the logits for a rendition and for its mirror image.",
        ),
    ] = "none",
    augment: Annotated[
        str,
        typer.Option(
            metavar="RECIPE[,RECIPE]",
            help="How views are made: none, cifar, cifar-strong, imagenet, imagenet-strong, or steps like pad-crop-flip+randaugment+cutmix "
            "(docs/views.md); two with a comma make pairs.",
        ),
    ] = "none",
    views: Annotated[
        int,
        typer.Option(
            metavar="V",
            min=1,
            help="Renditions of the whole data set by each recipe; epoch e trains on view e mod V. More later extend the cache.",
        ),
    ] = 1,
    encoding: Annotated[
        str | None,
        typer.Option(
            metavar="full|topk",
            show_default="full up to 1,000 classes",
            help="Keep every class, or the largest with statistics of the rest.",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            metavar="K", min=1, show_default="64", help="How many of the largest logits --encoding topk keeps."
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(metavar="f32|f16|u8", help="f32 loses nothing; f16 takes half the space; u8 a quarter."),
    ] = "f16",
    batch_size: Annotated[
        Any,
        typer.Option(
            metavar="ROWS|auto",
            parser=rows_or_auto,
            help="Rows of every forward pass; auto: as many as fit on a GPU, 256 on a CPU.",
        ),
    ] = 256,
    amp: Annotated[
        bool, typer.Option("--amp", help="The teacher computes in bfloat16 where torch's autocast allows it.")
    ] = False,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Lay pixels and weights out as GPUs' convolutions like.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Have torch.compile translate the teacher first.")
    ] = False,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Where the teacher runs: auto, cpu, cuda, cuda:1, ...")
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Key of the augmentation.")] = 0,
    samples: Annotated[
        str | None,
        typer.Option(
            metavar="A:B",
            show_default="all",
            help="Only these of the data, from A to one before B; logitcache merge joins such caches.",
        ),
    ] = None,
    workers: WorkersOption = None,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            show_default="of the weights or data",
            help="Mean of the teacher's input, for pixels in [0, 1].",
        ),
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", show_default="of the weights or data", help="Deviation, likewise.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            min=1,
            show_default="of the weights or data",
            help="Height and width of the teacher's input.",
        ),
    ] = None,
    crop_pct: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            show_default="of the weights or data",
            help="Share of the shorter side kept when an image is resized.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            show_default="torch's",
            help="CPU threads of a forward pass; part of the cache's identity.",
        ),
    ] = None,
    allow_mixed: Annotated[
        bool,
        typer.Option(
            "--allow-mixed", help="Continue a cache that was begun on another device or with other library versions."
        ),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Ask the teacher for a few batches, measure the disk, say what it will take; dump nothing."
        ),
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Run a teacher once over every view of a data set and store its logits.

    Stopped or killed, the same command goes on where it was and leaves the same bytes.

    Example: logitcache dump --teacher resnet20 --teacher-weights demo --data fashion-mnist-mini --augment
    pad-crop-flip --views 4 --out fashion.zarr
    """
    given: dict[str, Any] = {name: value for name, value in ctx.params.items() if name not in ("config", "plan")}
    given["mean"], given["std"] = numbers(mean, float, "--mean"), numbers(std, float, "--std")
    given["samples"] = span(samples, "--samples")
    for name in ("teacher", "teacher_weights"):
        given[name] = given[name][0] if given[name] and len(given[name]) == 1 else given[name] or None
    if plan:
        _show_plan(given)
        return
    from logitcache.dump.dump import dump_logits

    leads = this_one_leads()
    with show_progress(quiet=not leads) as display, stopping() as asked:
        cache = dump_logits(**given, should_stop=asked, on_progress=display)
        if not leads:
            return
        manifest = cache.manifest
        if manifest.encoding["kind"] == "topk":
            from logitcache.caches.fidelity import advice

            for slug in cache.teachers:
                of_whom = f"of {slug}, " if len(cache.teachers) > 1 else ""
                for sentence in advice(cache, teacher=slug):
                    display.say(f"note: {of_whom}{sentence}")
    shape = f"{manifest.samples:,} samples x {len(manifest.views)} views, {len(manifest.classes)} classes"
    several = f", {len(cache.teachers)} teachers ({', '.join(cache.teachers)})" if len(cache.teachers) > 1 else ""
    typer.echo(f"{out}: {shape}{several}, complete")


def _show_plan(given: dict[str, Any]) -> None:
    from logitcache.dump.plan import plan_dump

    found = plan_dump(**given)
    room = "" if found.free_bytes is None else f"; {bytes_text(found.free_bytes)} are free there"
    disk = f", the disk {bytes_text(found.disk_bytes_per_second)}/s" if found.disk_bytes_per_second else ""
    print_pairs(
        f"dumping into {given['out']} would take",
        {
            "rows": f"{found.rows:,}",
            "room": f"{bytes_text(found.bytes_total)}{room}",
            "of this": ", ".join(f"{name} {bytes_text(size)}" for name, size in found.bytes_by_array.items()),
            "speed": f"{found.teacher_rows_per_second:,.0f} rows/s ({found.measured_rows:,} asked just now){disk}",
            "time": f"{_duration(found.hours)} on one device like this",
            "live": f"the teacher in the loop would add {_duration(found.live_hours_per_epoch)} to every epoch: the cache has paid for "
            f"itself after {found.pays_after_epochs} {'epoch' if found.pays_after_epochs == 1 else 'epochs'}",
        },
    )
    if not found.fits:
        raise InputError(
            f"{given['out']} does not fit on its disk: choose another --out, fewer --views, or a smaller --encoding"
        )


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.1f} s"
