"""`logitcache dump`."""

from typing import Annotated, Any

import typer

from logitcache.dump.settings import DumpRequest, DumpSettings
from logitcache.errors import InputError
from logitcache.runtime.processes import this_one_leads
from logitcache.runtime.wording import bytes_text, counted, samples_words

from .options import ConfigOption, read_options, show_progress, stopping, with_options
from .render import print_pairs

__all__ = ["dump"]


@with_options(DumpRequest, DumpSettings)
def dump(
    ctx: typer.Context,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Measure the teacher on a few batches and the disk, print what the dump will take, and dump nothing.",
            rich_help_panel="Run",
        ),
    ] = False,
    config: ConfigOption = None,
    **options: Any,
) -> None:
    """Run a teacher once over every view of a data set and store its logits.

    Stopped or killed, the same command goes on where it was and leaves the same bytes.

    Example: logitcache dump --teacher resnet20 --teacher-weights demo --data fashion-mnist-mini --augment
    pad-crop-flip --views 4 --out fashion.zarr
    """
    given = read_options(ctx, DumpRequest, DumpSettings)
    if plan:
        _show_plan(given)
        return
    from logitcache.dump.dump import dump_logits
    from logitcache.store import disk_use

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
    shape = f"{samples_words(manifest.to_json())} x {counted(len(manifest.views), 'view')}, {counted(len(manifest.classes), 'class')}"
    several = f", {len(cache.teachers)} teachers ({', '.join(cache.teachers)})" if len(cache.teachers) > 1 else ""
    typer.echo(f"{given['out']}: {shape}{several}, complete; {disk_use(cache).per_row:.1f} B a row")


def _show_plan(given: dict[str, Any]) -> None:
    from logitcache.dump.plan import plan_dump

    found = plan_dump(**given)
    room = "" if found.free_bytes is None else f"; {bytes_text(found.free_bytes)} are free there"
    disk = f", the disk {bytes_text(found.disk_bytes_per_second)}/s" if found.disk_bytes_per_second else ""
    print_pairs(
        f"dumping into {given['out']} would take",
        {
            **{unit: f"{count:,}" for unit, count in found.counts.items()},
            "rows": f"{found.rows:,}",
            "room": f"{bytes_text(found.bytes_total)}, {found.bytes_per_row:.1f} B a row{room}",
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
