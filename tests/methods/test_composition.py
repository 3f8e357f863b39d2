"""Pieces put together: what they mean, what they refuse, and what an objective makes of them."""

import functools

import pytest
import torch

from logitcache.errors import InputError, LogitCacheError, UnknownNameError
from logitcache.methods import (
    METHODS,
    Method,
    describe,
    find_method,
    get_loss,
    make_objective,
    method_name,
    parameters_of,
)
from logitcache.methods.composition import needs_of
from logitcache.methods.dkd import dkd
from logitcache.methods.kd import kd
from logitcache.methods.loca import loca
from logitcache.methods.lskd import standardize
from logitcache.methods.rld import rld
from logitcache.methods.sld import swap


def draw(batch=8, classes=7, seed=0):
    random = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(batch, classes, generator=random, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(0, classes, (batch,), generator=random)


def same(one, other):
    torch.testing.assert_close(one, other)


def test_a_refinement_acts_once_on_raw_logits_before_scaling():
    s, z, y = draw()
    words = {"loca_alpha": 0.9, "calibration_temperature": 2.0, "alpha": 2.0}
    ours = get_loss("dkd", refine="loca", standardize=True, temperature=2.0, **words)(s, z, y)
    edited = loca(z, y, alpha=0.9, calibration_temperature=2.0)
    same(ours, dkd(standardize(s), standardize(edited), y, alpha=2.0, temperature=2.0))


def test_loca_calibrates_at_the_divergences_temperature_unless_told():
    s, z, y = draw()
    same(get_loss("loca", temperature=3.0)(s, z, y), kd(s, loca(z, y, calibration_temperature=3.0), y, temperature=3.0))
    told = get_loss("loca", temperature=3.0, calibration_temperature=1.0)(s, z, y)
    same(told, kd(s, loca(z, y, calibration_temperature=1.0), y, temperature=3.0))


def test_several_temperatures_are_summed():
    s, z, y = draw()
    same(get_loss("kd", temperature=(1, 2.0))(s, z, y), kd(s, z, y, temperature=1.0) + kd(s, z, y, temperature=2.0))


def test_sld_is_made_of_pieces():
    s, z, y = draw()
    same(get_loss("sld")(s, z, y), get_loss("kd", refine="swap", temperature=(1, 2, 3, 4, 5, 6))(s, z, y))


def test_adaptive_brings_standardization():
    s, z, y = draw()
    same(get_loss("kd", temperature="adaptive")(s, z, y), get_loss("atkd")(s, z, y))


def test_adaptive_may_stand_among_several():
    s, z, y = draw()
    both = get_loss("kd", temperature=("adaptive", 2.0))(s, z, y)
    same(both, get_loss("atkd")(s, z, y) + get_loss("lskd", temperature=2.0)(s, z, y))


def test_rld_standardized_masks_by_the_same_ranks():
    s, z, y = draw()
    ours = get_loss("rld", preset="standardize")(s, z, y)
    same(
        ours, rld(standardize(s), standardize(z), y, alpha=9.0, beta=72.0, temperature=2.0, confidence_temperature=2.0)
    )


def test_a_methods_own_piece_can_be_taken_out():
    s, z, y = draw()
    same(get_loss("loca", refine="none")(s, z, y), kd(s, z, y))
    same(get_loss("lskd", standardize=False)(s, z, y), kd(s, z, y, temperature=2.0))
    same(get_loss("normkd", temperature=3.0)(s, z, y), get_loss("kd", temperature="deviation", base=3.0)(s, z, y))


def test_what_is_given_wins_over_a_preset_and_that_over_the_method():
    s, z, y = draw()
    same(get_loss("dkd", preset="resnet56-resnet20")(s, z, y), dkd(s, z, y, beta=2.0))
    same(get_loss("dkd", preset="resnet56-resnet20", beta=3.0)(s, z, y), dkd(s, z, y, beta=3.0))
    objective = make_objective("kd", {}, preset="imagenet-resnet34-resnet18", kd_weight=0.7)
    assert (objective.ce_weight, objective.kd_weight) == (1.0, 0.7)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("rld", {"refine": "loca"}, "rld takes no refinement: it masks classes that contradict the label"),
        ("rld", {"temperature": "deviation"}, "rld takes no temperature by deviation"),
        ("revision", {"refine": "swap"}, "revision takes no refinement: it corrects wrong rows itself"),
        ("revision", {"standardize": True}, "revision takes no standardization"),
        ("wsld", {"temperature": "adaptive"}, "wsld takes no standardization: its weight is a ratio"),
        ("clkd", {"temperature": 2.0}, "unknown parameter 'temperature' of clkd; expected mu, nu, beta"),
        ("ttm", {"temperature": 2.0}, "unknown parameter 'temperature' of ttm; expected gamma"),
        (
            "kd",
            {"temperature": "adaptive", "standardize": False},
            "an adaptive temperature needs z-scored logits",
        ),
        ("kd", {"temperature": "deviation", "standardize": True}, "z-scored logits all have deviation 1"),
        (
            "atkd",
            {"refine": "loca"},
            "loca needs a single temperature of raw logits.* set calibration_temperature",
        ),
        ("sld", {"refine": "loca"}, "set calibration_temperature"),
        ("normkd", {"temperature": 2.0, "base": 2.0}, "temperature 2 and base 2 set the same parameter; pass only one"),
        (
            "normkd",
            {"temperature": (1.0, 2.0)},
            r"the temperature multiplies the deviation of each row, so it must be one number, not \(1.0, 2.0\)",
        ),
        ("kd", {"standardize": "false"}, "kd: standardize must be true or false, not 'false'"),
        ("wsld", {"temperature": "deviation"}, "wsld takes no temperature by deviation"),
        (
            "rld",
            {"temperature": (2.0, 4.0)},
            "rld takes no sum over temperatures: its confidence term has its own temperature",
        ),
        (
            "lskd",
            {"refine": "loca"},
            "a single temperature of raw logits to compute probabilities, and this method has none; set calibration_temperature",
        ),
        ("kd", {"temperature": 10**400}, "kd: temperature must be a finite number"),
        ("clkd", {"tail": "bucket"}, "clkd does not support tail 'bucket'"),
        ("ce", {}, "ce has no distillation term"),
        ("kd", {"temperature": ()}, "temperature must be at least one number"),
        ("kd", {"temperature": (1.0, -1.0)}, "kd: temperature must be greater than 0, not -1.0"),
        ("loca", {"alpha": 1.0}, "loca: alpha must be between 0 and 1, not 1.0"),
        ("ldrld", {"depth": 2.5}, "ldrld: depth must be an integer, not 2.5"),
        ("ldrld", {"depth": 0}, "ldrld: depth must be greater than 0, not 0"),
        ("clkd", {"reduction": "max"}, "clkd: reduction must be root or sum or mean, not 'max'"),
        ("clkd", {"squared": 1.0}, "clkd: squared must be true or false, not 1.0"),
        ("atkd", {"source": "student"}, "atkd: source must be both or teacher, not 'student'"),
    ],
)
def test_what_means_nothing_is_refused_with_the_reason(name, changes, reason):
    with pytest.raises(InputError, match=reason):
        get_loss(name, **changes)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("rdl", {}, r"unknown method 'rdl'; did you mean 'rld'\?"),
        ("kd", {"refine": "locca"}, r"unknown refinement 'locca'; did you mean 'loca'\? Known: loca, none, swap"),
        ("kd", {"temperature": "adaptiv"}, r"unknown temperature 'adaptiv'; did you mean 'adaptive'\?"),
        ("rld", {"preset": "imagenet"}, "unknown preset of rld 'imagenet'"),
        ("ttm", {"preset": "x"}, "ttm has no presets"),
        ("kd", {"refine": ["loca", "swap"]}, "unknown refinement"),
        ("kd", {"kd_weight": 2.0}, "unknown parameter 'kd_weight' of kd"),
        ("kd", {"tail": "gone"}, "unknown tail 'gone'"),
        (3, {}, "unknown method '3'"),
        (
            "rld",
            {"gamma": 1.0},
            "unknown parameter 'gamma' of rld; expected temperature, alpha, beta, confidence_temperature",
        ),
        ("dkd", {"loca_alpha": 0.9}, "unknown parameter 'loca_alpha' of dkd"),
        (
            "dkd",
            {"refine": "loca", "calibration": 1.0},
            "expected temperature, alpha, beta, loca_alpha, calibration_temperature",
        ),
    ],
)
def test_what_is_not_known_is_refused_with_what_there_is(name, changes, message):
    with pytest.raises(UnknownNameError, match=message):
        get_loss(name, **changes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "4", True, None])
def test_a_number_must_be_a_finite_number(value):
    with pytest.raises(InputError, match="rld: beta must be a finite number"):
        get_loss("rld", beta=value)


def test_parameters_are_those_of_the_signatures():
    assert parameters_of("rld") == {"temperature": 4.0, "alpha": 1.0, "beta": 8.0, "confidence_temperature": 1.0}
    assert parameters_of("atkd") == {"temperature": "adaptive", "source": "both"}
    assert parameters_of("loca") == {"temperature": 4.0, "alpha": 0.95, "calibration_temperature": 4.0}
    assert parameters_of("dkd", refine="loca").keys() == {
        "temperature",
        "alpha",
        "beta",
        "loca_alpha",
        "calibration_temperature",
    }
    assert parameters_of("ce") == {}


def test_refined_rows_are_those_the_teacher_gets_wrong():
    _, z, y = draw(64)
    wrong = z.argmax(1) != y
    for name in ("loca", "swap", "sld", "rld", "revision"):
        assert torch.equal(get_loss(name).refined_rows(z, y), wrong)
    assert torch.equal(get_loss("dkd", refine="swap").refined_rows(z, y), wrong)
    for name in ("kd", "dkd", "atkd", "clkd", "wsld"):
        assert get_loss(name).refined_rows(z, y) is None


def test_an_objective_reports_the_share_of_refined_rows():
    s, z, y = draw(64)
    terms = make_objective("loca", {})(s, z, y, 1.0)
    assert terms.refined.item() == pytest.approx((z.argmax(1) != y).double().mean().item())
    assert make_objective("kd", {})(s, z, y, 1.0).refined.isnan()


def test_the_distillation_term_grows_over_the_warm_up():
    s, z, y = draw()
    objective = make_objective("rld", {}, warmup=0.5)
    early = objective(s, z, y, 0.125)
    assert early.total.item() == pytest.approx(early.ce.item() + 0.25 * early.kd.item())
    late = objective(s, z, y, 0.75)
    assert late.total.item() == pytest.approx(late.ce.item() + late.kd.item())


def test_the_papers_warm_up_is_twenty_of_240_epochs():
    s, z, y = draw()
    terms = make_objective("rld", {})(s, z, y, 5 / 240)
    assert terms.total.item() == pytest.approx(terms.ce.item() + 0.25 * terms.kd.item())


def test_the_second_term_of_sld_begins_after_150_of_240_epochs():
    s, z, y = draw()
    objective, without, full = make_objective("sld", {}), get_loss("sld"), get_loss("sld", student_swap=True)
    same(objective(s, z, y, 150 / 240).kd, without(s, z, y).mean())
    same(objective(s, z, y, 151 / 240).kd, full(s, z, y).mean())
    same(make_objective("sld", {"student_swap_after": 0.0})(s, z, y, 0.1).kd, full(s, z, y).mean())
    same(make_objective("sld", {"student_swap": False})(s, z, y, 1.0).kd, without(s, z, y).mean())
    same(make_objective("sld", {"student_swap": True})(s, z, y, 0.1).kd, full(s, z, y).mean())


@pytest.mark.parametrize("share", [-0.1, 1.5, True, "half"])
def test_a_share_after_which_a_term_begins_is_a_share(share):
    with pytest.raises(InputError, match="sld: student_swap_after must be a fraction from 0 to 1"):
        make_objective("sld", {"student_swap_after": share})


@pytest.mark.parametrize("weights", [{"ce_weight": -1.0}, {"kd_weight": float("nan")}, {"warmup": 1.5}])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(InputError, match="kd: weights must be 0 or more"):
        make_objective("kd", {}, **weights)


def test_weights_are_no_parameters_and_win_over_presets_where_they_stand():
    with pytest.raises(
        UnknownNameError, match="'ce_weight' is a weight, not a parameter of kd; set it with its own option"
    ):
        make_objective("kd", {"ce_weight": 3.0})
    s, z, y = draw()
    same(get_loss("normkd", preset="imagenet", base=3.0)(s, z, y), get_loss("normkd", temperature=3.0)(s, z, y))


@pytest.mark.parametrize("settings", [{"temperature": 4.0}, {"standardize": True}, {"refine": "loca"}])
def test_labels_alone_take_no_distillation_settings(settings):
    with pytest.raises(InputError, match="ce has no distillation term"):
        make_objective("ce", settings)


def test_shapes_that_do_not_fit_are_refused():
    s, z, y = draw()
    for bad in ((s, z[:, :1], y), (s, z[:1], y), (s, z, y[:3])):
        with pytest.raises(InputError, match=r"a loss takes student and teacher \[B, C\] and labels \[B\], got"):
            get_loss("kd")(*bad)


def test_every_preset_can_be_built():
    for name, method in METHODS.items():
        for preset in method.presets:
            assert make_objective(name, {}, preset=preset).loss is not None


def test_every_method_is_described_with_its_parameters():
    for name in METHODS:
        found = describe(name)
        assert found.summary
        assert found.text or name == "ce"
        assert all(text for _, _, text in found.parameters), name


def test_a_description_names_every_class_where_the_composition_refuses_top_k():
    refusing = {name for name, one in METHODS.items() if one.divergence and get_loss(name).every_class}
    assert {name for name in METHODS if describe(name).needs.startswith("every class")} == refusing
    assert {"atkd", "lskd", "normkd"} < refusing


# Somebody's own, as docs/adding-a-method.md shows it.


def halved(student, teacher, labels, *, temperature: float = 4.0, share: float = 0.5):
    """KD, half of it."""
    return share * kd(student, teacher, labels, temperature=temperature)


def careless(student, teacher, labels, *, power):
    """A parameter without default."""


def reserved(student, teacher, labels, *, warmup: float = 0.5):
    """A parameter that is everybody's word."""


def optional(student, teacher, labels, *, cap: float | None = None, mode: str = "a"):
    """A default that is None."""
    return (student - teacher).square().sum(1)


def two(student, teacher):
    """One argument too few."""


NOT_A_METHOD = 3


def test_a_strangers_own_method_has_the_same_pieces(monkeypatch):
    monkeypatch.syspath_prepend(str(__import__("pathlib").Path(__file__).parent))
    s, z, y = draw()
    name = "test_composition:halved"
    same(get_loss(name, temperature=2.0)(s, z, y), 0.5 * kd(s, z, y, temperature=2.0))
    same(get_loss(name, refine="swap", share=1.0)(s, z, y), kd(s, swap(z, y), y))
    objective = make_objective(name, {})
    assert (objective.ce_weight, objective.kd_weight) == (1.0, 1.0)
    assert describe(name).summary == "KD, half of it."
    with pytest.raises(InputError, match=r"is a int; expected a function or a logitcache.methods.Method"):
        get_loss("test_composition:NOT_A_METHOD")
    with pytest.raises(InputError, match="parameter power of careless has no default"):
        get_loss("test_composition:careless")
    with pytest.raises(InputError, match="reserved has a parameter named 'warmup', which is reserved for all methods"):
        get_loss("test_composition:reserved")
    with pytest.raises(InputError, match="cannot be called with student, teacher and labels: too many positional"):
        get_loss("test_composition:two")
    assert get_loss("test_composition:optional", cap=2.0)(s, z, y).shape == (8,)
    with pytest.raises(InputError, match="mode must be a string, not 3.0"):
        get_loss("test_composition:optional", mode=3.0)
    with pytest.raises(InputError, match="method 'no_such_module:x' cannot be imported"):
        get_loss("no_such_module:x")


def returns_a_number(student, teacher, labels):
    return 1.0


class Halved:
    """A loss with a state."""

    def __call__(self, student, teacher, labels):
        return 0.5 * kd(student, teacher, labels)


OWN = Method("KD, half of it.", "-", halved, ce_weight=0.25, kd_weight=0.75, ignores_labels=True)
BETA = get_loss("rld", beta=4)


def total(method, **words):
    s, z, y = draw()
    return make_objective(method, {}, **words)(s, z, y, 1.0).total


def test_an_objective_takes_a_method_that_is_an_object():
    s, z, y = draw()
    ce = make_objective("ce", {})(s, z, y, 1.0).total
    own = get_loss("rld", beta=4)
    same(total(own), ce + own(s, z, y).mean())
    same(total(own, ce_weight=0.5, kd_weight=3.0), 0.5 * ce + 3 * own(s, z, y).mean())
    same(total(OWN), 0.25 * ce + 0.75 * 0.5 * kd(s, z, y).mean())
    same(total(METHODS["kd"]), total("kd"))
    same(total(Halved()), ce + 0.5 * kd(s, z, y).mean())
    same(total(lambda s, z, y: halved(s, z, y).mean()), ce + 0.5 * kd(s, z, y).mean())
    same(make_objective(OWN, {"share": 1.0, "refine": "swap"})(s, z, y, 1.0).kd, kd(s, swap(z, y), y).mean())
    assert get_loss(own) is own
    assert parameters_of(OWN) == {"temperature": 4.0, "share": 0.5}


def test_a_composed_loss_brings_its_needs_and_a_function_is_assumed_to_need_all():
    loss = make_objective(get_loss("kd"), {}).loss
    assert (loss.needs_label, loss.every_class, loss.assumed) == (False, None, False)
    assert make_objective(get_loss("lskd"), {}).loss.every_class == "z-scoring needs every logit of a row"
    assert make_objective(get_loss("kd", tail="bucket"), {}).loss.bucket
    loss = make_objective(halved, {}).loss
    assert (loss.needs_label, loss.assumed) == (True, True)
    assert "halved is a plain function, which is assumed to need every logit of a row" in loss.every_class
    assert needs_of("x", find_method(halved)) == needs_of("x", find_method(get_loss("ttm"))) == "every class"
    assert needs_of("x", find_method(get_loss("dkd"))) == "top-k"


def test_a_function_is_the_same_method_by_its_name_and_in_hand(monkeypatch):
    monkeypatch.syspath_prepend(str(__import__("pathlib").Path(__file__).parent))
    s, z, y = draw()
    settings = {"share": 1.0, "refine": "swap", "temperature": 2.0}
    named, held = (make_objective(one, settings).loss for one in ("test_composition:halved", halved))
    same(named(s, z, y), held(s, z, y))
    for loss in (named, held):
        assert (loss.needs_label, loss.assumed, loss.temperatures) == (True, True, (2.0,))
        assert "halved is a plain function, which is assumed to need every logit of a row" in loss.every_class
        assert "which is assumed not to be linear" in loss.not_drawn
    with pytest.raises(InputError, match=r"returned a float; expected \[8\], one value per row"):
        get_loss("test_composition:returns_a_number")(s, z, y)


def test_a_loss_is_printed_as_one_line_with_all_its_options():
    assert repr(get_loss("rld", beta=4)) == (
        "<get_loss(rld, beta=4): rld(alpha=1, beta=4, confidence_temperature=1, temperature=4)>"
    )
    assert repr(get_loss("kd", temperature=[1, 2], tail="bucket")) == (
        "<get_loss(kd, tail=bucket, temperature=1+2): kd(tail=bucket, temperature=1+2)>"
    )
    assert repr(get_loss("lskd", refine="swap")) == (
        "<get_loss(lskd, refine=swap): kd(refine=swap(), standardize=true, temperature=2)>"
    )
    assert repr(get_loss("normkd")) == "<get_loss(normkd): kd(temperature=by_deviation(base=2))>"
    assert repr(make_objective("clkd", {}).loss.parts["CC"]).startswith("<get_loss(clkd): clkd(beta=2, ")


def test_a_name_may_lead_to_a_composed_loss(monkeypatch):
    monkeypatch.syspath_prepend(str(__import__("pathlib").Path(__file__).parent))
    loss = make_objective("test_composition:BETA", {}).loss
    assert loss.name == "get_loss(rld, beta=4)"
    assert loss.unranked is not None
    assert describe("test_composition:BETA").parameters == []


@pytest.mark.parametrize(
    ("method", "words", "message"),
    [
        (halved, {"settings": {"beta": 3}}, r"unknown parameter 'beta' of .*:halved; expected temperature, share"),
        (BETA, {"settings": {"beta": 3}}, r"get_loss\(rld, beta=4\) is already a complete loss and takes no beta"),
        (BETA, {"preset": "same-t"}, r"takes no preset; pass them to get_loss"),
        (two, {}, r"two cannot be called with student, teacher and labels: too many positional"),
        (careless, {}, "parameter power of careless has no default"),
        (Halved, {}, "the method is the class Halved; pass an instance of it"),
        (OWN, {"settings": {"beta": 3}}, r"unknown parameter 'beta' of Method\(.*:halved\)"),
        ("get_loss(rld, beta=4)", {}, "was given as a Python object; pass the same object"),
    ],
)  # fmt: skip
def test_objects_that_mean_nothing_are_refused(method, words, message):
    with pytest.raises(LogitCacheError, match=message):
        make_objective(method, **({"settings": {}} | words))
    if method is BETA:
        with pytest.raises(LogitCacheError, match=message):
            get_loss(method, preset=words.get("preset"), **words.get("settings", {}))


@pytest.mark.parametrize("value", [torch.zeros(3), torch.zeros(8, 7), 0.5, None])
def test_a_function_must_return_one_value_a_row_or_one_in_all(value):
    with pytest.raises(InputError, match=r"returned .*; expected \[8\], one value per row, or a 0-dim tensor"):
        total(lambda s, z, y: value)


def test_a_method_that_is_an_object_has_a_name():
    here = __name__
    assert method_name("mine:sure") == "mine:sure"
    assert method_name(METHODS["dkd"]) == "dkd"
    assert method_name(OWN) == f"Method({here}:halved)"
    assert method_name(halved) == f"{here}:halved"
    assert method_name(Halved()) == f"{here}:Halved"
    assert method_name(functools.partial(halved, share=0.25)) == f"{here}:halved(share=0.25)"
    assert method_name(get_loss("rld", beta=4)) == method_name(get_loss("rld", beta=4.0)) == "get_loss(rld, beta=4)"
    both = get_loss("mlkd", refine="swap", temperature=("adaptive", 2.0), standardize=True)
    assert method_name(both) == "get_loss(mlkd, refine=swap, standardize=true, temperature=adaptive+2)"
