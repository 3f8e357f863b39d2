"""Metrics of an epoch, as in `metrics.jsonl`. torch is not imported here."""

from typing import NotRequired, TypedDict

__all__ = ["EpochMetrics"]


class EpochMetrics(TypedDict):
    """Metrics of one epoch. Metrics that do not apply to the method or the data are left out.

    Attributes:
        epoch: Number of the epoch, from 1.
        view: Index of the view trained on, or of the first one of a pair.
        views: Indices of all views of a pair.
        lr: Learning rate of the last step.
        loss: Mean training loss.
        ce: Mean cross-entropy, before its weight but with class weights.
        kd: Mean distillation term, before its weight; 0 without a teacher.
        train_accuracy: Fraction of training rows classified correctly, in training mode.
        teacher_agreement: Fraction of training rows on which student and teacher predict the same class.
        refined_rows: Fraction of rows whose teacher logits were corrected by the label.
        unranked_rows: Fraction of rows whose label is not among the largest logits that a top-k cache keeps.
        seconds: Training time in seconds, without evaluation.
        images_per_second: Training speed in images; for other data the key has the name of its unit.
        windows: Number of windows the epoch was read in, if more than one.
        left_out: Number of samples in no batch of this epoch, with `drop_last`; the other metrics do not include them.
        test_accuracy: Fraction of test samples classified correctly.
        test_top5_accuracy: Fraction of test samples whose class is among the student's five largest logits; with more than five classes.
        test_loss: Mean cross-entropy on the test samples.
        test_ece: Expected calibration error on the test samples, 15 bins.
        perplexity: For text, exp of the mean cross-entropy on the test tokens.
        bits_per_byte: For text, cross-entropy on the test tokens in bits, divided by the bytes of the text, if these are known and every
            token is a target.
        kl_to_teacher: Mean KL(teacher || student) at temperature 1 in nats, on held-out documents. A lower bound for top-k caches, whose
            other classes are merged into one.
        test_teacher_agreement: Fraction of these rows on which student and teacher predict the same class.
        topk_overlap: Mean share of the teacher's ten largest classes (or of as many as the cache keeps) that are among the same number of
            the student's.
        rouge_l: Mean ROUGE-L of completions of test prompts, in [0, 1], if they are generated.
        ema_test_accuracy: Test accuracy of the averaged weights.
        ema_test_top5_accuracy: Top-5 test accuracy of the averaged weights.
        ema_test_loss: Test loss of the averaged weights, for data whose headline metric it is.
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
