"""HTML reports of `logitcache stats --report`, as a single self-contained file: for one cache, and for a comparison of two."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from logitcache.report.charts import Bar, bars
from logitcache.report.markup import element, escape, with_code
from logitcache.report.methods import methods_section
from logitcache.report.odd import data_section, samples_with_images
from logitcache.report.parts import ClassNames, captioned, facts, page, paragraph, section, table, tiles
from logitcache.report.quality import class_figures, teacher_section
from logitcache.report.tokens import text_comparison, text_section
from logitcache.runtime.wording import (
    bytes_text,
    class_map_words,
    counted,
    kept_words,
    number,
    origin_words,
    percent,
    preprocessing_words,
    samples_words,
    teacher_words,
)

if TYPE_CHECKING:
    from logitcache.caches.fidelity import Fidelity
    from logitcache.report.words import Speller
    from logitcache.stats import CacheStats, Comparison, Health, Side

__all__ = ["comparison_html", "report_html", "samples_with_images"]

_NAMED = 20  # maximum number of missing or damaged blocks to list


def report_html(
    stats: "CacheStats",
    fidelity: "Fidelity | None",
    advice: Sequence[str],
    images: Mapping[int, bytes],
    *,
    without_images: str = "",
    spell: "Speller | None" = None,
) -> str:
    """Return the report about a cache.

    Args:
        stats: Statistics of the cache.
        fidelity: Effect of the encoding on methods; None if it was not measured.
        advice: Sentences, with code in backticks.
        images: PNG of each sample by id; see `samples_with_images`.
        without_images: Sentence that explains why there are no images.
        spell: Function that converts tokens to text; None if the data is not text.

    Returns:
        Self-contained HTML, without scripts and without anything to load.
    """
    manifest, names = stats.manifest, ClassNames(stats.classes)
    data = "/".join(manifest["data"]["spec"].split("/")[-2:])  # the last parts of a path
    title = f"{manifest['teachers'][0]['name']} on {data or 'a data set'}"
    return page(
        f"{title} - logitcache",
        element(
            "header",
            element("h1", escape(title)),
            paragraph(_summary(stats), "quiet"),
            _headline(stats),
            _advice(advice),
        ),
        element(
            "main",
            _cache_section(stats),
            teacher_section(stats, names),
            methods_section(stats, fidelity),
            text_section(stats.tokens, spell)
            if stats.tokens is not None and spell is not None
            else data_section(stats, names, images, without_images),
        ),
        _footer(f"{stats.path}, fingerprint {stats.fingerprint or 'none while unfinished'}", manifest["software"]),
    )


def _footer(words: str, software: Mapping[str, str]) -> str:
    version = software.get("logitcache", "")
    return element(
        "footer",
        escape(f"{words}. Dumped by logitcache {version}. Percentages are of rows; a row is one sample in one view."),
    )


def _summary(stats: "CacheStats") -> str:
    manifest = stats.manifest
    views, recipes = manifest["views"], sorted({view["recipe"] for view in manifest["views"]})
    recipe = recipes[0] if len(recipes) == 1 else f"{len(recipes)} recipes"
    if stats.tokens is not None:
        return (
            f"Logits of {manifest['teachers'][0]['name']} for {samples_words(manifest)}, one per target token, with a vocabulary of "
            f"{len(stats.classes):,}. Stored for each row: {kept_words(manifest['encoding'])}."
        )
    return (
        f"Logits of {manifest['teachers'][0]['name']} for {samples_words(manifest)} of {len(stats.classes):,} "
        f"classes, in {counted(len(views), 'view')} of {recipe}. Stored for each row: {kept_words(manifest['encoding'])}."
    )


def _headline(stats: "CacheStats") -> str:
    health, sound = stats.health, _is_sound(stats.health)
    accuracy, error = stats.mean("accuracy"), stats.mean("calibration_error")
    broken = "unfinished" if not health.finished else "damaged" if not health.whole else "suspicious"
    words = "intact" if sound else broken
    note = f"all of {counted(health.blocks, 'block')}" if sound else _problems(health)
    return tiles(
        [
            ("health", words, note, "good" if sound else "bad"),
            (
                "teacher accuracy",
                percent(accuracy),
                "no better than chance" if stats.chance else f"top-5 {percent(stats.mean('top5_accuracy'))}",
                "bad" if stats.chance else "",
            ),
            (
                "calibration error",
                percent(error),
                f"mean confidence {percent(stats.mean('confidence'))}",
                "",
            ),
            _agreement_tile(stats),
            (
                "bytes per row",
                f"{stats.bytes_per_row:.1f} B",
                f"{bytes_text(stats.bytes_total)}; {stats.ratio_to_float32:.2f}x raw float32",
                "",
            ),
        ]
    )


def _agreement_tile(stats: "CacheStats") -> tuple[str, str, str, str]:
    """Return the tile with the agreement between views, or for text, which has a single view, the perplexity."""
    if stats.tokens is not None:
        known = bool(stats.tokens.rows)
        return ("perplexity", number(stats.tokens.perplexity) if known else "-", "of the teacher on this text", "")
    if len(stats.views) == 1 or stats.agreement_of_all is None:
        return ("view agreement", "-", "only one view" if len(stats.views) == 1 else "no sample has all views", "")
    return ("view agreement", percent(stats.agreement_of_all), f"same class in all {len(stats.views)} views", "")


def _is_sound(health: "Health") -> bool:
    return health.whole and not health.constant_rows and not health.not_finite_rows


def _problems(health: "Health") -> str:
    found = [
        "dump unfinished" if not health.finished else "",
        f"{counted(len(health.missing), 'block')} missing" if health.missing else "",
        f"{counted(len(health.damaged), 'block')} damaged" if health.damaged else "",
        f"{counted(health.not_finite_rows, 'row')} with NaN or infinite values" if health.not_finite_rows else "",
        f"{counted(health.constant_rows, 'row')} with equal logits" if health.constant_rows else "",
    ]
    return ", ".join(words for words in found if words)


def _advice(advice: Sequence[str]) -> str:
    if not advice:
        return ""
    grouped: dict[str, list[str]] = {}
    for sentence in advice:
        problem, colon, remedy = sentence.partition(": dump with ")
        grouped.setdefault(f"Dump with {remedy}" if colon else "", []).append(problem)
    alone = [element("li", with_code(sentence)) for sentence in grouped.pop("", [])]
    groups = [
        element("li", with_code(remedy), element("ul", *(element("li", with_code(one)) for one in problems)))
        for remedy, problems in grouped.items()
    ]
    return element("div", element("h3", "Advice"), element("ul", *groups, *alone), class_="advice")


def _cache_section(stats: "CacheStats") -> str:
    manifest, health = stats.manifest, stats.health
    data, views, forward = manifest["data"], manifest["views"], manifest["forward"]
    recipes = list(dict.fromkeys(view["recipe"] for view in views))
    listed_recipes = ", ".join(recipes[:8]) + (f" and {len(recipes) - 8:,} more recipes" if len(recipes) > 8 else "")
    numbers = sorted({view["seed"] for view in views if "seed" in view})  # views of text have none
    seeds = f"; seed {', '.join(map(str, numbers[:8]))}" if numbers else ""
    how = [
        f"batches of {manifest['batch_size']:,}",
        *(f"{key} {value}" for key, value in forward.items() if value and value != "none"),
    ]
    described = facts(
        {
            "teacher": teacher_words(manifest["teachers"][0]),
            "preprocessing": preprocessing_words(manifest["teachers"][0]["preprocessing"], stats.preprocessing_from),
            "class map": class_map_words(manifest["teachers"][0]["class_map"], stats.classes),
            "data": f"{data['spec'] or 'data set object'}; {samples_words(manifest)}, {counted(len(stats.classes), 'class')}",
            "views": f"{len(views):,}: {listed_recipes}{seeds}",
            "encoding": kept_words(manifest["encoding"]),
            "created": ", ".join(words for key, words in stats.made.items() if words and key != "command"),
            "command": f"`{command}`" if (command := stats.made.get("command")) else "",
            "forward pass": f"on {manifest['device']}, {', '.join(how)}",
            "versions": ", ".join(f"{name} {version}" for name, version in manifest["software"].items()),
            "derived from": origin_words(manifest["derived"]),
            "health": "intact: no missing blocks, NaNs or rows of equal logits"
            if _is_sound(health)
            else _problems(health),
            "encoding error": _encoding_error(stats),
            "fingerprint": stats.fingerprint or "none while unfinished",
        }
    )
    broken = [*(f"{words}: missing" for words in health.missing), *(f"{words}: damaged" for words in health.damaged)]
    rest = f"and {len(broken) - _NAMED:,} more; `logitcache verify` lists all of them" if len(broken) > _NAMED else ""
    listed = (
        [element("ul", *(element("li", with_code(words)) for words in [*broken[:_NAMED], rest] if words))]
        if broken
        else []
    )
    return section("Cache", element("div", described, _bytes_by_array(stats), class_="split"), *listed)


def _encoding_error(stats: "CacheStats") -> str:
    probe = stats.probe
    if not probe.rows:
        return ""
    divergence = ", ".join(f"{value:.1e} nats at {word}" for word, value in probe.kl_nats.items())
    changed = f"top class changed in {probe.top1_changed} of {counted(probe.rows, 'row')}"
    merged = ", with the rest as one class" * probe.merged_rest
    return f"largest difference {probe.largest_gap:.2g}; KL {divergence}{merged}; {changed}"


def _bytes_by_array(stats: "CacheStats") -> str:
    sizes = sorted(stats.bytes_by_array.items(), key=lambda item: -item[1])
    slug = stats.manifest["teachers"][0]["slug"]
    rows = [Bar(_array_name(name, slug), size, bytes_text(size)) for name, size in sizes]
    if not rows:
        return ""
    description = f"The largest array is {rows[0].name}, {rows[0].value_text}."
    return captioned(
        "Bytes by array",
        bars("Bytes by array", description, rows),
        "Size of each array in storage. The teacher's logits should take nearly all of it. If digests or ledger dominate, rows are short "
        "or few, or blocks are small.",
    )


def _array_name(array: str, slug: str) -> str:
    """Return the name of an array without the path that all arrays of the teacher share."""
    return array.removeprefix(f"teachers/{slug}/").replace(f"probe/logits/{slug}", "probe logits")


def comparison_html(comparison: "Comparison", classes: Sequence[str], *, spell: "Speller | None" = None) -> str:
    """Return the report about two caches of one data set.

    Args:
        comparison: Comparison of the caches.
        classes: Names of the classes, in index order.
        spell: Function that converts tokens to text; None if the data is not text.
    """
    one, other = comparison.sides
    names = ClassNames(classes)
    title = f"{one.teacher} ({one.encoding}) and {other.teacher} ({other.encoding})"
    return page(
        f"{title} - logitcache",
        element(
            "header",
            element("h1", escape(title)),
            paragraph(
                f"Two caches of one data set, {one.path} (A) and {other.path} (B), compared over "
                f"{counted(comparison.rows, 'row')}.",
                "quiet",
            ),
            tiles(
                [
                    (
                        "same top class",
                        percent(comparison.top1_agreement),
                        f"of {counted(comparison.rows, 'row')}",
                        "",
                    ),
                    ("accuracy of A", percent(one.accuracy), one.encoding, ""),
                    ("accuracy of B", percent(other.accuracy), other.encoding, ""),
                    (
                        "KL(A || B) at T=1",
                        f"{number(comparison.kl_nats.get('T=1', 0.0))} nats",
                        "0 if the logits are equivalent",
                        "",
                    ),
                ]
            ),
            _advice(comparison.advice),
        ),
        element("main", _sides(comparison), _agreement(comparison, names, spell)),
        element(
            "footer",
            escape(f"A: {one.path}, fingerprint {one.fingerprint}. B: {other.path}, fingerprint {other.fingerprint}."),
        ),
    )


def _sides(comparison: "Comparison") -> str:
    def cells(words: str, side: "Side") -> list[str]:
        return [
            escape(f"{words}: {side.teacher}"),
            escape(side.encoding),
            f"{side.bytes_per_row:.1f} B",
            percent(side.accuracy),
            *([f"{side.perplexity:.2f}"] if comparison.tokens is not None else []),
            f"{side.entropy_nats:.3f} nats",
            percent(side.calibration_error),
        ]

    perplexity = ["perplexity"] if comparison.tokens is not None else []
    head = ["", "encoding", "bytes per row", "accuracy", *perplexity, "entropy", "calibration error"]
    return section(
        "Caches",
        table(head, [cells("A", comparison.sides[0]), cells("B", comparison.sides[1])], left=2),
        facts(comparison.same),
    )


def _agreement(comparison: "Comparison", names: ClassNames, spell: "Speller | None") -> str:
    shares = (comparison.both_right, comparison.first_right, comparison.second_right, comparison.both_wrong)
    words = ("both correct", "only A correct", "only B correct", "both wrong")
    quadrants = [
        Bar(word, share, percent(share), series)
        for word, share, series in zip(words, shares, (3, 1, 5, 2), strict=True)
    ]
    kept = table(
        ["temperature", "KL(A || B)", "KL(B || A)"],
        [
            [escape(word), f"{number(value)} nats", f"{number(comparison.kl_back_nats[word])} nats"]
            for word, value in comparison.kl_nats.items()
            if word in comparison.kl_back_nats
        ],
    )
    return section(
        "Agreement",
        element(
            "div",
            captioned(
                "Correct predictions",
                bars("Correct predictions", f"Both are correct on {percent(shares[0])} of rows.", quadrants, full=1.0),
                "Percentages of rows. An average of both teachers can gain on the rows that only one of them gets right. If both are wrong "
                "on many rows, suspect the labels instead of the teachers.",
            ),
            *class_figures(
                comparison.class_agreement,
                names,
                "Agreement by class",
                "Percentage of each class's rows with the same top class in both caches. A student will learn a different concept of a "
                "class far below the others from each teacher.",
            ),
            class_="grid",
        ),
        paragraph(
            "KL divergence between the two distributions, averaged over rows. A higher temperature gives the less likely classes more "
            "weight."
        ),
        kept,
        *(text_comparison(comparison.tokens, spell) if comparison.tokens is not None and spell is not None else []),
    )
