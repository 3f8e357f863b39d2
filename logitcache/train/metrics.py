"""What is measured in an epoch, as `metrics.jsonl` has it (no torch)."""

from typing import NotRequired, TypedDict

__all__ = ["EpochMetrics"]


class EpochMetrics(TypedDict):
    """Metrics of one epoch. What does not apply to the method or the data is left out.

    Attributes:
        epoch: Number of the epoch, from 1.
        view: Index of the view that was shown, the first one of a pair.
        views: Indices of all views of a pair.
        lr: Learning rate of the last step.
        loss: Mean training loss.
        ce: Mean cross-entropy, without its weight, but with those of the classes.
        kd: Mean distillation term, without its weight; 0 without a teacher.
        train_accuracy: Fraction of training rows classified correctly, in training mode.
        teacher_agreement: Fraction of training rows on which student and teacher predict the same class.
        refined_rows: Fraction of rows whose teacher logits were changed by the label.
        unranked_rows: Fraction of rows whose label is not among the largest logits that a top-k cache kept.
        seconds: Training time in seconds, without evaluation.
        images_per_second: Training speed; of other data under the name of its unit, as `sequences_per_second`.
        windows: Number of windows the epoch was read in, if more than one.
        left_out: Number of samples that were in no batch of this epoch, with `drop_last`; other metrics are of those that were.
        test_accuracy: Fraction of test samples classified correctly.
        test_top5_accuracy: Fraction of test samples whose class is among the student's five largest logits; with more than five classes.
        test_loss: Mean cross-entropy on the test samples.
        test_ece: Expected calibration error on the test samples, 15 bins.
        perplexity: Of text, exp of the mean cross-entropy on the test tokens.
        bits_per_byte: Of text, their cross-entropy in bits by the bytes of the text, where these are known and every token is a target.
        kl_to_teacher: Mean KL(teacher || student) at temperature 1 in nats, on documents that are held out. A lower bound where
            the cache keeps the largest logits: all others count as one class.
        test_teacher_agreement: Fraction of those rows on which student and teacher predict the same class.
        topk_overlap: Mean share of the teacher's ten largest classes, or of as many as the cache keeps, among as many of the student's.
        rouge_l: Mean ROUGE-L of completions of test prompts, in [0, 1], where they are generated.
        ema_test_accuracy: Test accuracy of the averaged weights.
        ema_test_top5_accuracy: The same among the five largest logits.
        ema_test_loss: Test loss of the averaged weights, for data that is judged by its loss.
        ema_rouge_l: ROUGE-L of the averaged weights.
    """

    epoch: int
    view: int
    views: NotRequired[list[int]]
    lr: float
    loss: float
    ce: float
    kd: float
    train_accuracy: float
    teacher_agreement: NotRequired[float]
    refined_rows: NotRequired[float]
    unranked_rows: NotRequired[float]
    seconds: float
    images_per_second: NotRequired[float]
    windows: NotRequired[int]
    left_out: NotRequired[int]
    test_accuracy: NotRequired[float]
    test_top5_accuracy: NotRequired[float]
    test_loss: NotRequired[float]
    test_ece: NotRequired[float]
    perplexity: NotRequired[float]
    bits_per_byte: NotRequired[float]
    kl_to_teacher: NotRequired[float]
    test_teacher_agreement: NotRequired[float]
    topk_overlap: NotRequired[float]
    rouge_l: NotRequired[float]
    ema_test_accuracy: NotRequired[float]
    ema_test_top5_accuracy: NotRequired[float]
    ema_test_loss: NotRequired[float]
