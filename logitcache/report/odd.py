"""Report section about the data: likely label errors and likely duplicates, with their images."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from logitcache.report.markup import element, escape
from logitcache.report.parts import ClassNames, fold, paragraph, picture, section, table
from logitcache.runtime.wording import counted, number, percent

if TYPE_CHECKING:
    from logitcache.stats import CacheStats, Duplicate, OddSample

__all__ = ["data_section", "samples_with_images"]

_CARDS, _PAIRS = 36, 18


def samples_with_images(stats: "CacheStats") -> list[int]:
    """Return the ids of the samples whose images the report shows, ascending."""
    pairs = {sample for pair in stats.duplicates[:_PAIRS] for sample in (pair.first, pair.second)}
    return sorted({one.sample for one in stats.odd[:_CARDS]} | pairs)


def data_section(stats: "CacheStats", names: ClassNames, images: Mapping[int, bytes], without_images: str) -> str:
    """Return the section about the data."""
    why = [paragraph(without_images, "quiet")] if without_images and (stats.odd or stats.duplicates) else []
    return section(
        "Likely label errors and duplicates", *why, *_labels(stats, names, images), *_duplicates(stats, names, images)
    )


def _labels(stats: "CacheStats", names: ClassNames, images: Mapping[int, bytes]) -> list[str]:
    heading = element("h3", "Likely label errors")
    samples = stats.manifest["samples"]
    if not stats.odd:
        if not stats.preview.labelled:
            return [heading, paragraph("Not searched for, because rows of mixed views have two labels.")]
        return [heading, paragraph(f"None found among {samples:,} samples.")]
    views = len(stats.views)
    description = f"In {stats.odd_total:,} of {samples:,} samples ({percent(stats.odd_total / (samples or 1))}), "
    description += (
        "the teacher confidently predicts a class other than the label"
        if views == 1
        else f"the teacher confidently predicts the same class, and not the label, in {'both' if views == 2 else f'all {views}'} views "
        "(or those that can be read)"
    )
    parts = [
        heading,
        paragraph(
            f"{description}. The most confident come first. Check each of them: a wrong label misleads the student and every method that "
            "relies on labels."
        ),
        element("div", *(_card(one, names, images) for one in stats.odd[:_CARDS]), class_="cards"),
    ]
    more = stats.odd[_CARDS:]
    if more:
        rows = [
            [
                f"{one.sample:,}",
                names.marked(one.label),
                names.marked(one.says),
                percent(one.confidence),
                percent(one.label_probability),
            ]
            for one in more
        ]
        head = [stats.row_name, "label", "prediction", "confidence", "label probability"]
        parts.append(fold(f"{len(more):,} more", table(head, rows, left=3)))
    left_out = stats.odd_total - len(stats.odd)
    if left_out > 0:
        parts.append(paragraph(f"{left_out:,} more with a lower confidence are left out.", "quiet"))
    return parts


def _card(one: "OddSample", names: ClassNames, images: Mapping[int, bytes]) -> str:
    return element(
        "article",
        picture(images.get(one.sample), f"sample {one.sample}, labelled {names[one.label]}"),
        element(
            "div",
            element("p", escape(f"sample {one.sample:,}"), class_="quiet"),
            element("p", "label ", element("b", names.marked(one.label))),
            element("p", "prediction ", element("b", names.marked(one.says))),
            element(
                "p",
                escape(f"confidence {percent(one.confidence)}, label {percent(one.label_probability)}"),
                class_="quiet",
            ),
        ),
        class_="card",
    )


def _duplicates(stats: "CacheStats", names: ClassNames, images: Mapping[int, bytes]) -> list[str]:
    heading = element("h3", "Likely duplicates")
    if not stats.duplicates:
        if not stats.duplicates_among:
            return [
                heading,
                paragraph(
                    "No two images have the same pixels in view 0. Their logits were not compared, because these rows have too few."
                ),
            ]
        return [heading, paragraph(f"None found among the {stats.duplicates_among:,} samples searched.")]
    parts = [
        heading,
        paragraph(
            f"Pairs with nearly the same logits, among {counted(stats.duplicates_among, 'sample')}, nearest first. The distance between "
            "their logits is relative to the median distance between nearest neighbors. A duplicate image counts twice in training; with "
            "two different labels, or if it is also in the test data, it distorts results."
        ),
        element("div", *(_pair(pair, names, images) for pair in stats.duplicates[:_PAIRS]), class_="cards"),
    ]
    more = stats.duplicates[_PAIRS:]
    if more:
        rows = [
            [
                f"{pair.first:,} and {pair.second:,}",
                *map(names.marked, pair.labels),
                number(pair.distance),
                "yes" if pair.same_pixels else "no",
            ]
            for pair in more
        ]
        head = ["samples", "label", "label", "distance", "same pixels"]
        parts.append(fold(f"{len(more):,} more", table(head, rows, left=3)))
    return parts


def _pair(pair: "Duplicate", names: ClassNames, images: Mapping[int, bytes]) -> str:
    both = zip((pair.first, pair.second), pair.labels, strict=True)
    sides = (
        element(
            "div",
            picture(images.get(sample), f"sample {sample}, labelled {names[label]}"),
            element("p", escape(f"sample {sample:,}"), class_="quiet"),
            element("p", element("b", names.marked(label))),
        )
        for sample, label in both
    )
    notes = [f"distance {number(pair.distance)}"]
    notes += ["same pixels"] if pair.same_pixels else []
    notes += ["different labels"] if pair.labels[0] != pair.labels[1] else []
    mood = {"class_": "bad"} if pair.labels[0] != pair.labels[1] else {"class_": "quiet"}
    return element("article", *sides, element("p", escape(", ".join(notes)), **mood), class_="pair")
