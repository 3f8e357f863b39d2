"""Distillation losses: one file per paper, pure functions of tensors, listed in one table (`table.py`)."""

from logitcache.methods.balance import describe_norms, drowned_terms, gradient_norms
from logitcache.methods.composition import REFINEMENTS, TEMPERATURES, get_loss, needs_of, parameters_of, serves_draws
from logitcache.methods.describe import Description, describe, spell
from logitcache.methods.distillation import Distillation
from logitcache.methods.expected import Expected, expected_of, expected_tasks, variants_of
from logitcache.methods.language import language_settings
from logitcache.methods.linear import Head, LinearTerms, TeacherLogits, linear_loss
from logitcache.methods.method import LossFunction, Method, MethodLike, TemperatureChoice
from logitcache.methods.objective import Objective, SecondLabels, Terms, make_objective
from logitcache.methods.table import METHODS, find_method, method_name

__all__ = [
    "METHODS",
    "REFINEMENTS",
    "TEMPERATURES",
    "Description",
    "Distillation",
    "Expected",
    "Head",
    "LinearTerms",
    "LossFunction",
    "Method",
    "MethodLike",
    "Objective",
    "SecondLabels",
    "TeacherLogits",
    "TemperatureChoice",
    "Terms",
    "describe",
    "describe_norms",
    "drowned_terms",
    "expected_of",
    "expected_tasks",
    "find_method",
    "get_loss",
    "gradient_norms",
    "language_settings",
    "linear_loss",
    "make_objective",
    "method_name",
    "needs_of",
    "parameters_of",
    "serves_draws",
    "spell",
    "variants_of",
]
