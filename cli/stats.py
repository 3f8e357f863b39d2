"""`logitcache stats`."""

from typing import TYPE_CHECKING, Any

import typer

from .options import CacheArgument, JsonOption, TeacherOption, newest_unless, show_progress
from .render import bytes_text, print_json, print_pairs, print_table

if TYPE_CHECKING:
    from logitcache.stats import CacheStats

__all__ = ["stats"]


def stats(cache: CacheArgument = None, teacher: TeacherOption = None, json: JsonOption = False) -> None:
    """Show what a cache holds, how good its teacher is and what storing it has lost.

    Example: logitcache stats fashion.zarr
    """
    from logitcache.stats import cache_stats

    path = newest_unless(cache)
    with show_progress(quiet=json) as display:
        found = cache_stats(path, teacher=teacher, on_progress=display)
    if json:
        print_json(found.to_json())
    else:
        _print(found)


def _print(found: "CacheStats") -> None:
    manifest = found.manifest
    teacher, encoding, views = manifest["teachers"][0], manifest["encoding"], manifest["views"]
    data, probe, software = manifest["data"], found.probe, manifest["software"]
    kept = (
        "every class"
        if encoding["kind"] == "full"
        else f"the {encoding['k']} largest, the label's and statistics of the rest"
    )
    recipes = " + ".join(view["recipe"] for view in views if view["group"] == 0)
    print_pairs(
        found.path,
        {
            "teacher": teacher["name"]
            + (f", weights sha256 {teacher['weights_sha256'][:12]}" if teacher["weights_sha256"] else ""),
            "data": f"{data['spec'] or 'an object'}, {_stretch(manifest)}, {len(manifest['classes'])} classes",
            "views": f"{len({view['group'] for view in views})} x {recipes}, seed {views[0]['seed']}",
            "logits": f"{kept}, {encoding['dtype']}; made on {manifest['device']} with torch {software['torch']}",
            "size": f"{bytes_text(found.bytes_total)}, {found.bytes_per_row:.1f} B a row, "
            f"{found.ratio_to_float32:.2f} of the logits in raw float32",
            "of this": ", ".join(f"{name} {bytes_text(size)}" for name, size in found.bytes_by_array.items()),
            "lost in storing": f"largest gap {probe.largest_gap:.2g}; KL {probe.kl_nats['T=1']:.1e} nats at T=1, "
            f"{probe.kl_nats['T=4']:.1e} at T=4; top class changed in {probe.top1_changed} of {probe.rows} rows",
            **({"made from": _origin(manifest["derived"])} if manifest["derived"] else {}),
            "fingerprint": found.fingerprint,
        },
    )
    print_table(
        "the teacher, view by view",
        ["view", "recipe", "accuracy", "top-5", "errs", "confidence", "entropy", "constant rows"],
        [
            [
                str(view.view),
                view.recipe,
                f"{view.accuracy:.2%}",
                f"{view.top5_accuracy:.2%}",
                f"{view.mis_instruction_rate:.2%}",
                f"{view.confidence:.3f}",
                f"{view.entropy_nats:.3f} nats",
                str(view.constant_rows),
            ]
            for view in found.views
        ],
    )
    constant = sum(view.constant_rows for view in found.views)
    if constant:
        typer.echo(
            f"warning: {constant:,} rows have equal logits for every class; the teacher says nothing there", err=True
        )


def _origin(derived: dict[str, Any]) -> str:
    return f"{', '.join(one['fingerprint'] for one in derived['from'])}, by {derived['by']}"


def _stretch(manifest: dict[str, Any]) -> str:
    first, count, total = manifest["data"]["first"], manifest["samples"], manifest["data"]["length"]
    return f"{count:,} samples" if count == total else f"samples {first:,} to {first + count - 1:,} of {total:,}"
