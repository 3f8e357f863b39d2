"""Terminal output of `logitcache stats`. Problems are printed first."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import typer

from logitcache.runtime.wording import (
    bytes_text,
    counted,
    kept_words,
    percent,
    samples_words,
)

from .described_info import print_info, state_text
from .described_tokens import print_paired_tokens, print_tokens
from .render import bar, print_pairs, print_table

if TYPE_CHECKING:
    from logitcache.stats import (
        CacheStats,
        Comparison,
        MethodPreview,
        PositionBin,
        Quantiles,
        Side,
    )

__all__ = ["print_advice", "print_compared", "print_described"]

_TEXT = "text"
_VIEWS = 8  # if there are more, the first four and the totals are shown
_LINES = 5  # maximum number of lines of each list
_RANKS = 5
_BINS = 3  # bins of the reliability diagram to join into one line
_DUPLICATES = 100  # maximum number that `stats` finds
_NUMBERS = ("accuracy", "top5_accuracy", "confidence", "entropy_nats", "calibration_error")
_NAME = 24  # maximum length of a class name


def print_described(found: "CacheStats", *, everything: bool = False) -> None:
    """Print statistics of a cache: problems, four headline numbers, and a short summary or, with `everything`, all details."""
    _print_health(found)
    _print_headline(found)
    if not everything:
        _print_summary(found)
        return
    print_info(found)
    print_pairs("", {"encoding error": _encoding_error(found)})
    _print_teacher(found)
    _print_methods(found)
    _print_oddities(found)
    if found.tokens is not None:
        print_tokens(found, found.tokens)


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


def _print_summary(found: "CacheStats") -> None:
    """Print one line for each section of `--all`."""
    accuracies = [view.accuracy for view in found.views if view.rows]
    shares = sorted((share, label) for label, share in enumerate(found.class_accuracy()) if share is not None)
    lines = {"logits": kept_words(found.manifest["encoding"]), "state": state_text(found)}
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
    print_pairs("", lines | _suspects(found))
    typer.echo("--all prints all statistics; --report FILE.html writes them as a page with figures")


def _suspects(found: "CacheStats") -> dict[str, str]:
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


def _encoding_error(found: "CacheStats") -> str:
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
        problems.append(f"missing, of {counted(health.blocks, 'block')}: {_first_few(health.missing)}")
    if health.damaged:
        problems.append(f"damaged: {_first_few(health.damaged)}; run `logitcache verify` for details")
    if health.not_finite_rows:
        problems.append(f"{counted(health.not_finite_rows, 'row')} with NaN or infinite values, left out below")
    if health.constant_rows:
        problems.append(f"{counted(health.constant_rows, 'row')} with the same logit for every class")
    if found.chance:
        problems.append(found.chance)
    for problem in problems:
        typer.secho(f"{found.path}: {problem}", fg=typer.colors.RED)


def _first_few(words: list[str]) -> str:
    return "; ".join(words[:_LINES]) + (f" and {len(words) - _LINES} more" if len(words) > _LINES else "")


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
    listed = counts[:_RANKS] if len(counts) > _RANKS else counts[:-1]
    total = sum(counts)
    lines = {f"{rank + 1}": _share_with_bar(count / total) for rank, count in enumerate(listed)}
    return lines | {f"{len(listed) + 1} or more": _share_with_bar((total - sum(listed)) / total)}


def _share_with_bar(share: float) -> str:
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
                _label_aware_edits(preview, topk=topk)
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


def _label_aware_edits(preview: "MethodPreview", *, topk: bool) -> dict[str, str]:
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
        [[*_side_cells(side), *[f"{side.perplexity:.2f}"] * of_text] for side in found.sides],
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
            "same top class": _share_with_bar(found.top1_agreement),
            **{word: _share_with_bar(share) for word, share in kinds.items()},
            "KL in nats": f"KL(first || second) {forth}; KL(second || first) {back}",
        },
    )
    if found.tokens is not None:
        print_paired_tokens(found.tokens, manifest)
    print_advice(found.advice)


def _side_cells(side: "Side") -> list[str]:
    numbers: list[Any] = [side.bytes_per_row, side.accuracy, side.entropy_nats, side.calibration_error]
    words = [
        form.format(number) for form, number in zip(("{:.1f}", "{:.2%}", "{:.3f}", "{:.2%}"), numbers, strict=True)
    ]
    return [side.path, side.teacher, side.encoding, *words]


def print_advice(sentences: list[str]) -> None:
    """Print advice, one sentence per line."""
    for sentence in sentences:
        typer.echo(f"advice: {sentence}")
