"""Terminal output of `logitcache info` and `logitcache stats`. Problems are printed first."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import typer

from logitcache.runtime.wording import (
    bytes_text,
    class_map_words,
    counted,
    kept_words,
    origin_words,
    percent,
    preprocessing_words,
    samples_words,
    teacher_words,
)

from .render import bar, print_pairs, print_table

if TYPE_CHECKING:
    from logitcache.stats import (
        CacheInfo,
        CacheStats,
        Comparison,
        MethodPreview,
        PositionBin,
        Quantiles,
        Side,
        TokenComparison,
        TokenStats,
    )

__all__ = ["print_advice", "print_compared", "print_described", "print_info"]

_TEXT = "text"
_AT_ONE = ("sampled", "topk-mass")  # encodings that support only temperature 1
_VIEWS = 8  # if there are more, the first four and the totals are shown
_LINES = 5  # maximum number of lines of each list
_RANKS = 5
_BINS = 3  # bins of the reliability diagram to join into one line
_DUPLICATES = 100  # maximum number that `stats` finds
_NUMBERS = ("accuracy", "top5_accuracy", "confidence", "entropy_nats", "calibration_error")
_NAME = 24  # maximum length of a class name
_CONTEXT = 48  # maximum length of the text before a token


def print_described(found: "CacheStats", *, everything: bool = False) -> None:
    """Print statistics of a cache: problems, four headline numbers, and a short summary or, with `everything`, all details."""
    _print_health(found)
    _print_headline(found)
    if not everything:
        _print_short(found)
        return
    print_info(found)
    print_pairs("", {"encoding error": _lost(found)})
    _print_teacher(found)
    _print_methods(found)
    _print_oddities(found)
    if found.tokens is not None:
        _print_tokens(found, found.tokens)


def _print_headline(found: "CacheStats") -> None:
    """Print accuracy, calibration, agreement and size."""
    manifest, views = found.manifest, found.manifest["views"]
    data = manifest["data"]["spec"] or "a data set"
    title = f"{found.path}: {manifest['teachers'][0]['name']} on {data}, {samples_words(manifest)} x {counted(len(views), 'view')}"
    if not any(view.rows for view in found.views):
        print_pairs(title, {"rows": "no readable rows"})
        return
    confidence, right = found.mean("confidence"), found.mean("accuracy")
    trend = "overconfident" if confidence > right else "underconfident"
    print_pairs(
        title,
        {
            "teacher accuracy": f"{percent(right)}{' of next tokens' * (found.tokens is not None)}, "
            f"top-5 {percent(found.mean('top5_accuracy'))}",
            "calibration error": f"{percent(found.mean('calibration_error'))}; {trend} by {percent(abs(confidence - right))} on average",
            **_agreement(found),
            "size": f"{found.bytes_per_row:.1f} bytes per row, {bytes_text(found.bytes_total)} in total "
            f"({found.ratio_to_float32:.2f}x raw float32 logits)",
        },
    )


def _agreement(found: "CacheStats") -> dict[str, str]:
    """Return the agreement between views, or for text, which has a single view, the perplexity."""
    tokens, views, share = found.tokens, len(found.views), found.agreement_of_all
    if tokens is not None:
        return (
            {"perplexity": f"{tokens.perplexity:.2f}, {tokens.surprise_nats:.3f} nats per token"} if tokens.rows else {}
        )
    if views == 1:
        return {"view agreement": "only one view"}
    if share is None:
        return {"view agreement": "no sample has all views"}
    return {"view agreement": f"{percent(share)} of samples have the same top class in all {views} views"}


def _print_short(found: "CacheStats") -> None:
    """Print one line for each section of `--all`."""
    accuracies = [view.accuracy for view in found.views if view.rows]
    shares = sorted((share, label) for label, share in enumerate(found.class_accuracy()) if share is not None)
    lines = {"logits": kept_words(found.manifest["encoding"]), "state": _state(found)}
    if len(accuracies) > 1:
        lines["accuracy by view"] = f"{percent(min(accuracies))} to {percent(max(accuracies))}"
    if found.tokens is None and len(shares) > 1:
        lines["worst classes"] = ", ".join(
            f"{_name(found.classes, label)} {share:.1%}" for share, label in shares[:_LINES]
        )
    if found.preview.labelled:
        lines["label-aware"] = (
            f"loca raises the label's logit in {percent(found.preview.loca_changed)} of rows; rld masks classes besides the label in "
            f"{percent(found.preview.rld_masked)}"
        )
    print_pairs("", lines | _odd_words(found))
    typer.echo("--all prints all statistics; --report FILE.html writes them as a page with figures")


def _odd_words(found: "CacheStats") -> dict[str, str]:
    """Return summary lines about unusual samples."""
    if (tokens := found.tokens) is not None:
        if not tokens.rows:
            return {}
        first, last = tokens.positions[0], tokens.positions[-1]
        return {
            "surprisal": f"{first.surprise_nats:.3f} nats {_after(first)}, {last.surprise_nats:.3f} {_after(last)}",
            "documents": f"{tokens.odd_total:,} outliers among {tokens.documents:,}; {tokens.copies_total:,} copies of earlier ones",
        }
    surest = ", ".join(str(one.sample) for one in found.odd[:_LINES])
    many = " or more" * (len(found.duplicates) == _DUPLICATES)
    return {
        "label errors": f"{found.odd_total:,} likely{'; most confident: ' * bool(surest)}{surest}",
        "duplicates": f"{len(found.duplicates):,}{many} likely",
    }


def _after(one: "PositionBin") -> str:
    """Format the positions of a bin, e.g. "after 1 token", "after 128 to 255 tokens"."""
    return (
        f"after {one.first:,} to {one.last:,} tokens"
        if one.last > one.first
        else f"after {counted(one.first, 'token')}"
    )


def _lost(found: "CacheStats") -> str:
    """Format the error of the encoding, measured on the probe."""
    probe = found.probe
    if not probe.rows:
        sampled = found.manifest["encoding"]["kind"] == "sampled"
        return (
            "run `logitcache fidelity` for the effect of sampling on the gradient" if sampled else "unknown, no probe"
        )
    divergence = ", ".join(f"{value:.1e} at {word}" for word, value in probe.kl_nats.items())
    return (
        f"largest difference {probe.largest_gap:.2g}; KL in nats {divergence}{', with the rest as one class' * probe.merged_rest}; "
        f"top class changed in {probe.top1_changed} of {counted(probe.rows, 'row')}"
    )


def _print_health(found: "CacheStats") -> None:
    """Print the problems of a cache, if any."""
    health, problems = found.health, list[str]()
    if not health.finished:
        problems.append("the dump is unfinished; run the same command again to resume it")
    if health.missing:
        problems.append(f"missing, of {counted(health.blocks, 'block')}: {_first(health.missing)}")
    if health.damaged:
        problems.append(f"damaged: {_first(health.damaged)}; run `logitcache verify` for details")
    if health.not_finite_rows:
        problems.append(f"{counted(health.not_finite_rows, 'row')} with NaN or infinite values, left out below")
    if health.constant_rows:
        problems.append(f"{counted(health.constant_rows, 'row')} with the same logit for every class")
    if found.chance:
        problems.append(found.chance)
    for problem in problems:
        typer.secho(f"{found.path}: {problem}", fg=typer.colors.RED)


def _first(words: list[str]) -> str:
    return "; ".join(words[:_LINES]) + (f" and {len(words) - _LINES} more" if len(words) > _LINES else "")


def print_info(found: "CacheInfo") -> None:
    """Print the description of a cache, without statistics of its rows."""
    manifest = found.manifest
    print_pairs(
        found.path,
        {
            **_teachers(found),
            "data": f"{manifest['data']['spec'] or 'data set object'}, {samples_words(manifest)}, {counted(len(found.classes), 'class')}",
            "views": _views(manifest["views"]),
            "logits": kept_words(manifest["encoding"]),
            "rows": f"{found.rows:,}"
            + ("" if found.rows == found.rows_there else f", {found.rows_there:,} of them written"),
            "size": f"{bytes_text(found.bytes_total)}, {found.bytes_per_row:.1f} bytes per row ({found.ratio_to_float32:.2f}x raw float32 "
            "logits)",
            "by array": _largest_arrays(found),
            "state": _state(found),
            "fingerprint": found.fingerprint or "none while unfinished",
            **_origin(found),
            "versions": ", ".join(f"{name} {version}" for name, version in manifest["software"].items())
            + f"; cache format {manifest['format']}",
            "methods": ", ".join(found.serves) + ", at temperature 1" * (manifest["encoding"]["kind"] in _AT_ONE),
            **({"unsupported": _refused(found.refuses)} if found.refuses else {}),
        },
    )


def _teachers(found: "CacheInfo") -> dict[str, str]:
    """Describe the teachers, and the preprocessing and class map if there is only one."""
    teachers = found.manifest["teachers"]
    if len(teachers) == 1:
        mapped = class_map_words(teachers[0]["class_map"], found.classes)
        return {
            "teacher": teacher_words(teachers[0]),
            "preprocessing": preprocessing_words(teachers[0]["preprocessing"], found.preprocessing_from),
            **({"class map": mapped} if mapped else {}),
        }
    return {f"teacher {one['slug']}": teacher_words(one) for one in teachers}


def _views(views: list[dict[str, Any]]) -> str:
    recipes = " + ".join(view["recipe"] for view in views if view["group"] == 0)
    seed = f", seed {views[0]['seed']}" if "seed" in views[0] else ""
    return f"{len({view['group'] for view in views})} x {recipes}{seed}"


def _largest_arrays(found: "CacheInfo") -> str:
    largest = sorted(found.bytes_by_array.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {bytes_text(size)}" for name, size in largest[: _LINES + 1])


def _state(found: "CacheInfo") -> str:
    there = f"{found.blocks_there:,} of {counted(found.blocks, 'block')} written"
    if not found.finished:
        return f"unfinished, {there}; run the dump command again to resume it"
    return (
        "finished" if found.blocks_there == found.blocks else f"damaged, {there}; run `logitcache verify` for details"
    )


def _origin(found: "CacheInfo") -> dict[str, str]:
    made, manifest = found.made, found.manifest
    begun = made.get("begun", "")
    said = {
        "created": f"{begun} on {made['host']}" if begun and "host" in made else begun,
        "device": f"{manifest['device']}, {counted(manifest['threads'], 'thread')}, batch size {manifest['batch_size']:,}",
        "command": made.get("command", ""),
        "derived from": origin_words(manifest["derived"]),
    }
    return {word: value for word, value in said.items() if value}


def _refused(refuses: Mapping[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for name, reason in refuses.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())


def _print_teacher(found: "CacheStats") -> None:
    columns = ["view", "recipe", "rows", "accuracy", "top-5", "confidence", "entropy", "ECE"]
    views = found.views if len(found.views) <= _VIEWS else found.views[: _VIEWS // 2]
    total = sum(view.rows for view in found.views)
    rows = [
        [str(view.view), view.recipe, f"{view.rows:,}", *_numbers([getattr(view, name) for name in _NUMBERS])]
        if view.rows
        else [str(view.view), view.recipe, "0", *("-" for _ in _NUMBERS)]
        for view in views
    ]
    if len(views) < len(found.views):
        means = _numbers([found.mean(name) for name in _NUMBERS])
        rows.append([f"all {len(found.views)}", "", f"{total:,}", *means])
    print_table("Teacher by view (entropy in nats; ECE: expected calibration error)", columns, rows)
    if not total:
        return
    if len(found.views) > 1 and found.agreement_of_all is not None:
        typer.echo(f"same top class in every view: {found.agreement_of_all:.1%} of samples")
    print_pairs("Rank of the true class", _ranks(found))
    print_pairs("Calibration (accuracy by confidence)", _reliability(found))
    if found.manifest.get("modality") != _TEXT:  # whose classes are token ids
        print_pairs("Most confused classes (label > prediction)", _confusions(found))


def _numbers(values: list[float]) -> list[str]:
    right, five, confidence, entropy, error = values
    return [percent(right), percent(five), f"{confidence:.3f}", f"{entropy:.3f}", percent(error)]


def _ranks(found: "CacheStats") -> dict[str, str]:
    counts = found.rank_of_label()
    shown = counts[:_RANKS] if len(counts) > _RANKS else counts[:-1]
    total = sum(counts)
    lines = {f"{rank + 1}": _barred(count / total) for rank, count in enumerate(shown)}
    return lines | {f"{len(shown) + 1} or more": _barred((total - sum(shown)) / total)}


def _barred(share: float) -> str:
    return f"{bar(share):<24} {share:.2%}"


def _reliability(found: "CacheStats") -> dict[str, str]:
    return {
        f"{one.lower:.1f} to {one.upper:.1f}": (
            f"{bar(one.accuracy):<24} {one.accuracy:.1%} accuracy, {one.confidence:.1%} confidence, {counted(one.rows, 'row')}"
        )
        for one in found.reliability(_BINS)
        if one.rows
    }


def _confusions(found: "CacheStats") -> dict[str, str]:
    names = found.classes
    lines = {
        f"{_name(names, pair.label)} > {_name(names, pair.says)}": (
            f"{counted(pair.rows, 'row')}, {pair.share:.1%} of {_name(names, pair.label)}"
        )
        for pair in found.confusions[:_LINES]
    }
    shares = sorted((share, label) for label, share in enumerate(found.class_accuracy()) if share is not None)
    worst = ", ".join(f"{_name(names, label)} {share:.1%}" for share, label in shares[:_LINES])
    return lines | {"worst classes": worst}


def _name(names: Sequence[str], label: int) -> str:
    name = names[label] if names[label].strip() else f"class {label} (unnamed)"
    return name if len(name) <= _NAME else name[: _NAME - 3] + "..."


def _print_methods(found: "CacheStats") -> None:
    preview = found.preview
    if not preview.rows:
        return
    outside = ", ".join(f"{share:.2%} at {word}" for word, share in preview.mass_outside.items())
    ranks = ", ".join(f"{share:.2%}" for share in preview.mass_by_rank[:_RANKS])
    topk = "k" in found.manifest["encoding"]
    print_pairs(
        f"Effect of methods (on {counted(preview.rows, 'row')})",
        {
            **(
                _edits(preview, topk=topk)
                if preview.labelled
                else {"loca, sld, rld": "not applicable, because rows of mixed views have two labels"}
            ),
            **(
                {
                    "atkd": f"temperature {_spread(preview.atkd_temperature)}",
                    "normkd": f"temperature {_spread(preview.normkd_temperature)}; "
                    f"standard deviation of a row's logits {_spread(preview.deviation)}",
                }
                if isfinite(preview.deviation.median)
                else {"atkd, normkd": "not applicable, because the logits of the tail are unknown"}
            ),
            "mass": f"largest classes at T=1: {ranks}" + (f"; outside the top k, about {outside}" if topk else ""),
        },
    )


def _edits(preview: "MethodPreview", *, topk: bool) -> dict[str, str]:
    least = "at least " if topk else ""
    return {
        "loca": f"raises the label's logit in {preview.loca_changed:.2%} of rows"
        + (f", moving {preview.loca_moved:.1%} of the probability there" if isfinite(preview.loca_moved) else ""),
        "sld, swap": f"swap two logits in {preview.swap_changed:.2%} of rows, moving {preview.swap_moved:.1%} of the probability there",
        "rld": f"masks classes besides the label in {preview.rld_masked:.2%} of rows, {least}{preview.rld_hidden:.1f} classes on average",
    }


def _spread(quantiles: "Quantiles") -> str:
    return f"{quantiles.median:.2f} ({quantiles.p5:.2f} to {quantiles.p95:.2f})"


def _print_oddities(found: "CacheStats") -> None:
    names = found.classes
    if found.odd:
        print_table(
            f"Likely label errors: {found.odd_total:,}, most confident first",
            [found.row_name, "label", "prediction", "confidence", "label probability"],
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
            f"Likely duplicate {'images' if found.row_name == 'sample' else 'rows'}: {count}, nearest first",
            [f"{found.row_name}s", "labels", "distance", "pixels" if found.row_name == "sample" else "digests"],
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


def _print_tokens(found: "CacheStats", tokens: "TokenStats") -> None:
    """Print the surprisal by position, the most surprising tokens, and outlier documents."""
    if not tokens.rows:
        return
    from logitcache.report.words import after, speller_of

    spell, most = speller_of(found.manifest), max(one.surprise_nats for one in tokens.positions)
    print_pairs(
        f"Surprisal by position: mean {tokens.surprise_nats:.3f} nats per token, perplexity {tokens.perplexity:.2f}",
        {
            (f"{one.first:,} to {one.last:,}" if one.last > one.first else f"{one.first:,}"): (
                f"{bar(one.surprise_nats / most):<24} {one.surprise_nats:.3f} nats, "
                f"entropy {one.entropy_nats:.3f}, {one.accuracy:.1%} accuracy, {counted(one.rows, 'token')}"
            )
            for one in tokens.positions
        },
    )
    print_table(
        "Most surprising tokens",
        ["document", "preceding text", "token", "prediction", "nats"],
        [
            [
                f"{one.document:,}",
                spell(one.before)[-_CONTEXT:],
                after(spell, one.before, one.label),
                after(spell, one.before, one.says),
                f"{one.surprise_nats:.2f}",
            ]
            for one in tokens.surprising[:_LINES]
        ],
        left=4,
    )
    copies = ", ".join(f"{one:,} = {other:,}" for one, other in tokens.copies[:_LINES])
    odd = ", ".join(f"{one.document:,} ({one.surprise_nats:.2f} nats)" for one in tokens.odd_documents[:_LINES])
    print_pairs(
        f"Outliers among {counted(tokens.documents, 'document')}",
        {
            "high surprisal": f"{tokens.odd_total:,}{': ' * bool(odd)}{odd}",
            "copies of earlier ones": f"{tokens.copies_total:,}{': ' * bool(copies)}{copies}",
        },
    )


def print_compared(found: "Comparison", manifest: Mapping[str, Any]) -> None:
    """Print a comparison of two caches.

    Args:
        found: Comparison to print.
        manifest: Manifest of one of the caches, as JSON.
    """
    of_text = found.tokens is not None
    print_table(
        f"Comparison over {counted(found.rows, 'shared row')} (entropy in nats; ECE: calibration error)",
        ["cache", "teacher", "encoding", "bytes per row", "accuracy", "entropy", "ECE", *["perplexity"] * of_text],
        [[*_side(side), *[f"{side.perplexity:.2f}"] * of_text] for side in found.sides],
        left=3,
    )
    kinds = {"both correct": found.both_right, "only first correct": found.first_right}
    kinds |= {"only second correct": found.second_right, "both wrong": found.both_wrong}
    forth, back = (
        ", ".join(f"{value:.2g} at {word}" for word, value in values.items())
        for values in (found.kl_nats, found.kl_back_nats)
    )
    print_pairs("Similarities and differences", found.same)
    print_pairs(
        "Agreement",
        {
            "same top class": _barred(found.top1_agreement),
            **{word: _barred(share) for word, share in kinds.items()},
            "KL in nats": f"KL(first || second) {forth}; KL(second || first) {back}",
        },
    )
    if found.tokens is not None:
        _print_paired(found.tokens, manifest)
    print_advice(found.advice)


def _print_paired(tokens: "TokenComparison", manifest: Mapping[str, Any]) -> None:
    """Print the agreement of two text teachers by position, and the tokens on which they differ most."""
    from logitcache.report.words import after, speller_of

    spell = speller_of(manifest)
    print_pairs(
        "Agreement on the top token, by position",
        {
            (f"{one.first:,} to {one.last:,}" if one.last > one.first else f"{one.first:,}"): (
                f"{_barred(one.agreement)}, KL {one.kl_nats:.2g} nats, surprisal {one.first_surprise_nats:.3f} and "
                f"{one.second_surprise_nats:.3f}, {counted(one.rows, 'token')}"
            )
            for one in tokens.positions
        },
    )
    print_table(
        "Tokens with the largest KL divergence",
        ["document", "preceding text", "token", "first prediction", "second prediction", "KL (nats)"],
        [
            [
                f"{one.document:,}",
                spell(one.before)[-_CONTEXT:],
                after(spell, one.before, one.label),
                after(spell, one.before, one.first_says),
                after(spell, one.before, one.second_says),
                f"{one.kl_nats:.2g}",
            ]
            for one in tokens.differing[:_LINES]
        ],
        left=5,
    )


def _side(side: "Side") -> list[str]:
    numbers: list[Any] = [side.bytes_per_row, side.accuracy, side.entropy_nats, side.calibration_error]
    words = [
        form.format(number) for form, number in zip(("{:.1f}", "{:.2%}", "{:.3f}", "{:.2%}"), numbers, strict=True)
    ]
    return [side.path, side.teacher, side.encoding, *words]


def print_advice(sentences: list[str]) -> None:
    """Print advice, one sentence per line."""
    for sentence in sentences:
        typer.echo(f"advice: {sentence}")
