"""`fedq new DIR`: what it refuses, what it makes, and that what it makes runs as it stands."""

import io
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

import fedq
from fedq.config import ConfigError, compose
from fedq.new import COMMANDS, make_app
from fedq.new.app import TEMPLATE
from fedq.new.names import LONGEST, RESERVED, package_name

SOURCE = Path(fedq.__file__).resolve().parents[1]
COMMAND = [sys.executable, "-c", "from fedq.cli import main; main()"]
FILES = {
    ".gitignore",
    "README.md",
    "conf/data/mine.yaml",
    "conf/experiment/default.yaml",
    "conf/model/mine.yaml",
    "my_hospital/__init__.py",
    "my_hospital/data.py",
    "my_hospital/model.py",
    "pyproject.toml",
}


def command(*arguments, cwd=None):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=90, env=environment, check=False
    )


def files_of(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def app(tmp_path, monkeypatch):
    """A new app, with the test inside its directory as a user would be."""
    folder = make_app(tmp_path / "my-hospital").folder
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [n for n in sys.modules if n.partition(".")[0] == "my_hospital"]:
        del sys.modules[name]


def run(*overrides):
    return fedq.run(list(overrides), progress=False)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("1st", "letter first"),
        ("-app", "letter first"),
        ("my_app", "Try my-app"),
        ("my app", "Try my-app"),
        ("my.app", "Try my-app"),
        ("ünder", "letter first"),
        ("a" * 33, "at most 32"),
        ("app-", "Try app"),
        ("json", "would hide"),
        ("Numpy", "would hide"),
        ("torch", "would hide"),
        ("fedq", "would hide"),
        ("flwr", "would hide"),
        ("scikit-learn", "is installed"),
        ("class", "word of Python"),
        ("conf", "folder of every app"),
        ("lib", "leaves out"),
    ],
)
def test_a_name_that_cannot_work_is_refused_and_nothing_is_written(tmp_path, name, rule):
    with pytest.raises(ValueError, match=f"^{name}: .*{rule}"):
        make_app(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["a", "App1", "my-hospital", "x" * LONGEST, "x" * (LONGEST + 1), "1a", "-a", "a_b", ""]
)
def test_flower_takes_every_name_that_is_taken_here(name):
    from flwr.supercore.utils import is_valid_name

    try:
        package_name(name)
    except ValueError:
        assert not is_valid_name(name)[0]
    else:
        assert is_valid_name(name)[0]


def test_no_package_has_a_name_that_flower_leaves_out_of_bundles():
    from flwr.common.constant import FAB_EXCLUDE_PATTERNS

    folders = {p.removesuffix("/**") for p in FAB_EXCLUDE_PATTERNS if p.endswith("/**")}
    possible = {f.lower() for f in folders if f.isidentifier()} - {"__pycache__"}
    assert possible <= RESERVED


def test_a_place_that_is_taken_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "app1").mkdir()
    (tmp_path / "app1" / "model.py").write_text("mine")
    for place, rule in (("app1", "is not empty"), ("notes", "is a file"), ("notes/app1", "is not a directory")):
        with pytest.raises(ValueError, match=f"^{tmp_path / place}: .*{rule}"):
            make_app(tmp_path / place)
    assert files_of(tmp_path) == {"notes", "app1/model.py"}


def test_a_place_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # a test may run as root
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be written"):
        make_app(tmp_path / "app1")
    with pytest.raises(ValueError, match=r"cannot be written, .*\. Choose"):
        make_app("/proc/app1")


def test_an_app_may_be_made_in_an_empty_directory_and_below_missing_ones(tmp_path, monkeypatch):
    (tmp_path / "app1").mkdir()
    monkeypatch.chdir(tmp_path / "app1")
    assert make_app(".").folder == tmp_path / "app1"
    assert make_app(tmp_path / "x" / "y" / "app2").folder.is_dir()


def test_a_refusal_has_status_2_and_says_the_value_the_rule_and_the_mend(tmp_path):
    from typer.testing import CliRunner

    from fedq.cli import app

    answer = CliRunner().invoke(app, ["new", str(tmp_path / "json")])
    assert answer.exit_code == 2
    assert answer.stderr == "fedq: json: its package json would hide the installed module of that name. Try my-json\n"


def test_the_files_are_made_and_no_blank_of_a_template_is_left(app):
    assert files_of(app) == FILES
    assert len(list(TEMPLATE.rglob("*.in"))) == len(FILES)
    for path in FILES:
        assert "{{" not in (app / path).read_text(), path


def test_the_readme_names_the_three_commands(app):
    (block,) = (app / "README.md").read_text().split("```")[1::2]
    assert block.strip() == f"bash\n{COMMANDS}"
    assert len(COMMANDS.splitlines()) == 3


def test_the_generated_code_is_formatted_and_clean(app):
    for check in (["format", "--check"], ["check"]):
        ruff = [sys.executable, "-m", "ruff", *check, "--isolated", "--line-length", "120", "."]
        done = subprocess.run(ruff, cwd=app, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_a_run_of_the_app_installs_nothing_anew(app):
    # `flwr run` makes an environment of its own from what stands here; fedq is what the parties have installed.
    project = tomllib.loads((app / "pyproject.toml").read_text())
    assert project["project"]["dependencies"] == []
    assert json.loads(project["tool"]["flwr"]["app"]["config"]["overrides"]) == []


@pytest.mark.slow
def test_flower_s_bundle_holds_the_app_s_files_and_nothing_of_its_runs(app):
    from flwr.cli.build import build_fab_from_disk
    from flwr.cli.config_utils import load_and_validate

    run("rounds=1")
    (app / "my_hospital" / "scratch.txt").write_text("no code")
    _, warnings = load_and_validate(app / "pyproject.toml", check_module=False)
    assert warnings == []
    bundle = build_fab_from_disk(app)
    assert set(zipfile.ZipFile(io.BytesIO(bundle)).namelist()) == FILES - {".gitignore"} | {".info/CONTENT"}
    assert len(bundle) < 10_000


def test_flower_finds_both_components(app):
    from flwr.cli.config_utils import load_and_validate

    import fedq.app

    if not hasattr(fedq.app, "server"):
        pytest.skip("fedq.app has no server yet")
    load_and_validate(app / "pyproject.toml")


def test_the_app_s_experiment_runs_where_none_is_named(app):
    overlay = app / "conf"
    config = compose([], overlay=overlay)
    assert (config.name, config.clients) == ("my-hospital", 2)
    assert (config.quant.name, config.codec.name, config.privacy.unit) == ("int8", "int8", "off")
    assert config.model == {"_target_": "my_hospital.model.Net", "width": 32}
    assert config.overrides == []
    assert compose(["rounds=2"], overlay=overlay).name == "my-hospital"
    assert compose(["experiment=demo"], overlay=overlay).name == "demo"
    assert compose(["~experiment"], overlay=overlay).name == "run"


@pytest.mark.slow
def test_two_rounds_from_the_command_line(app):
    done = command("run", "rounds=2", cwd=app)
    assert done.returncode == 0, done.stderr
    (told,) = app.glob("outputs/*/*my-hospital*/result.json")
    result = json.loads(told.read_text())
    assert result["rounds"] == 2
    assert result["accuracy"] > 0.85
    assert result["int8_accuracy"] > 0.85


def test_the_config_that_is_printed_is_the_app_s(app):
    assert "_target_: my_hospital.model.Net" in command("run", "--cfg", "job").stdout


@pytest.mark.slow
def test_a_forecast_and_a_sweep_take_the_app_s_experiment(app):
    assert "my-hospital" in command("run", "--dry-run").stdout
    assert command("run", "-m", "rounds=1", "seed=1,2").returncode == 0
    assert len(list(app.glob("outputs/*/*my-hospital*/result.json"))) == 2


@pytest.mark.slow
def test_two_rounds_with_privacy_by_one_word_in_the_file(app):
    file = app / "conf" / "experiment" / "default.yaml"
    text = file.read_text()
    assert text.count('override /privacy: "off"') == 1
    file.write_text(text.replace('override /privacy: "off"', "override /privacy: example"))
    result = run("rounds=2")
    assert result.private, result.privacy_reasons
    assert result.epsilon <= 8
    assert result.accuracy > 0.85


@pytest.mark.slow
def test_workers_find_the_app_and_give_the_same_bits(app):
    one, two = run("rounds=2"), run("rounds=2", "runtime.workers=2")
    assert two.int8_accuracy > 0.85
    for name, array in one.arrays.items():
        assert np.array_equal(array, two.arrays[name])


@pytest.mark.slow
def test_the_experiment_as_it_ships_is_quick_and_good(app):
    result = run()
    assert result.accuracy > 0.9
    assert result.int8_accuracy > 0.9
    assert result.wall_seconds < 10


def test_a_client_trains_on_all_rows_of_its_own_file_even_if_they_show_one_class(app):
    from my_hospital.data import SCALES, load

    rows = np.ones((7, 3 * len(SCALES) + 1))
    np.savetxt(app / "own.csv", rows, delimiter=",", header="h")
    own, everybody = load("own.csv"), load()
    assert (len(own.train), own.num_outputs, own.input_shape) == (7, 2, everybody.input_shape)
    assert np.array_equal(own.test.inputs, everybody.test.inputs)
    np.savetxt(app / "own.csv", rows[:, :5], delimiter=",", header="h")
    with pytest.raises(ValueError, match=r"own\.csv: 5 columns; give 30 measurements"):
        load("own.csv")


def test_the_public_size_that_dp_divides_by_is_the_size_of_the_training_part(app):
    from my_hospital.data import load

    assert compose([], overlay=app / "conf").data["nominal_examples"] == len(load().train)


def test_the_scales_fit_the_data(app):
    from my_hospital.data import LARGEST, load

    inputs = load().train.inputs
    assert np.abs(inputs.mean(0)).max() < 0.5
    assert (np.abs(inputs) == LARGEST).mean() < 0.01


@pytest.mark.parametrize("file", ["experiment/default.yaml", "model/mine.yaml"])
@pytest.mark.parametrize("damage", ["x: [\n", "- override /modl: mine\n"])
def test_a_damaged_config_of_the_app_is_named(app, file, damage):
    (app / "conf" / file).write_text(damage)
    with pytest.raises(ConfigError, match=r"experiment=default: .*Fix the file"):
        compose(["rounds=2"], overlay=app / "conf")
