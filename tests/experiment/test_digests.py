"""The digest of a model's code."""

import sys

import pytest

from fedq.experiment.digests import model_digest
from tests.quick import compose


def config_of(target):
    config = compose([])
    config.model = {"_target_": target}
    return config


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "reviewed").mkdir()
    (tmp_path / "reviewed" / "__init__.py").write_text("open('ran', 'w').close()\n")
    (tmp_path / "reviewed" / "model.py").write_text("def net(): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "reviewed"


@pytest.mark.hostile
def test_code_that_nobody_has_reviewed_yet_is_read_and_not_run(package):
    """Finding a module by Python's own means imports the packages that it lies in."""
    assert model_digest(config_of("reviewed.model.net"))
    assert not (package.parent / "ran").exists()
    assert "reviewed" not in sys.modules


def test_the_digest_is_of_the_file_that_holds_the_callable(package):
    before = model_digest(config_of("reviewed.model.net"))
    assert model_digest(config_of("reviewed.other.net")) not in ("", before)  # of the package's own file
    (package / "model.py").write_text("def net(): return None\n")
    assert model_digest(config_of("reviewed.model.net")) != before


def test_a_module_that_is_not_there_has_none():
    assert model_digest(config_of("no_such_package.net")) == ""
