"""`logitcache stats`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import CacheArgument, JsonOption, newest_unless, show_progress
from .render import bar, bytes_text, print_json, print_pairs, print_table

if TYPE_CHECKING:
    from logitcache.stats import CacheStats, Comparison, Quantiles, Side, ViewStats

__all__ = ["stats"]

_VIEWS = 8  # more are folded: the first four and their mean
_LINES = 5  # of each list
_RANKS = 5
_BINS = 3  # of the reliability diagram in one line
_DUPLICATES = 100  # found at most
_NAME = 24  # letters of a class name


def stats(
    cache: CacheArgument = None,
    other: Annotated[
        str | None,
        typer.Argument(metavar="[OTHER]", show_default=False, help="A second cache of the same data: compare the two."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="SLUG",
            show_default="the only one",
            help="Which of several teachers; of two caches SLUG,SLUG, or one for both.",
        ),
    ] = None,
    json: JsonOption = False,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE.html", show_default=False, help="Write a page with figures and images, too."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", show_default="as dumped", help="Where the images of the report are, if they have moved."
        ),
    ] = None,
    advise: Annotated[
        bool,
        typer.Option(
            "--advise", help="Measure what the encoding does to the usual methods, and say what to dump instead."
        ),
    ] = False,
) -> None:
    """Show what a cache holds, how good its teacher is, what methods will do with it and what is odd in the data.

    With two caches: where they agree, how far apart they are, which to prefer for what.

    Example: logitcache stats fashion.zarr
    """
    from logitcache.stats import cache_stats, compare_caches

    if other is not None:
        slugs = (teacher or "").split(",")
        chosen = (slugs[0] or None, slugs[-1] or None)
        with show_progress(quiet=json) as display:
            compared = compare_caches(newest_unless(cache), other, teachers=chosen, on_progress=display)
        if report is not None:
            from logitcache.report import write_comparison
            from logitcache.store import open_cache

            write_comparison(report, compared, open_cache(other).manifest.classes)
        print_json(compared.to_json()) if json else _print_comparison(compared)
        return
    path = newest_unless(cache)
    with show_progress(quiet=json) as display:
        found = cache_stats(path, teacher=teacher, on_progress=display)
    sentences = _advice(path, teacher) if advise else []
    if report is not None:
        _write_report(report, found, path, teacher, data)
    if json:
        print_json(found.to_json() | ({"advice": sentences} if advise else {}))
        return
    _print_health(found)
    _print_contents(found)
    _print_teacher(found)
    _print_methods(found)
    _print_oddities(found)
    for sentence in sentences or (["what is stored is a good stand-in for the teacher's rows"] if advise else []):
        typer.echo(f"advice: {sentence}")


def _write_report(report: Path, found: "CacheStats", path: str, teacher: str | None, data: str | None) -> None:
    """Write the page, with what storing does to methods and advice where the cache is whole enough to measure it."""
    from logitcache.fidelity import advice, cache_fidelity
    from logitcache.report import write_report

    health = found.health
    whole = health.finished and not health.missing and not health.damaged
    fidelity = cache_fidelity(path, teacher=teacher) if whole else None
    sentences = advice(path, teacher=teacher) if whole else []
    why = write_report(report, found, path, fidelity=fidelity, advice=sentences, data=data)
    typer.echo(f"{report} written. {why}".strip(), err=True)


def _advice(path: str, teacher: str | None) -> list[str]:
    from logitcache.fidelity import advice

    return advice(path, teacher=teacher)


def _print_health(found: "CacheStats") -> None:
    """Say first what is wrong, if something is."""
    health, problems = found.health, list[str]()
    if not health.finished:
        problems.append("its dump has not finished: the same command goes on")
    if health.missing:
        problems.append(f"missing of {health.blocks} blocks: {_first(health.missing)}")
    if health.damaged:
        problems.append(f"damaged: {_first(health.damaged)}; `logitcache verify` says more")
    if health.not_finite_rows:
        problems.append(f"{health.not_finite_rows:,} rows hold a NaN or an infinity, and are left out below")
    if health.constant_rows:
        problems.append(
            f"{health.constant_rows:,} rows have equal logits for every class; the teacher says nothing there"
        )
    for problem in problems:
        typer.secho(f"{found.path}: {problem}", fg=typer.colors.RED)


def _first(words: list[str]) -> str:
    return ", ".join(words[:_LINES]) + (f" and {len(words) - _LINES} more" if len(words) > _LINES else "")


def _print_contents(found: "CacheStats") -> None:
    manifest = found.manifest
    teacher, encoding, views = manifest["teachers"][0], manifest["encoding"], manifest["views"]
    data, probe, software = manifest["data"], found.probe, manifest["software"]
    kept = (
        "every class"
        if encoding["kind"] == "full"
        else f"the {encoding['k']} largest, the label's and statistics of the rest"
    )
    recipes = " + ".join(view["recipe"] for view in views if view["group"] == 0)
    largest = sorted(found.bytes_by_array.items(), key=lambda item: -item[1])
    made = found.made
    print_pairs(
        found.path,
        {
            "teacher": teacher["name"]
            + (f", weights sha256 {teacher['weights_sha256'][:12]}" if teacher["weights_sha256"] else ""),
            "data": f"{data['spec'] or 'an object'}, {_stretch(manifest)}, {len(manifest['classes'])} classes",
            "views": f"{len({view['group'] for view in views})} x {recipes}, seed {views[0]['seed']}",
            "logits": f"{kept}, {encoding['dtype']}; made on {manifest['device']} with torch {software.get('torch', '?')}",
            "size": f"{bytes_text(found.bytes_total)}, {found.bytes_per_row:.1f} B a row, "
            f"{found.ratio_to_float32:.2f} of the logits in raw float32",
            "of this": ", ".join(f"{name} {bytes_text(size)}" for name, size in largest[: _LINES + 1]),
            "lost in storing": f"largest gap {probe.largest_gap:.2g}; KL {probe.kl_nats['T=1']:.1e} nats at T=1, "
            f"{probe.kl_nats['T=4']:.1e} at T=4; top class changed in {probe.top1_changed} of {probe.rows} rows"
            if probe.rows
            else "not known: there is no probe",
            **({"made": f"{made['begun']} on {made.get('host', '?')}"} if made else {}),
            **({"made from": _origin(manifest["derived"])} if manifest["derived"] else {}),
            "fingerprint": found.fingerprint or "none while unfinished",
        },
    )


def _print_teacher(found: "CacheStats") -> None:
    columns = ["view", "recipe", "rows", "accuracy", "top-5", "confidence", "entropy", "ECE"]
    views = found.views if len(found.views) <= _VIEWS else found.views[: _VIEWS // 2]
    rows = [[str(view.view), view.recipe, f"{view.rows:,}", *_numbers([view])] for view in views]
    if len(views) < len(found.views):
        rows.append([f"all {len(found.views)}", "their mean", f"{_total(found.views):,}", *_numbers(found.views)])
    print_table("the teacher, view by view (entropy in nats; ECE: calibration error)", columns, rows)
    if not _total(found.views):
        return
    if len(found.views) > 1:
        typer.echo(f"one largest class in every view: {found.agreement_of_all:.1%} of samples")
    print_pairs("where the true class ranks", _ranks(found.views))
    print_pairs("how often it is right, by how sure it is", _reliability(found.views))
    print_pairs("what it confuses (label > its answer)", _confusions(found))


def _total(views: list["ViewStats"]) -> int:
    return sum(view.rows for view in views)


def _numbers(views: list["ViewStats"]) -> list[str]:
    """Format the means of some views."""
    rows = max(_total(views), 1)

    def mean(name: str) -> float:
        return float(sum(getattr(view, name) * view.rows for view in views) / rows)

    return [
        f"{mean('accuracy'):.2%}",
        f"{mean('top5_accuracy'):.2%}",
        f"{mean('confidence'):.3f}",
        f"{mean('entropy_nats'):.3f}",
        f"{mean('calibration_error'):.2%}",
    ]


def _ranks(views: list["ViewStats"]) -> dict[str, str]:
    counts = [sum(ranks) for ranks in zip(*(view.rank_of_label for view in views), strict=True)]
    shown = counts[:_RANKS] if len(counts) > _RANKS else counts[:-1]
    total = max(sum(counts), 1)
    lines = {f"{rank + 1}": _barred(count / total) for rank, count in enumerate(shown)}
    return lines | {f"{len(shown) + 1} and on": _barred((sum(counts) - sum(shown)) / total)}


def _barred(share: float) -> str:
    return f"{bar(share):<24} {share:.2%}"


def _reliability(views: list["ViewStats"]) -> dict[str, str]:
    """Join the bins of all views, and some neighbours."""
    lines: dict[str, str] = {}
    bins = list(zip(*(view.reliability for view in views), strict=True))
    for start in range(0, len(bins), _BINS):
        some = [one for bin_ in bins[start : start + _BINS] for one in bin_]
        rows = sum(one.rows for one in some)
        if rows:
            right, sure = (
                sum(getattr(one, name) * one.rows for one in some) / rows for name in ("accuracy", "confidence")
            )
            lines[f"{some[0].lower:.1f} to {some[-1].upper:.1f}"] = (
                f"{bar(right):<24} {right:.1%} right, {sure:.1%} sure, {rows:,} rows"
            )
    return lines


def _confusions(found: "CacheStats") -> dict[str, str]:
    names, accuracy = found.manifest["classes"], _class_accuracy(found.views)
    lines = {
        f"{_name(names, pair.label)} > {_name(names, pair.says)}": f"{pair.rows:,} rows, {pair.share:.1%} of {_name(names, pair.label)}"
        for pair in found.confusions[:_LINES]
    }
    worst = sorted(accuracy, key=lambda label: accuracy[label])[:_LINES]
    return lines | {"worst classes": ", ".join(f"{_name(names, label)} {accuracy[label]:.1%}" for label in worst)}


def _class_accuracy(views: list["ViewStats"]) -> dict[int, float]:
    """Return the mean accuracy of each class over the views that have it."""
    found = {
        label: [share for share in shares if share is not None]
        for label, shares in enumerate(zip(*(view.class_accuracy for view in views), strict=True))
    }
    return {label: sum(shares) / len(shares) for label, shares in found.items() if shares}


def _name(names: list[str], label: int) -> str:
    return names[label] if len(names[label]) <= _NAME else names[label][: _NAME - 3] + "..."


def _print_methods(found: "CacheStats") -> None:
    preview = found.preview
    if not preview.rows:
        return
    outside = ", ".join(f"{share:.2%} at {word}" for word, share in preview.mass_outside.items())
    ranks = ", ".join(f"{share:.2%}" for share in preview.mass_by_rank[:_RANKS])
    topk = found.manifest["encoding"]["kind"] == "topk"
    print_pairs(
        f"what methods will do with it (over {preview.rows:,} rows)",
        {
            "loca": f"lifts the label of {preview.loca_changed:.2%} of rows, moving {preview.loca_moved:.1%} of their probability",
            "sld, swap": f"swap {preview.swap_changed:.2%} of rows, moving {preview.swap_moved:.1%}",
            "rld": f"hides more than the label in {preview.rld_masked:.2%} of rows, {preview.rld_hidden:.1f} classes there",
            "atkd": f"temperature {_spread(preview.atkd_temperature)}",
            "normkd": f"temperature {_spread(preview.normkd_temperature)}; a row's deviation {_spread(preview.deviation)}",
            "mass": f"of the largest classes, at T=1: {ranks}" + (f"; not kept: {outside}" if topk else ""),
        },
    )


def _spread(quantiles: "Quantiles") -> str:
    return f"{quantiles.median:.2f} ({quantiles.p5:.2f} to {quantiles.p95:.2f})"


def _print_oddities(found: "CacheStats") -> None:
    names = found.manifest["classes"]
    if found.odd:
        print_table(
            f"likely wrong labels: {found.odd_total:,}; the surest",
            ["sample", "labelled", "the teacher says", "probability", "of the label"],
            [
                [
                    str(one.sample),
                    _name(names, one.label),
                    _name(names, one.says),
                    f"{one.confidence:.3f}",
                    f"{one.label_probability:.3f}",
                ]
                for one in found.odd[:_LINES]
            ],
            left=3,
        )
    if found.duplicates:
        count = f"{len(found.duplicates)}{' or more' if len(found.duplicates) == _DUPLICATES else ''}"
        print_table(
            f"likely twice the same image: {count}; the nearest",
            ["samples", "labels", "distance", "pixels"],
            [
                [
                    f"{one.first}, {one.second}",
                    ", ".join(dict.fromkeys(_name(names, label) for label in one.labels)),
                    f"{one.distance:.2f}",
                    "equal" if one.same_pixels else "differ",
                ]
                for one in found.duplicates[:_LINES]
            ],
        )


def _print_comparison(found: "Comparison") -> None:
    print_table(
        f"two caches, over {found.rows:,} rows that both hold (entropy in nats; ECE: calibration error)",
        ["cache", "teacher", "encoding", "B a row", "accuracy", "entropy", "ECE"],
        [_side(side) for side in found.sides],
        left=3,
    )
    kinds = {"both right": found.both_right, "first alone": found.first_right}
    kinds |= {"second alone": found.second_right, "both wrong": found.both_wrong}
    forth, back = (
        ", ".join(f"{value:.2g} at {word}" for word, value in values.items())
        for values in (found.kl_nats, found.kl_back_nats)
    )
    print_pairs("what is the same", found.same)
    print_pairs(
        "where they agree",
        {
            "same largest class": _barred(found.top1_agreement),
            **{word: _barred(share) for word, share in kinds.items()},
            "KL in nats": f"first to second {forth}; back {back}",
        },
    )
    for sentence in found.advice:
        typer.echo(f"advice: {sentence}")


def _side(side: "Side") -> list[str]:
    numbers: list[Any] = [side.bytes_per_row, side.accuracy, side.entropy_nats, side.calibration_error]
    words = [
        form.format(number) for form, number in zip(("{:.1f}", "{:.2%}", "{:.3f}", "{:.2%}"), numbers, strict=True)
    ]
    return [side.path, side.teacher, side.encoding, *words]


def _origin(derived: dict[str, Any]) -> str:
    return f"{', '.join(one['fingerprint'] for one in derived['from'])}, by {derived['by']}"


def _stretch(manifest: dict[str, Any]) -> str:
    first, count, total = manifest["data"]["first"], manifest["samples"], manifest["data"]["length"]
    return f"{count:,} samples" if count == total else f"samples {first:,} to {first + count - 1:,} of {total:,}"
