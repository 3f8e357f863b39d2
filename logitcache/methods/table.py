"""The table of methods. To add one, write a module in this package and add a row here."""

import functools
import inspect
from typing import Any

from torch import Tensor, nn

from logitcache.errors import InputError, unknown_name
from logitcache.methods._ops import misclassified
from logitcache.methods._parameters import qualified_name
from logitcache.methods.atkd import adaptive
from logitcache.methods.clkd import clkd
from logitcache.methods.dist import dist
from logitcache.methods.distillation import Distillation
from logitcache.methods.distillm import (
    jsd,
    jsd_condensed,
    reverse_kl,
    reverse_kl_condensed,
    skew_kl,
    skew_kl_condensed,
    skew_reverse_kl,
    skew_reverse_kl_condensed,
)
from logitcache.methods.dkd import dkd, dkd_condensed
from logitcache.methods.kd import kd, kd_condensed, kd_drawn
from logitcache.methods.ldrld import ldrld
from logitcache.methods.loca import loca
from logitcache.methods.lskd import standardize
from logitcache.methods.method import LossFunction, Method, MethodLike
from logitcache.methods.mlkd import mlkd
from logitcache.methods.normkd import by_deviation
from logitcache.methods.rc import rc, rc_drawn
from logitcache.methods.revision import revision
from logitcache.methods.rld import contradicts, rld, rld_condensed
from logitcache.methods.sld import sld, sld_condensed, swap
from logitcache.methods.tad import tad, tail_mass
from logitcache.methods.ttm import ttm, wttm
from logitcache.methods.wsld import wsld
from logitcache.runtime.plugins import resolve

__all__ = ["METHODS", "find_method", "given_loss", "method_name"]

_TWENTY_EPOCHS = 20 / 240  # warm-up of DKD and RLD on CIFAR-100, as a fraction of the training

_LANGUAGE = {
    "temperature": 1.0,
    "ce_weight": 0.0,
    "kd_weight": 1.0,
}  # the divergence alone, as is usual for language models
_THIRD_PARTIES = {"reduction": "mean", "ce_weight": 0.1}  # common to all third-party variants of CLKD

METHODS: dict[str, Method] = {
    "atkd": Method(
        "Set each row's temperature from its largest z-scored logit.",
        "Adaptive Temperature Based on Logits Correlation, 2025, arXiv 2503.09030",
        kd,
        condensed=kd_condensed,
        ignores_labels=True,
        source="kei813121/atkd",
        standardize=True,
        temperature="adaptive",
        ce_weight=0.1,
        kd_weight=9.0,
        about=adaptive,
    ),
    "ce": Method("Labels alone: the baseline without a teacher.", "-", None, kd_weight=0.0, needs="labels"),
    "clkd": Method(
        "Match rows, columns and class correlations of raw logits.",
        "Class-aware Information for Logit-based KD, 2022, arXiv 2211.14773",
        clkd,
        ignores_labels=True,
        source="none released; third party HyunJunSik/Malware-KD",
        needs="every class",
        couples_batch=True,
        parts={"INS + CLA": {"nu": 0.0}, "CC": {"mu": 0.0}},
        presets={
            "mean": {**_THIRD_PARTIES, "correlation": "class_cov"},
            "sum": {**_THIRD_PARTIES, "correlation": "class_cov", "reduction": "sum"},
            "malware-kd": {**_THIRD_PARTIES, "correlation": "batch_gram", "divisor": "classes"},
            "not-squared": {**_THIRD_PARTIES, "correlation": "class_cov", "divisor": "classes", "squared": False},
        },
    ),
    "dist": Method(
        "Match correlations within samples and within classes, not the values.",
        "Huang et al., NeurIPS 2022, arXiv 2205.10536",
        dist,
        ignores_labels=True,
        source="hunto/DIST_KD, zkxufo/TTM",
        needs="every class",
        couples_batch=True,
        parts={"rows": {"gamma": 0.0}, "columns": {"beta": 0.0}},
        presets={"t-1": {"temperature": 1.0}},
    ),
    "dkd": Method(
        "Weight the target class and the non-target classes separately.",
        "Zhao et al., CVPR 2022, arXiv 2203.08679",
        dkd,
        condensed=dkd_condensed,
        source="megvii-research/mdistiller",
        takes_bucket=True,
        parts={"TCKD": {"beta": 0.0}, "NCKD": {"alpha": 0.0}},
        warmup=_TWENTY_EPOCHS,
        presets={
            "vgg13-vgg8": {"beta": 6.0},
            "wrn-40-2-wrn-16-2": {"beta": 6.0},
            "resnet56-resnet20": {"beta": 2.0},
            "resnet110-resnet32": {"beta": 2.0},
            "imagenet-resnet34-resnet18": {"beta": 0.5, "temperature": 1.0, "warmup": 0.01},
            "imagenet-resnet50-mobilenetv1": {"beta": 2.0, "temperature": 1.0, "warmup": 0.01},
            "standardize": {"alpha": 9.0, "beta": 72.0, "temperature": 2.0, "standardize": True},
            "adaptive": {"temperature": "adaptive"},
        },
    ),
    "jsd": Method(
        "Compare student and teacher with their mixture.",
        "Ko et al., ICML 2024, arXiv 2402.03898",
        jsd,
        condensed=jsd_condensed,
        ignores_labels=True,
        source="jongwooko/distillm",
        takes_bucket=True,
        temperature=4.0,
        ce_weight=0.1,
        kd_weight=10.0,
        presets={"language": _LANGUAGE},
    ),
    "kd": Method(
        "Match the teacher's softened distribution.",
        "Hinton et al., 2014, arXiv 1503.02531",
        kd,
        condensed=kd_condensed,
        drawn=kd_drawn,
        ignores_labels=True,
        source="megvii-research/mdistiller",
        takes_bucket=True,
        ce_weight=0.1,
        kd_weight=0.9,
        presets={
            "language": _LANGUAGE,
            "imagenet-resnet34-resnet18": {"temperature": 1.0, "ce_weight": 1.0, "kd_weight": 0.5},
            "imagenet-resnet50-mobilenetv1": {"temperature": 1.0, "ce_weight": 0.5, "kd_weight": 0.5},
        },
    ),
    "ldrld": Method(
        "Match the student's top classes pairwise.",
        "Local Dense Logit Relations, ICCV 2025, arXiv 2507.15911",
        ldrld,
        ignores_labels=True,
        source="yema-web/LDRLD",
        needs="every class",
        parts={"LOCAL": {"beta": 0.0}, "rest": {"alpha": 0.0}},
    ),
    "loca": Method(
        "Raise the label to the top of rows that the teacher gets wrong.",
        "LoCa, ECAI 2024, arXiv 2409.04778",
        kd,
        condensed=kd_condensed,
        ignores_labels=True,
        source="none released",
        takes_bucket=True,
        refine="loca",
        ce_weight=0.1,
        kd_weight=0.9,
        about=loca,
        presets={"language": _LANGUAGE},
    ),
    "lskd": Method(
        "KD on z-scored logits.",
        "Sun et al., CVPR 2024, arXiv 2403.01427",
        kd,
        condensed=kd_condensed,
        ignores_labels=True,
        source="sunshangquan/logit-standardization-KD",
        standardize=True,
        temperature=2.0,
        ce_weight=0.1,
        kd_weight=9.0,
        about=standardize,
    ),
    "mlkd": Method(
        "Match samples, similarities of samples and similarities of classes.",
        "Jin et al., CVPR 2023",
        mlkd,
        ignores_labels=True,
        source="Jin-Ying/Multi-Level-Logit-Distillation (without its bugs)",
        needs="every class",
        temperature=(4.0, 2.0, 3.0, 5.0, 6.0),
        ce_weight=0.1,
        kd_weight=0.9,
        couples_batch=True,
        pairs_views=True,
        presets={
            "as-published": {"balanced": False},
            "adaptive": {"temperature": ("adaptive", 2.0, 3.0, 5.0, 6.0)},
        },
    ),
    "normkd": Method(
        "Set each row's temperature from the deviation of its logits, per network.",
        "NormKD, 2023, arXiv 2308.00520",
        kd,
        condensed=kd_condensed,
        ignores_labels=True,
        source="gizi1/NormKD",
        temperature="deviation",
        ce_weight=0.1,
        kd_weight=0.9,
        presets={"imagenet": {"temperature": 1.0, "ce_weight": 0.5, "kd_weight": 0.5}},
        about=by_deviation,
    ),
    "rc": Method(
        "KD, plus self-distillation with the label raised to the top.",
        "as reimplemented by Sun et al., ICCV 2025",
        rc,
        drawn=rc_drawn,
        source="zju-SWJ/RLD",
        parts={"teacher": {"rc_weight": 0.0}, "itself": {"kl_weight": 0.0}},
    ),
    "reverse_kl": Method(
        "Concentrate the student on the teacher's modes.",
        "Gu et al., ICLR 2024, arXiv 2306.08543",
        reverse_kl,
        condensed=reverse_kl_condensed,
        ignores_labels=True,
        source="jongwooko/distillm",
        takes_bucket=True,
        temperature=4.0,
        ce_weight=0.1,
        kd_weight=0.9,
        presets={"language": _LANGUAGE},
    ),
    "revision": Method(
        "Match logits on right rows, a corrected distribution on wrong ones.",
        "Lan et al., 2024, arXiv 2404.03693",
        revision,
        source="zju-SWJ/RLD",
        needs="every class",
        ce_weight=0.0,
        couples_batch=True,
        acts_on=misclassified,
        refuses={
            "refine": "it corrects wrong rows itself, and a refinement leaves none",
            "standardize": "its cross-entropy and squared error need raw logits",
        },
    ),
    "rld": Method(
        "Assign the teacher's confidence to the true class; learn class relations only below it.",
        "Sun et al., ICCV 2025, arXiv 2408.07703",
        rld,
        condensed=rld_condensed,
        source="zju-SWJ/RLD @d54578f",
        takes_bucket=True,
        parts={"SCD": {"beta": 0.0}, "MCD": {"alpha": 0.0}},
        warmup=_TWENTY_EPOCHS,
        unranked={"beta": 0.0},
        acts_on=contradicts,
        refuses={
            "refine": "it masks classes that contradict the label, and a refinement leaves none, which makes it dkd; "
            "use --method dkd with the refinement",
            "deviation": "its confidence term has its own temperature, which applies to unscaled logits",
            "several": "its confidence term has its own temperature and would be counted once for each",
        },
        presets={
            "same-t": {"confidence_temperature": 4.0},
            "imagenet-resnet34-resnet18": {
                "beta": 0.5,
                "temperature": 1.0,
                "confidence_temperature": 1.0,
                "warmup": 0.01,
            },
            "imagenet-resnet50-mobilenetv1": {
                "beta": 2.0,
                "temperature": 1.0,
                "confidence_temperature": 1.0,
                "warmup": 0.01,
            },
            "standardize": {
                "alpha": 9.0,
                "beta": 72.0,
                "temperature": 2.0,
                "confidence_temperature": 2.0,
                "standardize": True,
            },
        },
    ),
    "skew_kl": Method(
        "KL with some of the teacher mixed into the student.",
        "Ko et al., ICML 2024, arXiv 2402.03898",
        skew_kl,
        condensed=skew_kl_condensed,
        ignores_labels=True,
        source="jongwooko/distillm",
        takes_bucket=True,
        temperature=4.0,
        ce_weight=0.1,
        kd_weight=0.9,
        presets={"language": _LANGUAGE},
    ),
    "skew_reverse_kl": Method(
        "Reverse KL with some of the student mixed into the teacher.",
        "Ko et al., ICML 2024, arXiv 2402.03898",
        skew_reverse_kl,
        condensed=skew_reverse_kl_condensed,
        ignores_labels=True,
        source="jongwooko/distillm",
        takes_bucket=True,
        temperature=4.0,
        ce_weight=0.1,
        kd_weight=0.9,
        presets={"language": _LANGUAGE},
    ),
    "sld": Method(
        "Swap label and top class where the teacher, later the student, is wrong; six temperatures.",
        "Multimedia Systems 31:264, 2025, arXiv 2504.20108",
        sld,
        condensed=sld_condensed,
        source="StephenEkaputra/Swapped-Logit-Distillation @f035ede",
        takes_bucket=True,
        refine="swap",
        temperature=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        ce_weight=0.1,
        kd_weight=0.9,
        begins={"student_swap": 150 / 240},
        pairs_views=True,
        presets={
            "imagenet-resnet34-resnet18": {"ce_weight": 0.5, "kd_weight": 0.5},
            "imagenet-resnet50-mobilenetv2": {"ce_weight": 1.0, "kd_weight": 0.5},
        },
    ),
    "swap": Method(
        "KD without labels, from a teacher whose wrong rows are swapped.",
        "as reimplemented by Sun et al., ICCV 2025",
        kd,
        condensed=kd_condensed,
        ignores_labels=True,
        source="zju-SWJ/RLD",
        takes_bucket=True,
        refine="swap",
        ce_weight=0.0,
        about=swap,
        presets={"language": _LANGUAGE},
    ),
    "tad": Method(
        "Weight the teacher's tail relative to its mean over the sequence.",
        "Don't Ignore the Tail, ICML 2026, arXiv 2602.20816",
        tad,
        ignores_labels=True,
        source="none available",
        couples_batch=True,
        of_sequence=tail_mass,
        refuses={
            "standardize": "its tail is weighted by a mass of the teacher's distribution, which z-scoring changes",
            "deviation": "its tail is weighted by a mass at one temperature",
            "several": "its tail is weighted by a mass at one temperature",
        },
        presets={"language": {"temperature": 1.0}},
    ),
    "ttm": Method(
        "Soften only the teacher.",
        "Zheng and Yang, ICLR 2024, arXiv 2402.11148",
        ttm,
        ignores_labels=True,
        source="zkxufo/TTM",
        needs="every class",
        kd_weight=45.0,
    ),
    "wsld": Method(
        "Weight rows by how far the student is behind on the true class.",
        "Zhou et al., ICLR 2021, arXiv 2102.00650",
        wsld,
        source="bellymonster/Weighted-Soft-Label-Distillation",
        refuses={
            "standardize": "its weight is a ratio of cross-entropies, which need raw logits",
            "deviation": "its weight is a ratio of cross-entropies, which need raw logits",
        },
        presets={"ldrld-copy": {"alpha": 2.25, "temperature": 4.0}},
    ),
    "wttm": Method(
        "TTM with more weight where the teacher is uncertain.",
        "Zheng and Yang, ICLR 2024, arXiv 2402.11148",
        wttm,
        ignores_labels=True,
        source="zkxufo/TTM",
        needs="every class",
        kd_weight=4.0,
        presets={"ttm-weight": {"kd_weight": 45.0}},
    ),
}


def find_method(method: MethodLike) -> Method:
    """Look up a method.

    Args:
        method: Key of `METHODS`; `package.module:name` of a `Method` or of a loss function; a `Method`; a loss from `get_loss`;
            or a function `(student [R, C], teacher [R, C], labels [R]) -> loss`, [R] or 0-dim.

    Returns:
        The method's record. A function or a loss from `get_loss` gets weight 1, and cross-entropy weight 1. A loss from
        `get_loss` knows its requirements; a function, by name or as an object, is assumed to need every class and the label.

    Raises:
        UnknownNameError: If no method has this name.
        InputError: If the method cannot be imported, or is not a method.
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]
    loss = given_loss(method)
    if loss is not None:
        return Method(
            method_name(method),
            "-",
            loss,
            needs="every class" if loss.every_class else "top-k",
            couples_batch=loss.couples_batch,
            ignores_labels=not loss.needs_label,
        )
    if not isinstance(method, str) and not callable(method):
        raise unknown_name("method", str(method), METHODS)
    found = _resolve(method) if isinstance(method, str) else method
    return found if isinstance(found, Method) else _method_of(found, method_name(method))


def _method_of(function: LossFunction, name: str) -> Method:
    """Return the record of a plain function, whose requirements are assumptions.

    Raises:
        InputError: If it cannot be called with student, teacher and labels.
    """
    _refuse_unsuitable(function, name)
    summary = (function.__doc__ or "").strip().partition("\n")[0] or name
    return Method(summary, "-", _checking(function, name), needs="every class", assumed=True)


def _refuse_unsuitable(function: Any, name: str) -> None:
    """Raise InputError if an object is not a loss function."""
    if isinstance(function, type):
        raise InputError(f"the method is the class {function.__name__}; pass an instance of it, or a function")
    if not callable(function):
        raise InputError(
            f"method {name} is a {type(function).__name__}; expected a function or a logitcache.methods.Method"
        )
    if isinstance(function, nn.Module) and any(one.requires_grad for one in function.parameters()):
        raise InputError(
            f"method {name} has trainable parameters, which the optimizer does not see; freeze them with requires_grad_(False)"
        )
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except ValueError:  # a builtin without a signature; checked by its first call
        return
    positional = [one for one in signature.parameters.values() if one.kind is not one.KEYWORD_ONLY]
    try:
        signature.replace(parameters=positional).bind(None, None, None)
    except TypeError as error:
        raise InputError(f"method {name} cannot be called with student, teacher and labels: {error}") from error


def given_loss(method: MethodLike) -> Distillation | None:
    """Return the loss of a method that is already composed, given as an object or by its name; None for any other method.

    Raises:
        UnknownNameError: If no method has this name.
    """
    found = _resolve(method) if isinstance(method, str) and method not in METHODS else method
    return found if isinstance(found, Distillation) else None


def method_name(method: MethodLike) -> str:
    """Return the name of a method, as used in run.json, messages and directory names.

    Returns:
        A string as it is; `package.module:name` for a function, and that of its class for any other callable; the call, e.g.
        `get_loss(rld, beta=4)`, for a loss from `get_loss`; `Method(package.module:divergence)` for a `Method` outside the table.
    """
    if isinstance(method, str):
        return method
    if isinstance(method, Method):
        known = next((name for name, one in METHODS.items() if one is method), None)
        return known or f"Method({qualified_name(method.divergence) if method.divergence else 'labels'})"
    if isinstance(method, Distillation):
        return method.name or f"Distillation({qualified_name(method.divergence)})"
    return qualified_name(method)


def _resolve(name: Any) -> Any:
    """Import a method by its name."""
    if "(" in name:
        raise InputError(f"method {name} was given as a Python object; pass the same object to resume its run")
    if ":" not in name:
        raise unknown_name("method", name, METHODS)
    return resolve(name, "method")


def _checking(function: LossFunction, name: str) -> LossFunction:
    """Wrap a plain loss function so that what it returns is checked; its signature and docstring are kept."""

    @functools.wraps(function, updated=())
    def checked(student: Tensor, teacher: Tensor, labels: Tensor, **parameters: Any) -> Tensor:
        value = function(student, teacher, labels, **parameters)
        if not isinstance(value, Tensor) or value.shape not in ((), labels.shape) or not value.is_floating_point():
            found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InputError(
                f"method {name} returned {found}; expected [{len(labels)}], one value per row, or a 0-dim tensor"
            )
        return value

    try:
        inspect.signature(function)
    except ValueError:  # a builtin, which takes no parameters
        del checked.__wrapped__
    return checked
