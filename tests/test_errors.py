"""Messages speak to whoever reads them."""

import pytest

import logitcache
from logitcache.errors import InputError, name_settings, speaking_to_the_command_line

SAID = {
    "lower --batch-size, or add --warmup-epochs.": "lower `batch_size`, or add `warmup_epochs`.",
    "Leave out --compile.": "Leave out `compiled`.",
    "--mean/--std": "`mean`/`std`",
    "Use --no-standardize": "Use `standardize`",
    "`logitcache verify --repair c.zarr` drops it": "`logitcache verify --repair c.zarr` drops it",
    "Complete it with:\n  logitcache dump --out c.zarr\nor --resume": "Complete it with:\n  logitcache dump --out c.zarr\nor `resume`",
    "a -- b, x--y": "a -- b, x--y",
}


@pytest.mark.parametrize(("typed", "called"), SAID.items())
def test_settings_have_the_names_of_the_readers_language(typed, called):
    assert str(InputError(typed)) == name_settings(typed) == called
    with speaking_to_the_command_line():
        assert str(InputError(typed)) == typed
        assert f"{InputError(typed)}" == typed
    assert str(InputError(typed)) == called


def test_an_error_that_is_raised_from_the_command_line_names_options(run):
    done = run("train", "nowhere.zarr", "--student", "resnet8", "--lr", "0")
    assert "--lr must be greater than 0" in done.output
    assert "`lr`" not in done.output


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: logitcache.DumpSettings(augment=3), "`augment` must be a string, not 3"),
        (lambda: logitcache.TrainSettings(student_weights=3), "`student_weights` must be a string, not 3"),
        (lambda: logitcache.merge_caches("full.zarr", "out.zarr"), "a merge needs two or more caches, not full.zarr"),
    ],
)
def test_a_value_of_another_type_is_one_sentence(call, said):
    with pytest.raises(InputError) as raised:
        call()
    assert str(raised.value) == said
