"""The app directory that a process runs, found where Flower puts it."""

import shutil
import sys
import zipfile

import pytest

from fedq.app.bundle import bundle_digest, is_app, overlay, running_app
from fedq.flower import private as flower
from fedq.new.app import make_app


@pytest.fixture
def app(tmp_path):
    return make_app(tmp_path / "clinics").folder


@pytest.fixture(autouse=True)
def _path(monkeypatch, tmp_path):
    """No app but those of a test: the repository itself may be one."""
    monkeypatch.syspath_prepend(str(tmp_path))  # remembers the path as it is; setattr, undone first, would lose it
    sys.path[:] = [p for p in sys.path if p and p != str(tmp_path) and not is_app(tmp_path / p)]
    monkeypatch.chdir(tmp_path)


def test_what_fedq_new_makes_is_an_app(app):
    assert is_app(app)


def test_an_empty_folder_is_none(tmp_path):
    assert not is_app(tmp_path)


def test_a_folder_that_is_not_there_is_none(tmp_path):
    assert not is_app(tmp_path / "gone")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[project]\nname = 'x'\n",
        "tool = 3\n",
        "tool = 'x'\n",
        "[tool]\nflwr = []\n",
        "[tool.flwr.app]\ncomponents = 'fedq'\n",
        "[tool.flwr.app.components]\nserverapp = 'fedq.app:server'\n",
        "[tool.flwr.app.components]\nserverapp = 'mine:server'\nclientapp = 'fedq.app:client'\n",
        "[tool.flwr.app.components\n",
    ],
)
def test_a_project_of_another_kind_is_none(text, tmp_path):
    (tmp_path / "pyproject.toml").write_text(text)
    assert not is_app(tmp_path)


def test_a_file_that_is_no_text_is_none(tmp_path):
    (tmp_path / "pyproject.toml").write_bytes(b"\xff\xfe\x00")
    assert not is_app(tmp_path)


def test_the_running_app_is_found_on_the_path(app, monkeypatch):
    monkeypatch.syspath_prepend(str(app))
    assert running_app() == app


def test_of_two_apps_on_the_path_the_first_is_the_running_one(app, tmp_path, monkeypatch):
    other = make_app(tmp_path / "others").folder
    monkeypatch.syspath_prepend(str(app))
    monkeypatch.syspath_prepend(str(other))
    assert running_app() == other


def test_a_folder_before_it_that_is_no_app_is_passed_over(app, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(app))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert running_app() == app


def test_the_folder_where_python_was_started_is_not_taken_for_the_app(app, monkeypatch):
    monkeypatch.chdir(app)
    monkeypatch.syspath_prepend("")
    assert running_app() is None


def test_without_an_app_on_the_path_none_is_running():
    assert (running_app(), overlay()) == (None, None)


def test_the_overlay_is_the_running_app_s_conf(app, monkeypatch):
    monkeypatch.syspath_prepend(str(app))
    assert overlay() == app / "conf"


def test_an_app_without_choices_of_its_own_has_no_overlay(app, monkeypatch):
    (app / "conf").rename(app / "configs")
    monkeypatch.syspath_prepend(str(app))
    assert overlay() is None


def test_fedq_s_own_choices_are_no_overlay_over_themselves(app, monkeypatch):
    from fedq.config import conf_folder

    (app / "conf").rename(app / "configs")
    (app / "conf").symlink_to(conf_folder())
    monkeypatch.syspath_prepend(str(app))
    assert overlay() is None


def test_a_bundle_has_one_digest_packed_and_unpacked(tmp_path):
    """An owner reviews the .fab file; the client weighs what Flower unpacked from it."""
    app = make_app(tmp_path / "clinics").folder
    packed = tmp_path / "clinics.fab"
    packed.write_bytes(flower.bundle(app))
    unpacked = tmp_path / "apps" / "clinics"
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(unpacked)
    shutil.rmtree(unpacked / ".info")
    assert bundle_digest(packed) == bundle_digest(unpacked)


@pytest.mark.parametrize("name", ["clinics/model.py", "pyproject.toml", "new.py", ".hidden/x.yaml"])
def test_any_other_file_of_a_bundle_gives_another_digest(tmp_path, name):
    app = make_app(tmp_path / "clinics").folder
    before = bundle_digest(app)
    (app / name).parent.mkdir(exist_ok=True)
    (app / name).write_text("changed")
    assert bundle_digest(app) != before


def test_running_a_bundle_does_not_change_its_digest(tmp_path):
    app = make_app(tmp_path / "clinics").folder
    before = bundle_digest(app)
    (app / "clinics" / "__pycache__").mkdir()
    (app / "clinics" / "__pycache__" / "model.pyc").write_bytes(b"compiled")
    assert bundle_digest(app) == before
