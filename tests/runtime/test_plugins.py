"""Names of other people's code."""

import sys

import pytest

from logitcache.errors import InputError
from logitcache.runtime.plugins import import_extra, resolve


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    return tmp_path


def test_what_is_called_later_may_import_from_the_working_directory(here):
    (here / "plugin_first.py").write_text("def make():\n    import plugin_second\n    return plugin_second.x\n")
    (here / "plugin_second.py").write_text("x = 7\n")
    before = len(sys.path)
    assert resolve("plugin_first:make", "data set")() == 7
    resolve("plugin_first:make", "data set")
    assert len(sys.path) == before + 1
    assert sys.path[-1] == str(here)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("raise KeyError('licence')", "KeyError: 'licence'"),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'. Expected package.module:name."),
    ],
    ids=["exit", "key", "import"],
)
def test_whatever_a_module_raises_is_one_sentence(here, content, said):
    (here / "plugin_broken.py").write_text(f"{content}\n")
    with pytest.raises(InputError) as raised:
        resolve("plugin_broken:make", "data set")
    assert str(raised.value) == f"data set 'plugin_broken:make' cannot be imported: {said}"


def test_a_package_that_an_extra_installs_is_named(monkeypatch):
    assert import_extra("json", "it", "lm").loads("1") == 1
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"^Parquet needs the package pyarrow: pip install 'logitcache\[parquet\]'$"):
        import_extra("pyarrow.parquet", "Parquet", "parquet")
