"""What is said about the numbers that methods were measured at."""

import pytest

from logitcache.methods import METHODS, describe, expected, expected_of, variants_of


@pytest.fixture
def measured(monkeypatch):
    """Two tasks on which kd beats ce, jsd is below it on both, and rld is within the noise."""

    def task(ce, kd, jsd):
        gaps = {
            "ce": {"kd": [-kd, 0.3]},
            "kd": {"ce": [kd, 0.3]},
            "jsd": {"ce": [jsd, 0.3], "kd": [jsd - kd, 0.3]},
            "rld": {"ce": [ce, 0.3], "kd": [0.1, None]},
        }
        same = {"changes": "", "seeds": 3, "accuracy": 80.0, "deviation": 0.5}
        runs = [same | {"method": method, "over": over} for method, over in gaps.items()]
        runs.append(same | {"method": "kd", "changes": "temperature=1", "over": {"ce": [1.0, 0.3]}})
        return {"title": "a small task", "about": "Three epochs.", "runs": runs}

    monkeypatch.setattr(expected, "_content", lambda: {"first": task(-0.5, 3.2, -4.0), "second": task(0.5, 2.0, -0.7)})


def test_gaps_are_written_with_their_error_and_noise_is_called_noise(measured):
    first, second = expected_of("rld")
    assert str(first) == "80.0 ± 0.5 %, -0.5 ± 0.3 over ce (within noise), +0.1 over kd (within noise)"
    assert str(expected_of("kd")[0]) == "80.0 ± 0.5 %, +3.2 ± 0.3 over ce"
    assert not first.is_below_ce
    assert second.task.title == "a small task"


def test_other_settings_stand_apart(measured):
    assert [one.changes for one in expected_of("kd")] == ["", ""]
    assert [(one.task.name, one.changes) for one in variants_of("kd")] == [
        ("first", "temperature=1"),
        ("second", "temperature=1"),
    ]
    assert describe("kd").variants == {
        "temperature=1": dict.fromkeys(("first", "second"), "80.0 ± 0.5 %, +1.0 ± 0.3 over ce")
    }


def test_a_method_below_cross_entropy_says_so(measured):
    said = describe("jsd").warning
    assert said == (
        "with its defaults jsd is less accurate than cross-entropy alone on first and second, that is on every task measured"
    )
    assert describe("rld").warning == ""
    assert describe("kd").expected["first"] == "80.0 ± 0.5 %, +3.2 ± 0.3 over ce"


def test_a_method_that_was_not_measured_has_no_numbers(measured):
    assert expected_of("wsld") == []
    assert describe("wsld").expected == {}


def test_what_was_measured_are_methods():
    """Three seeds or more; of a task, every method with its defaults."""
    for task in expected._content().values():
        assert {run["method"] for run in task["runs"]} <= METHODS.keys()
        assert {run["method"] for run in task["runs"] if not run["changes"]} == METHODS.keys()
        assert all(run["seeds"] >= 3 for run in task["runs"])
