"""Training on after the last epoch."""

import json

import pytest

import logitcache
from logitcache.errors import CacheMismatchError, InputError, StoppedError, UnknownNameError
from logitcache.train.optimize import learning_rate


@pytest.fixture
def train(tmp_path, images, test_images):
    """Train on labels alone, with dropout, batch normalization, momentum and a running mean."""

    def go(**changes):
        given = {
            "cache": None, "student": "tiny:student", "method": "ce", "data": images, "test_data": test_images, "epochs": 2,
            "batch_size": 100, "lr": 0.01, "augment": "pad-crop-flip", "model_ema_decay": 0.9, "out": tmp_path / "run",
        }  # fmt: skip
        return logitcache.train_student(**(given | changes))

    return go


def weights(run):
    return {name: (run / name).read_bytes() for name in ("student.safetensors", "student-ema.safetensors")}


def record_of(run):
    return json.loads((run / "run.json").read_text())


def timeless(metrics):
    return [{name: value for name, value in one.items() if "second" not in name} for one in metrics]


@pytest.mark.parametrize(
    "schedule",
    [{"decay_rate": 1.0}, {"decay_milestones": [1, 3]}, {"decay_milestones": [1, 3], "warmup_epochs": 1, "opt": "adamw"}],
    ids=["constant", "milestones beyond", "warm-up"],
)  # fmt: skip
def test_a_run_that_is_trained_on_is_one_that_had_all_epochs_from_the_start(train, tmp_path, schedule):
    whole = train(epochs=4, out=tmp_path / "whole", **schedule)
    train(**schedule)
    found = train(epochs=4, resume=True, **schedule)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert timeless(found.metrics) == timeless(whole.metrics)
    record = record_of(tmp_path / "run")
    assert record["settings"] == record_of(tmp_path / "whole")["settings"]
    assert [one["epochs"] for one in record["segments"]] == [2, 4]
    assert record["segments"][0]["results"]["test_accuracy"] == whole.metrics[1]["test_accuracy"]


def test_it_is_so_from_a_cache_too(dump, images, tmp_path):
    given = {"cache": dump(), "student": "tiny:still", "data": images, "decay_milestones": [], "batch_size": 100}
    logitcache.train_student(epochs=2, out=tmp_path / "run", **given)
    logitcache.train_student(epochs=4, out=tmp_path / "run", resume=True, **given)
    logitcache.train_student(epochs=4, out=tmp_path / "whole", **given)
    files = [tmp_path / run / "student.safetensors" for run in ("run", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("changes", [{"method": "sld"}, {"method": "kd", "kd_warmup": 0.9}], ids=["switch", "ramp"])
def test_the_progress_of_a_method_is_a_schedule_too(dump, images, tmp_path, changes):
    given = {"cache": dump(augment="none,pad-crop-flip"), "student": "tiny:still", "data": images, **changes}
    given |= {"decay_milestones": [], "lr": 0.01, "batch_size": 300, "out": tmp_path / "run"}
    logitcache.train_student(epochs=2, **given)
    with pytest.raises(InputError, match="Use `extend` continue .* or `extend` stretch"):
        logitcache.train_student(epochs=8, resume=True, **given)
    assert logitcache.train_student(epochs=8, resume=True, extend="continue", **given).results


def rates(found):
    return [one["lr"] for one in found.metrics]


def test_each_way_to_extend_has_its_rates(train, tmp_path):
    """The papers' steps: after 2 epochs the rate has not fallen (1.25, 1.5, 1.75 of 2); those of 8 epochs are 5, 6 and 7."""
    settings = logitcache.TrainSettings(lr=0.01, epochs=8)
    stretched = [learning_rate(settings, epoch, 0, 1) for epoch in range(2, 8)]
    train(batch_size=300)
    found = train(epochs=8, resume=True, extend="stretch", batch_size=300)
    assert rates(found)[2:] == stretched
    train(batch_size=300, epochs=4, out=tmp_path / "other")
    found = train(epochs=6, resume=True, extend="continue", batch_size=300, out=tmp_path / "other")
    assert rates(found) == pytest.approx([0.01, 0.01, 0.01, 1e-4, 1e-5, 1e-5])
    assert record_of(tmp_path / "other")["segments"][1] == {"epochs": 6, "schedule_epochs": 4, "extend": "continue"}
    found = train(epochs=8, resume=True, extend="stretch", batch_size=300, out=tmp_path / "other")
    assert rates(found)[6:] == stretched[4:]


@pytest.mark.parametrize("sched", ["cosine", "onecycle"])
def test_a_schedule_that_fell_to_nothing_can_only_be_stretched(train, tmp_path, sched):
    train(sched=sched)
    for extend in (None, "continue"):
        with pytest.raises(InputError, match=rf"{sched} has decayed to zero.* `extend` stretch to follow .* 4 epochs"):
            train(sched=sched, epochs=4, resume=True, extend=extend)
    assert record_of(tmp_path / "run")["settings"]["epochs"] == 2
    found = train(sched=sched, epochs=4, resume=True, extend="stretch")
    settings = logitcache.TrainSettings(lr=0.01, epochs=4, sched=sched)
    assert rates(found)[2:] == [learning_rate(settings, epoch, 2, 3) for epoch in (2, 3)]
    assert found.metrics[1]["lr"] < found.metrics[2]["lr"]


def test_an_extension_that_is_stopped_goes_on_as_it_was_extended(train, tmp_path):
    train(sched="cosine")
    train(sched="cosine", out=tmp_path / "other")
    more = {"sched": "cosine", "epochs": 4, "resume": True}
    whole = train(extend="stretch", out=tmp_path / "other", **more)
    asked = iter([False] + [True] * 9)
    with pytest.raises(StoppedError):
        train(extend="stretch", should_stop=lambda: next(asked), **more)
    assert not logitcache.compare_runs([tmp_path / "run"])[0].finished
    found = train(**more)  # it is known how
    assert weights(tmp_path / "run") == weights(tmp_path / "other")
    assert timeless(found.metrics) == timeless(whole.metrics)
    again = train(extend="stretch", **more)  # the same line once more
    assert again.results == found.results


def test_milestones_may_be_added_but_not_changed_for_epochs_that_are_over(train, tmp_path):
    train(decay_milestones=[1])
    with pytest.raises(
        CacheMismatchError, match=r"`decay_milestones` 1, but 3 would change the rate .* first 2 epochs"
    ):
        train(decay_milestones=[3], epochs=4, resume=True)
    train(decay_milestones=[1, 3], epochs=4, resume=True)
    train(decay_milestones=[1, 3], epochs=4, out=tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_what_cannot_be_extended_is_one_sentence(train, tmp_path):
    train()
    with pytest.raises(InputError, match="run has 2 epochs, which cannot be reduced to 1"):
        train(epochs=1, resume=True)
    with pytest.raises(CacheMismatchError, match="lr: there 0.01, requested 0.1"):
        train(epochs=3, lr=0.1, resume=True)
    with pytest.raises(InputError, match="`extend` is for a run that is extended"):
        train(epochs=3, extend="stretch", out=tmp_path / "none")
    with pytest.raises(UnknownNameError, match="unknown way to extend a schedule 'stretched'; did you mean 'stretch'"):
        train(epochs=3, extend="stretched", resume=True)
    (tmp_path / "run/checkpoint.pt").unlink()
    with pytest.raises(
        InputError, match=r"cannot be extended without its checkpoint.pt.*`student_weights` .*student.safete"
    ):
        train(epochs=3, resume=True, extend="continue")
    assert train(resume=True).results


def test_the_command_line_trains_on(run, npz, tmp_path):
    words = f"train --method ce --data arrays:{npz} --student tiny:still --epochs 1 --lr 0.01 --out r".split()
    assert run(*words).exit_code == 0
    done = run("train", "--resume", "--out", "r", "--epochs", "2")
    assert done.exit_code == 1
    assert "r was trained for 1 epoch, but --epochs is 2. Use --extend continue" in done.stderr
    done = run("train", "--resume", "--out", "r", "--epochs", "2", "--extend", "stretch")
    assert done.exit_code == 0, done.stderr
    assert "epoch   2" in done.stderr and "epoch   1" not in done.stderr
    assert len((tmp_path / "r/metrics.jsonl").read_text().splitlines()) == 2


def test_milestones_that_no_epoch_comes_to_are_warned_of(train, caplog, tmp_path):
    train(decay_milestones=[1, 2, 5])
    assert "`decay_milestones` 2,5 are never reached: the run ends after 2 epochs" in caplog.text
    caplog.clear()
    train(decay_milestones=[1], epochs=1, out=tmp_path / "one")
    assert "`decay_milestones` 1 is never reached: the run ends after 1 epoch" in caplog.text
    caplog.clear()
    train(decay_milestones=[1], sched="cosine", out=tmp_path / "cosine")
    assert "`decay_milestones` has no effect with `sched` cosine" in caplog.text
    caplog.clear()
    train(decay_milestones=[1], out=tmp_path / "fine")
    assert not caplog.text
