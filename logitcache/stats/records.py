"""Results of `logitcache stats` as frozen records. Fractions are in [0, 1], divergences and entropies in nats."""

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
    """Quantiles of a quantity over rows: minimum, 5 %, 25 %, median, 75 %, 95 % and maximum; and the mean."""

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
        lower, upper: Range of confidences, (lower, upper].
        rows: Number of rows in the bin.
        confidence: Mean of their largest probability at temperature 1; 0 if there are no rows.
        accuracy: Fraction of them that are correct; 0 if there are no rows.
    """

    lower: float
    upper: float
    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class ViewStats:
    """Statistics of the teacher on one view.

    Attributes:
        view: Index of the view.
        recipe: Recipe of the view.
        rows: Number of rows counted, without those of missing or damaged blocks and those that are not finite.
        accuracy: Fraction of rows whose top class is the label.
        top5_accuracy: Fraction of rows whose label is among the five largest logits, or among the kept ones if these are fewer.
        mis_instruction_rate: Fraction of rows whose top class is not the label, which label-aware methods change.
        confidence: Mean of the largest probability at temperature 1.
        entropy_nats: Mean entropy at temperature 1; for top-k rows, with the tail spread evenly.
        calibration_error: Expected calibration error, 15 bins of equal width (Guo et al., ICML 2017, Eq. 3).
        reliability: Bins of the reliability diagram.
        rank_of_label: Number of rows by the label's rank, from 0. The last element counts all further ranks and the rows whose label is
            not among the k largest. At most 21 elements.
        class_accuracy: Accuracy by class, in the order of the manifest; None if the view has no row of the class.
        class_rows: Number of rows by class.
        constant_rows: Number of rows whose logits are all equal.
        not_finite_rows: Number of rows with NaN or infinite values.
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
    """A label and a wrong prediction of the teacher for it.

    Attributes:
        label, says: Label and predicted class.
        rows: Number of rows with this label and top class, over all views that are not mixed.
        share: Fraction of the label's rows.
    """

    label: int
    says: int
    rows: int
    share: float


@dataclass(frozen=True, slots=True)
class MethodPreview:
    """Effect of methods on a subset of the rows, with the settings of their papers and without a student.

    Attributes:
        rows: Number of rows in the subset.
        labelled: Number of these rows in views that are not mixed. Rows of mixed views have two labels, and methods that read the label
            refuse them.
        loca_changed, swap_changed: Fraction of rows that LoCa and swap edit, over all rows instead of the subset.
        loca_moved, swap_moved: Mean total variation distance (half the sum of the absolute differences of the probabilities at
            temperature 1) of the rows that they edit.
        rld_masked: Fraction of rows in which RLD masks other classes besides the label.
        rld_hidden: Mean number of classes masked in these rows, including the label; for top-k rows at most those kept.
        atkd_temperature: ATKD's temperature by row, from the teacher's logits alone.
        normkd_temperature: NormKD's temperature of the teacher by row.
        deviation: Standard deviation of a row's logits, unbiased.
        mass_outside: Mean probability of the tail of top-k rows, by temperature ("T=1", "T=2", "T=4"); zeros for full rows.
        mass_by_rank: Mean probability of the r-th largest class at temperature 1, for r from 0, for at most 50 ranks.
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
    """A likely label error: the teacher confidently predicts another class in every view.

    Attributes:
        sample: Id of the sample.
        label, says: Label, and the class predicted in every view.
        confidence: Mean probability of `says` over the views.
        label_probability: Mean probability of `label` over the views.
    """

    sample: int
    label: int
    says: int
    confidence: float
    label_probability: float


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Two samples with nearly equal logits or equal pixels, likely the same image.

    Attributes:
        first, second: Sample ids, ascending.
        distance: Distance between their centered logits in view 0, relative to the median distance between nearest neighbours.
        labels: Labels of the two samples.
        same_pixels: Whether the digests of their pixels in view 0 are equal.
    """

    first: int
    second: int
    distance: float
    labels: tuple[int, int]
    same_pixels: bool


@dataclass(frozen=True, slots=True)
class ProbeLoss:
    """Error of the encoding, measured on the probe.

    Attributes:
        rows: Number of rows compared.
        largest_gap: Largest absolute difference of a logit.
        kl_nats: Mean KL(exact || stored) at temperatures 1 and 4.
        top1_changed: Number of rows whose top class changed.
        merged_rest: Whether the classes of the tail count as one, as in training on text, and are left out of `largest_gap`; otherwise
            their mass is spread evenly over them.
    """

    rows: int
    largest_gap: float
    kl_nats: dict[str, float]
    top1_changed: int
    merged_rest: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """Whether all rows can be read and are valid. `logitcache verify` also compares every file with its digest.

    Attributes:
        finished: Whether the dump is finished.
        blocks: Number of blocks that the cache should have, over all views.
        missing: Descriptions of the missing blocks, e.g. "view 3, block 0", and of the probe if it is missing.
        damaged: Descriptions of the blocks that cannot be read.
        constant_rows, not_finite_rows: Number of such rows, over all views.
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
    """Statistics of the teacher on the tokens in a range of positions.

    Attributes:
        first, last: Range of the number of preceding tokens in the context, inclusive.
        rows: Number of tokens.
        surprise_nats: Mean surprisal, -log of the token's probability at temperature 1.
        entropy_nats: Mean entropy.
        accuracy: Fraction of rows whose top class is the token.
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
        position: Number of preceding tokens in the context.
        label: Id of the token.
        says: Id of the most likely token according to the teacher.
        surprise_nats: Surprisal, -log of the token's probability.
        confidence: Probability of the most likely token.
        before: Ids of the preceding tokens, at most 16.
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
    """A context with a far higher surprisal than others: damaged text, another language, or noise.

    Attributes:
        document: Id of the context in the data set.
        rows: Number of its rows, at least 8.
        surprise_nats: Mean surprisal.
        deviations: Distance from the median over contexts, in units of 1.4826 median absolute deviations; above 5.
    """

    document: int
    rows: int
    surprise_nats: float
    deviations: float


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Statistics of the teacher on text, in view 0.

    Attributes:
        rows: Number of tokens.
        surprise_nats: Mean surprisal, -log of a token's probability at temperature 1; its exponential is the teacher's perplexity.
        positions: Statistics by position, in powers of two; empty bins are left out.
        surprising: Most surprising tokens, at most 20.
        documents: Number of contexts that are not excluded.
        copies: Pairs of contexts with the same tokens, (earlier, later), at most 20; only contexts of two or more tokens.
        copies_total: Total number of such pairs.
        odd_documents: Outlier contexts, farthest first, at most 20.
        odd_total: Total number of outlier contexts.
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
        """Perplexity of the teacher per token."""
        return math.exp(min(self.surprise_nats, 700.0))


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """Description of a cache as shown by `logitcache info`, from its manifest and file sizes.

    Attributes:
        path: Path or address of the cache.
        fingerprint: Fingerprint of the cache; empty while it is unfinished.
        finished: Whether the dump is finished.
        blocks: Number of blocks that the cache should have, over all views.
        blocks_there: Number of blocks with all their files.
        rows: Number of rows that the cache should have, over all views.
        rows_there: Number of rows in the blocks with all their files.
        made: Time and place of the dump, from the history: `begun`, `continued` if it was resumed (both UTC), `host`, `device` and
            `command`; empty without a history.
        preprocessing_from: Origin of the preprocessing settings `mean`, `std`, `image_size` and `crop_pct` at the dump, each `option`,
            `weights`, `timm` (its configuration of the architecture), `data` or `default`; empty if the history does not record it.
        manifest: Manifest, reduced to the teacher described.
        bytes_by_array: Bytes in storage by array, and for `metadata` and `.logitcache`.
        bytes_total: Sum of these bytes.
        bytes_per_row: Bytes per row in storage, as defined by `logitcache.store.bytes_per_row`.
        ratio_to_float32: Ratio of bytes_per_row to the size of all logits in raw float32.
        serves: Methods that can train from these rows with the settings of their papers.
        refuses: Reason for each of the other methods.
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
        """Return the record as JSON-compatible objects."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CacheStats(CacheInfo):
    """Results of `logitcache stats`: the description of a cache with one teacher, and statistics of its rows.

    Attributes:
        health: Whether all rows can be read and are valid.
        views: Statistics of the teacher on each view.
        agreement: Fraction of samples with the same top class, for each pair of at most 16 views, [V][V]; None if no sample has both
            views.
        agreement_of_all: Fraction of samples with the same top class in all views, of the samples that have all views; None if none has.
        confusions: Most confused pairs, most rows first, at most 20.
        preview: Effect of methods on the rows.
        odd: Likely label errors, most confident first, at most 100.
        odd_total: Total number of likely label errors.
        duplicates: Likely duplicates, nearest first, at most 100.
        duplicates_among: Number of samples searched for duplicates by logits.
        probe: Error of the encoding.
        tokens: Statistics of text; None for other data.
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
        """Warning if the teacher's accuracy is no better than chance, otherwise empty."""
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
        """Return a statistic of `ViewStats` over the rows of all views; nan if there are no rows."""
        rows = sum(view.rows for view in self.views)
        if name == "calibration_error" and rows:  # from the summed bins, because the mean over views would be larger
            return sum(one.rows * abs(one.accuracy - one.confidence) for one in self.reliability()) / rows
        return sum(view.rows * float(getattr(view, name)) for view in self.views) / rows if rows else math.nan

    def class_accuracy(self) -> list[float | None]:
        """Return the mean accuracy of each class over the views that have rows of it, [C]; None if no view has."""
        found: list[float | None] = []
        for shares in zip(*(view.class_accuracy for view in self.views), strict=True):
            here = [share for share in shares if share is not None]
            found.append(fmean(here) if here else None)
        return found

    def class_samples(self) -> list[int]:
        """Return the number of samples of each class, [C]: the maximum over views, because all views have the same samples."""
        return [max(counts) for counts in zip(*(view.class_rows for view in self.views), strict=True)]

    def rank_of_label(self) -> list[int]:
        """Return the number of rows by the label's rank over all views, like `ViewStats.rank_of_label`."""
        return [sum(counts) for counts in zip(*(view.rank_of_label for view in self.views), strict=True)]

    def reliability(self, together: int = 1) -> list[Bin]:
        """Return the bins of the reliability diagram of all views, with `together` neighbouring bins joined into one."""
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
    """One of two compared caches, with statistics of the rows that both contain.

    Attributes:
        path, fingerprint: Path and fingerprint of the cache.
        teacher: Name of its teacher.
        encoding: Name of its encoding, e.g. "top-20 u8".
        bytes_per_row: Bytes per row in storage, over all files.
        accuracy, entropy_nats, calibration_error: Statistics of the compared rows, as in `ViewStats`.
        surprise_nats: Mean surprisal, -log of the label's probability at temperature 1; for text, its exponential is the perplexity.
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
        """Perplexity of the teacher per token."""
        return math.exp(min(self.surprise_nats, 700.0))


@dataclass(frozen=True, slots=True)
class PairedBin:
    """Comparison of two teachers on the tokens in a range of positions.

    Attributes:
        first, last: Range of the number of preceding tokens in the context, inclusive.
        rows: Number of tokens.
        agreement: Fraction of tokens with the same top class.
        kl_nats: Mean KL(first || second) at temperature 1.
        first_surprise_nats, second_surprise_nats: Mean surprisal of each teacher.
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
    """A token on which two teachers differ.

    Attributes:
        document: Id of its context in the data set.
        position: Number of preceding tokens in the context.
        label: Id of the token.
        first_says, second_says: Id of the most likely token according to each teacher.
        first_probability, second_probability: Probability of the token according to each teacher.
        kl_nats: KL(first || second) at temperature 1.
        before: Ids of the preceding tokens, at most 16.
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
    """Comparison of two teachers on the same text.

    Attributes:
        positions: Statistics by position, in powers of two; empty bins are left out.
        differing: Tokens with the largest KL divergence, at most 20.
    """

    positions: list[PairedBin]
    differing: list[DifferingToken]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of two caches of one data set.

    Attributes:
        sides: Statistics of each cache.
        same: Descriptions of what is the same and what differs, for "teacher", "views", "encoding" and "data".
        rows: Number of rows compared.
        top1_agreement: Fraction of rows with the same top class.
        both_right, first_right, second_right, both_wrong: Fractions of rows for which both, only the first, only the second or neither
            teacher is correct.
        kl_nats: Mean KL(first || second) at "T=1" and "T=4".
        kl_back_nats: Mean KL(second || first) at "T=1" and "T=4".
        class_agreement: Fraction of rows with the same top class by label, None for labels without rows; empty for text.
        advice: Sentences on which cache to prefer for what.
        tokens: Comparison by token; None for images.
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
        """Return the record as JSON-compatible objects."""
        return asdict(self)
