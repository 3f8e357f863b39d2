"""The page of `logitcache stats --report`: one file of HTML with everything inside; and the smaller one of two caches."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from logitcache.report.charts import Bar, bars
from logitcache.report.markup import element, told, with_code
from logitcache.report.methods import what_a_method_will_do
from logitcache.report.odd import shown_samples, what_is_odd
from logitcache.report.parts import ClassNames, captioned, facts, page, paragraph, section, table, tiles
from logitcache.report.quality import class_figures, how_good
from logitcache.report.tokens import two_on_text, what_text_is
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

__all__ = ["comparison_html", "report_html", "shown_samples"]

_NAMED = 20  # blocks that are named, of those missing or damaged


def report_html(
    stats: "CacheStats",
    fidelity: "Fidelity | None",
    advice: Sequence[str],
    images: Mapping[int, bytes],
    *,
    without_images: str = "",
    spell: "Speller | None" = None,
) -> str:
    """Write the page about a cache.

    Args:
        stats: What was found.
        fidelity: What storing does to methods; None: it was not measured.
        advice: Sentences; code stands between backticks.
        images: PNGs of samples by id; see `shown_samples`.
        without_images: Why there are none, in a sentence.
        spell: Function that writes tokens as text; None if the data is not text.

    Returns:
        A file of HTML that is whole in itself: no script, nothing to fetch.
    """
    manifest, names = stats.manifest, ClassNames(stats.classes)
    data = "/".join(manifest["data"]["spec"].split("/")[-2:])  # of a path its end
    title = f"{manifest['teachers'][0]['name']} on {data or 'a data set'}"
    return page(
        f"{title} - logitcache",
        element(
            "header",
            element("h1", told(title)),
            paragraph(_sentence(stats), "quiet"),
            _headline(stats),
            _advice(advice),
        ),
        element(
            "main",
            _what_it_is(stats),
            how_good(stats, names),
            what_a_method_will_do(stats, fidelity),
            what_text_is(stats.tokens, spell)
            if stats.tokens is not None and spell is not None
            else what_is_odd(stats, names, images, without_images),
        ),
        _foot(f"{stats.path}, fingerprint {stats.fingerprint or 'none while unfinished'}", manifest["software"]),
    )


def _foot(words: str, software: Mapping[str, str]) -> str:
    version = software.get("logitcache", "")
    return element(
        "footer", told(f"{words}. Dumped by logitcache {version}. Shares are of rows: a row is one sample in one view.")
    )


def _sentence(stats: "CacheStats") -> str:
    manifest = stats.manifest
    views, recipes = manifest["views"], sorted({view["recipe"] for view in manifest["views"]})
    recipe = recipes[0] if len(recipes) == 1 else f"{len(recipes)} recipes"
    if stats.tokens is not None:
        return (
            f"What {manifest['teachers'][0]['name']} says about {samples_words(manifest)}, one a target token, with a vocabulary of "
            f"{len(stats.classes):,}; of each row {kept_words(manifest['encoding'])}."
        )
    return (
        f"What {manifest['teachers'][0]['name']} says about {samples_words(manifest)} of {len(stats.classes):,} "
        f"classes, in {counted(len(views), 'view')} of {recipe}; of each row {kept_words(manifest['encoding'])}."
    )


def _headline(stats: "CacheStats") -> str:
    health, sound = stats.health, _is_sound(stats.health)
    accuracy, error = stats.mean("accuracy"), stats.mean("calibration_error")
    words = "whole" if sound else "not whole" if not health.whole else "look closer"
    note = f"{counted(health.blocks, 'block')}, all there" if sound else _complaint(health)
    return tiles(
        [
            ("health", words, note, "good" if sound else "bad"),
            (
                "teacher accuracy",
                percent(accuracy),
                "no more often than chance" if stats.chance else f"top-5 {percent(stats.mean('top5_accuracy'))}",
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
                "bytes a row",
                f"{stats.bytes_per_row:.1f} B",
                f"{bytes_text(stats.bytes_total)}; {stats.ratio_to_float32:.2f} of raw float32",
                "",
            ),
        ]
    )


def _agreement_tile(stats: "CacheStats") -> tuple[str, str, str, str]:
    """Return the tile about agreement: of views, or of text, which has one rendition, of the teacher with the text."""
    if stats.tokens is not None:
        known = bool(stats.tokens.rows)
        return ("perplexity", number(stats.tokens.perplexity) if known else "-", "of the teacher on this text", "")
    if len(stats.views) == 1 or stats.agreement_of_all is None:
        return ("agreement of views", "-", "one view" if len(stats.views) == 1 else "no sample has all views", "")
    return ("agreement of views", percent(stats.agreement_of_all), f"one class in all {len(stats.views)} views", "")


def _is_sound(health: "Health") -> bool:
    return health.whole and not health.constant_rows and not health.not_finite_rows


def _complaint(health: "Health") -> str:
    found = [
        "the dump has not ended" if not health.finished else "",
        f"{counted(len(health.missing), 'block')} missing" if health.missing else "",
        f"{counted(len(health.damaged), 'block')} damaged" if health.damaged else "",
        f"{counted(health.not_finite_rows, 'row')} with NaN or infinity" if health.not_finite_rows else "",
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


def _what_it_is(stats: "CacheStats") -> str:
    manifest, health = stats.manifest, stats.health
    data, views, forward = manifest["data"], manifest["views"], manifest["forward"]
    recipes = list(dict.fromkeys(view["recipe"] for view in views))
    said = ", ".join(recipes[:8]) + (f" and {len(recipes) - 8:,} more recipes" if len(recipes) > 8 else "")
    numbers = sorted({view["seed"] for view in views if "seed" in view})  # views of text have none
    seeds = f"; seed {', '.join(map(str, numbers[:8]))}" if numbers else ""
    how = [
        f"batches of {manifest['batch_size']:,}",
        *(f"{key} {value}" for key, value in forward.items() if value and value != "none"),
    ]
    described = facts(
        {
            "teacher": teacher_words(manifest["teachers"][0]),
            "it sees": preprocessing_words(manifest["teachers"][0]["preprocessing"], stats.preprocessing_from),
            "class map": class_map_words(manifest["teachers"][0]["class_map"], stats.classes),
            "data": f"{data['spec'] or 'a data set given as an object'}; {samples_words(manifest)}, {counted(len(stats.classes), 'class')}",
            "views": f"{len(views):,}: {said}{seeds}",
            "kept": kept_words(manifest["encoding"]),
            "made": ", ".join(words for key, words in stats.made.items() if words and key != "command"),
            "command": f"`{command}`" if (command := stats.made.get("command")) else "",
            "forward pass": f"on {manifest['device']}, {', '.join(how)}",
            "versions": ", ".join(f"{name} {version}" for name, version in manifest["software"].items()),
            "made from": origin_words(manifest["derived"]),
            "health": "whole: every block is there, no NaN, no row of equal logits"
            if _is_sound(health)
            else _complaint(health),
            "lost in storing": _lost(stats),
            "fingerprint": stats.fingerprint or "none while unfinished",
        }
    )
    broken = [*(f"{words}: missing" for words in health.missing), *(f"{words}: damaged" for words in health.damaged)]
    rest = f"and {len(broken) - _NAMED:,} more: `logitcache verify` names them all" if len(broken) > _NAMED else ""
    listed = (
        [element("ul", *(element("li", with_code(words)) for words in [*broken[:_NAMED], rest] if words))]
        if broken
        else []
    )
    return section("The cache", element("div", described, _sizes(stats), class_="split"), *listed)


def _lost(stats: "CacheStats") -> str:
    probe = stats.probe
    if not probe.rows:
        return ""
    divergence = ", ".join(f"{value:.1e} nats at {word}" for word, value in probe.kl_nats.items())
    changed = f"top class changed in {probe.top1_changed} of {counted(probe.rows, 'row')}"
    merged = ", the rest as one class" * probe.merged_rest
    return f"largest gap {probe.largest_gap:.2g}; KL {divergence}{merged}; {changed}"


def _sizes(stats: "CacheStats") -> str:
    sizes = sorted(stats.bytes_by_array.items(), key=lambda item: -item[1])
    slug = stats.manifest["teachers"][0]["slug"]
    rows = [Bar(_array_name(name, slug), size, bytes_text(size)) for name, size in sizes]
    if not rows:
        return ""
    says = f"{rows[0].name} takes most: {rows[0].said}."
    return captioned(
        "Bytes by array",
        bars("Bytes by array", says, rows),
        "What each array takes on disk. The teacher's logits should take nearly all; where the digests or the "
        "ledger do, rows are short or few, or blocks small.",
    )


def _array_name(array: str, slug: str) -> str:
    """Name an array of the teacher that the page is about without the folders that all of them have."""
    return array.removeprefix(f"teachers/{slug}/").replace(f"probe/logits/{slug}", "probe logits")


def comparison_html(comparison: "Comparison", classes: Sequence[str], *, spell: "Speller | None" = None) -> str:
    """Write the page about two caches of one data set.

    Args:
        comparison: What was found.
        classes: Their names in index order.
        spell: Function that writes tokens as text; None if the data is not text.
    """
    one, other = comparison.sides
    names = ClassNames(classes)
    title = f"{one.teacher} ({one.encoding}) and {other.teacher} ({other.encoding})"
    return page(
        f"{title} - logitcache",
        element(
            "header",
            element("h1", told(title)),
            paragraph(
                f"Two caches of one data set, {one.path} (A) and {other.path} (B), compared over "
                f"{counted(comparison.rows, 'row')}.",
                "quiet",
            ),
            tiles(
                [
                    (
                        "say the same class",
                        percent(comparison.top1_agreement),
                        f"of {counted(comparison.rows, 'row')}",
                        "",
                    ),
                    ("A is right", percent(one.accuracy), one.encoding, ""),
                    ("B is right", percent(other.accuracy), other.encoding, ""),
                    (
                        "KL(A || B) at T=1",
                        f"{number(comparison.kl_nats.get('T=1', 0.0))} nats",
                        "0: they say the same",
                        "",
                    ),
                ]
            ),
            _advice(comparison.advice),
        ),
        element("main", _sides(comparison), _agreement(comparison, names, spell)),
        element(
            "footer",
            told(f"A: {one.path}, fingerprint {one.fingerprint}. B: {other.path}, fingerprint {other.fingerprint}."),
        ),
    )


def _sides(comparison: "Comparison") -> str:
    def cells(words: str, side: "Side") -> list[str]:
        return [
            told(f"{words}: {side.teacher}"),
            told(side.encoding),
            f"{side.bytes_per_row:.1f} B",
            percent(side.accuracy),
            *([f"{side.perplexity:.2f}"] if comparison.tokens is not None else []),
            f"{side.entropy_nats:.3f} nats",
            percent(side.calibration_error),
        ]

    perplexity = ["perplexity"] if comparison.tokens is not None else []
    head = ["", "encoding", "bytes a row", "accuracy", *perplexity, "entropy", "calibration error"]
    return section(
        "The two",
        table(head, [cells("A", comparison.sides[0]), cells("B", comparison.sides[1])], left=2),
        facts(comparison.same),
    )


def _agreement(comparison: "Comparison", names: ClassNames, spell: "Speller | None") -> str:
    shares = (comparison.both_right, comparison.first_right, comparison.second_right, comparison.both_wrong)
    words = ("both are right", "only A is right", "only B is right", "both are wrong")
    quadrants = [
        Bar(word, share, percent(share), series)
        for word, share, series in zip(words, shares, (3, 1, 5, 2), strict=True)
    ]
    kept = table(
        ["temperature", "KL(A || B)", "KL(B || A)"],
        [
            [told(word), f"{number(value)} nats", f"{number(comparison.kl_back_nats[word])} nats"]
            for word, value in comparison.kl_nats.items()
            if word in comparison.kl_back_nats
        ],
    )
    return section(
        "Where they agree",
        element(
            "div",
            captioned(
                "Who is right",
                bars("Who is right", f"Both are right on {percent(shares[0])} of rows.", quadrants, full=1.0),
                "Shares of rows. Where each is right alone is what an average of both could gain; a large share "
                "that both have wrong points at labels, not at teachers.",
            ),
            *class_figures(
                comparison.class_agreement,
                names,
                "Agreement by class",
                "Share of each class's rows about which both say the same. A class far below the others is seen "
                "differently by the two: a student will learn another notion of it from each.",
            ),
            class_="grid",
        ),
        paragraph(
            "How far apart their probabilities are, in the mean over rows; a softer temperature weighs the small "
            "classes more."
        ),
        kept,
        *(two_on_text(comparison.tokens, spell) if comparison.tokens is not None and spell is not None else []),
    )
