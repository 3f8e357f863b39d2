"""`logitcache dump`."""

from typing import Annotated, Any

import typer

from logitcache.dump.settings import DumpRequest, DumpSettings
from logitcache.errors import InputError
from logitcache.runtime.processes import this_one_leads
from logitcache.runtime.wording import bytes_text, counted, samples_words

from .options import ConfigOption, catch_signals, read_options, show_progress, with_options
from .render import print_pairs

__all__ = ["dump"]


@with_options(DumpRequest, DumpSettings)
def dump(
    ctx: typer.Context,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Print an estimate of size and time, measured on a few batches and the disk, without dumping.",
            rich_help_panel="Run",
        ),
    ] = False,
    config: ConfigOption = None,
    **options: Any,
) -> None:
    """Run a teacher once over every view of a data set and store its logits.

    If it is stopped or killed, the same command resumes it, and the cache has the same bytes in the end.

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
    with show_progress(quiet=not leads) as display, catch_signals() as should_stop:
        cache = dump_logits(**given, should_stop=should_stop, on_progress=display)
        if not leads:
            return
        manifest = cache.manifest
        if manifest.encoding["kind"] == "topk":
            from logitcache.caches.fidelity import advice

            for slug in cache.teachers:
                prefix = f"{slug}: " if len(cache.teachers) > 1 else ""
                for sentence in advice(cache, teacher=slug):
                    display.print(f"note: {prefix}{sentence}")
    shape = f"{samples_words(manifest.to_json())} x {counted(len(manifest.views), 'view')}, {counted(len(manifest.classes), 'class')}"
    several = f", {len(cache.teachers)} teachers ({', '.join(cache.teachers)})" if len(cache.teachers) > 1 else ""
    typer.echo(f"{given['out']}: {shape}{several}, finished; {disk_use(cache).per_row:.1f} bytes per row")


def _show_plan(given: dict[str, Any]) -> None:
    from logitcache.dump.plan import plan_dump

    found = plan_dump(**given)
    room = "" if found.free_bytes is None else f"; {bytes_text(found.free_bytes)} free on the disk"
    disk = f", the disk {bytes_text(found.disk_bytes_per_second)}/s" if found.disk_bytes_per_second else ""
    print_pairs(
        f"plan for {given['out']}",
        {
            **{unit: f"{count:,}" for unit, count in found.counts.items()},
            "rows": f"{found.rows:,}",
            "size": f"{bytes_text(found.bytes_total)}, {found.bytes_per_row:.1f} bytes per row{room}",
            "by array": ", ".join(f"{name} {bytes_text(size)}" for name, size in found.bytes_by_array.items()),
            "speed": f"{found.teacher_rows_per_second:,.0f} rows/s (measured on {found.measured_rows:,} rows){disk}",
            "time": f"{_duration(found.hours)} on one device like this one",
            "live teacher": f"would add {_duration(found.live_hours_per_epoch)} to every epoch; the cache pays off after "
            f"{found.pays_after_epochs} {'epoch' if found.pays_after_epochs == 1 else 'epochs'}",
        },
    )
    if not found.fits:
        raise InputError(
            f"{given['out']} does not fit on its disk; use another --out, fewer --views or a smaller --encoding"
        )


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.1f} s"
