"""What `logitcache stats` finds out, as frozen records: plain numbers, shares in [0, 1], divergences in nats."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from logitcache.runtime.wording import chance_words, is_chance
from logitcache.store import classes_from_json

__all__ = [
    "Bin",
    "CacheInfo",
    "CacheStats",
    "Comparison",
    "Confusion",
    "DifferingToken",
    "Duplicate",
    "Health",
    "MethodPreview",
    "OddDocument",
    "OddSample",
    "PairedBin",
    "PositionBin",
    "ProbeLoss",
    "Quantiles",
    "Side",
    "SurprisingToken",
    "TokenComparison",
    "TokenStats",
    "ViewStats",
]


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Where the values of a quantity over rows lie: minimum, 5 %, 25 %, median, 75 %, 95 %, maximum, and their mean."""

    low: float
    p5: float
    p25: float
    median: float
    p75: float
    p95: float
    high: float
    mean: float


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes:
        lower, upper: Confidence, (lower, upper].
        rows: How many fall in.
        confidence: Their mean largest probability at temperature 1; nan-free: 0 where there are none.
        accuracy: Share of them that are right.
    """

    lower: float
    upper: float
    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class ViewStats:
    """The teacher on one view.

    Attributes:
        view: Its index.
        recipe: How it was made.
        rows: Rows counted (those of missing or damaged blocks, and those that are not finite, are not).
        accuracy: Share of rows whose largest logit is the label's.
        top5_accuracy: Share of rows whose label is among the five largest, or among those kept, where these are fewer.
        mis_instruction_rate: Share of rows whose largest logit is not the label's: those that label-aware methods act on.
        confidence: Mean of the largest probability at temperature 1.
        entropy_nats: Mean entropy at temperature 1 (of a top-k row: with the rest spread evenly).
        calibration_error: Expected calibration error, 15 bins of equal width (Guo et al., ICML 2017, Eq. 3).
        reliability: These bins.
        rank_of_label: Rows by the label's rank (0: the largest); the last number counts every rank from there on, and rows whose
            label is not among the k largest. At most 21 numbers.
        class_accuracy: Of each class, in the manifest's order; None where the view has no row of it.
        class_rows: Rows of each class.
        constant_rows: Rows whose logits are all equal.
        not_finite_rows: Rows with a NaN or an infinity.
    """

    view: int
    recipe: str
    rows: int
    accuracy: float
    top5_accuracy: float
    mis_instruction_rate: float
    confidence: float
    entropy_nats: float
    calibration_error: float
    reliability: list[Bin]
    rank_of_label: list[int]
    class_accuracy: list[float | None]
    class_rows: list[int]
    constant_rows: int
    not_finite_rows: int


@dataclass(frozen=True, slots=True)
class Confusion:
    """A pair of classes that the teacher takes for each other.

    Attributes:
        label, says: Class numbers.
        rows: Rows of all views that are not mixed, with this label and this largest logit.
        share: Of the label's rows.
    """

    label: int
    says: int
    rows: int
    share: float


@dataclass(frozen=True, slots=True)
class MethodPreview:
    """What methods will do with the rows, at their papers' settings; over a sample of the rows, without a student.

    Attributes:
        rows: Rows looked at.
        labelled: Of these, in views that are not mixed: the others have two labels, and methods that read one refuse them.
        loca_changed, swap_changed: Share of rows that LoCa and swap edit; of all rows, not of those looked at alone.
        loca_moved, swap_moved: Mean total variation distance (half the sum of absolute differences of probability at temperature 1) of
            the rows they edit.
        rld_masked: Share of rows in which RLD hides more than the label itself.
        rld_hidden: Mean number of classes hidden in those, the label included; of a top-k row at most those kept.
        atkd_temperature: ATKD's temperature, by row, as the teacher's logits alone would have it.
        normkd_temperature: NormKD's for the teacher, by row.
        deviation: Standard deviation of a row's logits, unbiased.
        mass_outside: Mean probability of what a top-k row does not keep, by temperature ("T=1", "T=2", "T=4"); zeros for full rows.
        mass_by_rank: Mean probability of the r-th largest class at temperature 1, r from 0, as far as rows go (at most 50).
    """

    rows: int
    labelled: int
    loca_changed: float
    loca_moved: float
    swap_changed: float
    swap_moved: float
    rld_masked: float
    rld_hidden: float
    atkd_temperature: Quantiles
    normkd_temperature: Quantiles
    deviation: Quantiles
    mass_outside: dict[str, float]
    mass_by_rank: list[float]


@dataclass(frozen=True, slots=True)
class OddSample:
    """A sample whose label every view of a confident teacher denies: likely a wrong label.

    Attributes:
        sample: Its id.
        label, says: Class numbers: as labelled, as the teacher has it in every view.
        confidence: Mean probability of `says` over the views.
        label_probability: Mean probability of `label`.
    """

    sample: int
    label: int
    says: int
    confidence: float
    label_probability: float


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Two samples that the teacher answers nearly alike: likely one image twice.

    Attributes:
        first, second: Sample ids, ascending.
        distance: Between their centred logits in view 0, relative to the median distance of nearest neighbours.
        labels: Their class numbers.
        same_pixels: The digests of their pixels in view 0 are equal.
    """

    first: int
    second: int
    distance: float
    labels: tuple[int, int]
    same_pixels: bool


@dataclass(frozen=True, slots=True)
class ProbeLoss:
    """What storing has changed, measured against rows kept in full.

    Attributes:
        rows: Rows looked at.
        largest_gap: Largest difference of a logit.
        kl_nats: Mean KL(exact || stored) at temperatures 1 and 4.
        top1_changed: Rows whose largest class is another.
        merged_rest: Whether classes that were not kept count as one, as they do in training on text, and no logit of theirs as stored;
            otherwise what they weigh together is shared among them evenly.
    """

    rows: int
    largest_gap: float
    kl_nats: dict[str, float]
    top1_changed: int
    merged_rest: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the rows are there and make sense; `logitcache verify` compares every file with its digest.

    Attributes:
        finished: The dump has ended.
        blocks: Blocks there should be, of all views.
        missing: Those that are not there, in words ("view 3, block 0"); and the probe, where it is not.
        damaged: Those that are there and cannot be read, in words.
        constant_rows, not_finite_rows: Over all views.
    """

    finished: bool
    blocks: int
    missing: list[str]
    damaged: list[str]
    constant_rows: int
    not_finite_rows: int

    @property
    def whole(self) -> bool:
        """Whether every block can be read."""
        return self.finished and not self.missing and not self.damaged


@dataclass(frozen=True, slots=True)
class PositionBin:
    """The teacher on the tokens at some positions of their contexts.

    Attributes:
        first, last: Tokens before them, at least and at most.
        rows: How many there are.
        surprise_nats: Mean of -log of the token's probability at temperature 1.
        entropy_nats: Mean entropy.
        accuracy: Share of rows whose largest logit is the token's.
    """

    first: int
    last: int
    rows: int
    surprise_nats: float
    entropy_nats: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class SurprisingToken:
    """A token that the teacher did not expect.

    Attributes:
        document: Id of its context in the data set.
        position: Tokens before it there.
        label: Its id.
        says: Id of the teacher's likeliest token.
        surprise_nats: -log of its probability.
        confidence: Probability of the likeliest.
        before: Ids of the tokens before it, at most 16.
    """

    document: int
    position: int
    label: int
    says: int
    surprise_nats: float
    confidence: float
    before: list[int]


@dataclass(frozen=True, slots=True)
class OddDocument:
    """A context that surprises the teacher far more than others: damaged text, another language, or noise.

    Attributes:
        document: Its id in the data set.
        rows: Its rows, 8 or more.
        surprise_nats: Their mean surprise.
        deviations: How far that is above the median of contexts, in 1.4826 median absolute deviations; above 5.
    """

    document: int
    rows: int
    surprise_nats: float
    deviations: float


@dataclass(frozen=True, slots=True)
class TokenStats:
    """The teacher on text, in view 0.

    Attributes:
        rows: Tokens counted.
        surprise_nats: Mean of -log of a token's probability at temperature 1; its exponential is the teacher's perplexity.
        positions: Means by the number of tokens before, in powers of two; empty bins are left out.
        surprising: The most surprising tokens, at most 20.
        documents: Contexts that are not left out.
        copies: Contexts with the same tokens as an earlier one, (earlier, later), at most 20; of two tokens and more.
        copies_total: Number of such pairs.
        odd_documents: Contexts that stand out, farthest first, at most 20.
        odd_total: Number of such documents.
    """

    rows: int
    surprise_nats: float
    positions: list[PositionBin]
    surprising: list[SurprisingToken]
    documents: int
    copies: list[tuple[int, int]]
    copies_total: int
    odd_documents: list[OddDocument]
    odd_total: int

    @property
    def perplexity(self) -> float:
        """The teacher's, per token."""
        return math.exp(min(self.surprise_nats, 700.0))


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a cache is, as `logitcache info` shows it: known from its manifest and the sizes of its files.

    Attributes:
        path: Of the cache.
        fingerprint: Of its content; empty while it is unfinished.
        finished: Whether the dump has ended.
        blocks: Blocks there should be, over all views.
        blocks_there: Those of which every file is there.
        rows: Rows there should be, over all views.
        rows_there: Those of the blocks that are there.
        made: When and on what, from the history: `begun` and, where it was, `continued` (UTC), `host`, `device`, `command`; empty
            where there is none.
        preprocessing_from: Where the teacher's preprocessing came from at the dump: `mean`, `std`, `image_size` and `crop_pct` to `option`,
            `weights` or `data`; empty where the history does not say.
        manifest: Its manifest, narrowed to the teacher described.
        bytes_by_array: In storage, by array, and for `metadata` and `.logitcache`.
        bytes_total: Their sum.
        bytes_per_row: Bytes a row in storage, as `logitcache.store.bytes_per_row` defines it.
        ratio_to_float32: bytes_per_row against the logits of all classes in raw float32.
        serves: Methods that can train from these rows as their papers have them.
        refuses: The others, each with the reason.
    """

    path: str
    fingerprint: str
    finished: bool
    blocks: int
    blocks_there: int
    rows: int
    rows_there: int
    made: dict[str, str]
    preprocessing_from: dict[str, str]
    manifest: dict[str, Any]
    bytes_by_array: dict[str, int]
    bytes_total: int
    bytes_per_row: float
    ratio_to_float32: float
    serves: list[str]
    refuses: dict[str, str]

    @property
    def row_name(self) -> str:
        """Name of a row: "sample" if each sample is one row, else "row"."""
        return "row" if "rows" in self.manifest else "sample"

    @property
    def classes(self) -> Sequence[str]:
        """Class names in index order; numbers where the classes have no names."""
        return classes_from_json(self.manifest["classes"])

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain objects."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CacheStats(CacheInfo):
    """Everything `logitcache stats` prints: what `CacheInfo` has of one teacher, and what its rows say.

    Attributes:
        health: Whether it is whole.
        views: The teacher on each view.
        agreement: Share of samples whose largest class is the same in each pair of views, [V][V]; of at most 16 views; None where no sample
            has both.
        agreement_of_all: Share of samples with one largest class in all views, of those that all views have; None where there are none.
        confusions: The most confused pairs, most rows first, at most 20.
        preview: What methods will do with the rows.
        odd: Samples with likely wrong labels, surest first, at most 100.
        odd_total: Number of such samples.
        duplicates: Likely duplicates, nearest first, at most 100.
        duplicates_among: Samples searched for them.
        probe: What storing has changed.
        tokens: The teacher on text; None of other data.
    """

    health: Health
    views: list[ViewStats]
    agreement: list[list[float | None]]
    agreement_of_all: float | None
    confusions: list[Confusion]
    preview: MethodPreview
    odd: list[OddSample]
    odd_total: int
    duplicates: list[Duplicate]
    duplicates_among: int
    probe: ProbeLoss
    tokens: TokenStats | None = None

    @property
    def chance(self) -> str:
        """A sentence where the teacher is right no more often than chance, else nothing."""
        rows, classes = sum(view.rows for view in self.views), len(self.classes)
        right = round(sum(view.rows * view.accuracy for view in self.views))
        return (
            chance_words(
                self.manifest["teachers"][0]["name"], right / rows, rows, classes, text=self.tokens is not None
            )
            if is_chance(right, rows, classes)
            else ""
        )

    def mean(self, name: str) -> float:
        """Return one of the numbers of views over all their rows, the calibration error of all together; nan where there are none."""
        rows = sum(view.rows for view in self.views)
        if name == "calibration_error" and rows:  # of the bins added up: its mean over views would be larger
            return sum(one.rows * abs(one.accuracy - one.confidence) for one in self.reliability()) / rows
        return sum(view.rows * float(getattr(view, name)) for view in self.views) / rows if rows else math.nan

    def class_accuracy(self) -> list[float | None]:
        """Return each class's mean over the views that have rows of it, [C]; None where none has."""
        found: list[float | None] = []
        for shares in zip(*(view.class_accuracy for view in self.views), strict=True):
            here = [share for share in shares if share is not None]
            found.append(fmean(here) if here else None)
        return found

    def class_samples(self) -> list[int]:
        """Return the samples of each class, [C]: its rows in the view that has most of them, because views show the same samples."""
        return [max(counts) for counts in zip(*(view.class_rows for view in self.views), strict=True)]

    def rank_of_label(self) -> list[int]:
        """Return the rows of all views by the label's rank, as a view has them."""
        return [sum(counts) for counts in zip(*(view.rank_of_label for view in self.views), strict=True)]

    def reliability(self, together: int = 1) -> list[Bin]:
        """Return the bins of all views added up, and some neighbours put together."""
        places = list(zip(*(view.reliability for view in self.views), strict=True))
        return [
            _joined([one for bins in places[start : start + together] for one in bins])
            for start in range(0, len(places), together)
        ]


def _joined(bins: list[Bin]) -> Bin:
    rows = sum(one.rows for one in bins)
    confidence, accuracy = (sum(one.rows * getattr(one, name) for one in bins) for name in ("confidence", "accuracy"))
    return Bin(bins[0].lower, bins[-1].upper, rows, confidence / max(rows, 1), accuracy / max(rows, 1))


@dataclass(frozen=True, slots=True)
class Side:
    """One of two caches that are compared, over the rows that both hold.

    Attributes:
        path, fingerprint: Which.
        teacher: Its name.
        encoding: In words ("top-20 u8").
        bytes_per_row: Size on disk of a row (one sample in one view), all files.
        accuracy, entropy_nats, calibration_error: Over the rows compared.
        surprise_nats: Mean of -log of the label's probability at temperature 1; of text its exponential is the perplexity.
    """

    path: str
    fingerprint: str
    teacher: str
    encoding: str
    bytes_per_row: float
    accuracy: float
    entropy_nats: float
    calibration_error: float
    surprise_nats: float = math.nan

    @property
    def perplexity(self) -> float:
        """The teacher's, per token."""
        return math.exp(min(self.surprise_nats, 700.0))


@dataclass(frozen=True, slots=True)
class PairedBin:
    """Two teachers on the tokens at some positions of their contexts.

    Attributes:
        first, last: Tokens before them, at least and at most.
        rows: How many there are.
        agreement: Share with the same largest class.
        kl_nats: Mean KL(first || second) at temperature 1.
        first_surprise_nats, second_surprise_nats: Mean of -log of the token's probability of each.
    """

    first: int
    last: int
    rows: int
    agreement: float
    kl_nats: float
    first_surprise_nats: float
    second_surprise_nats: float


@dataclass(frozen=True, slots=True)
class DifferingToken:
    """A token of which two teachers expect something else.

    Attributes:
        document: Id of its context in the data set.
        position: Tokens before it there.
        label: Its id.
        first_says, second_says: Likeliest token of each.
        first_probability, second_probability: Of the token, by each.
        kl_nats: KL(first || second) at temperature 1.
        before: Ids of the tokens before it, at most 16.
    """

    document: int
    position: int
    label: int
    first_says: int
    second_says: int
    first_probability: float
    second_probability: float
    kl_nats: float
    before: list[int]


@dataclass(frozen=True, slots=True)
class TokenComparison:
    """Two teachers on the same text.

    Attributes:
        positions: Means by the number of tokens before, in powers of two; empty bins are left out.
        differing: Tokens about which they differ most, at most 20.
    """

    positions: list[PairedBin]
    differing: list[DifferingToken]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two caches of one data set, row by row.

    Attributes:
        sides: The two.
        same: What is the same in both and what differs ("teacher", "views", "encoding", "data"), in words.
        rows: Rows compared.
        top1_agreement: Share of rows with the same largest class.
        both_right, first_right, second_right, both_wrong: Shares of rows.
        kl_nats: Mean KL(first || second) at "T=1" and "T=4".
        kl_back_nats: Mean KL(second || first).
        class_agreement: Share of rows with the same largest class, by label; None where there is none. Of text empty.
        tokens: The two on text; None of images.
        advice: Which to prefer for what, in sentences.
    """

    sides: tuple[Side, Side]
    same: dict[str, str]
    rows: int
    top1_agreement: float
    both_right: float
    first_right: float
    second_right: float
    both_wrong: float
    kl_nats: dict[str, float]
    kl_back_nats: dict[str, float]
    class_agreement: list[float | None]
    advice: list[str]
    tokens: TokenComparison | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain objects."""
        return asdict(self)
