"""The rules of the house: imports point down, the bottom rooms stay light, private names stay in one file."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "fedq"
# From the roof to the floor; a room imports rooms of lower floors only. `codec`, `data` and `models` share one.
FLOORS = [
    {"cli"},
    {"new"},
    {"console"},
    {"runtime"},
    {"app"},
    {"audit"},
    {"artifacts"},
    {"experiment"},
    {"client", "server"},
    {"training", "results", "flower"},
    {"quant", "privacy", "codec", "data", "models", "algorithms"},
    {"per_example", "core"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
READS_CONFIG = {"cli", "runtime", "app", "artifacts", "audit", "experiment"}
FORBIDDEN = {
    "codec": {"torch", "flwr", "hydra", "omegaconf", "opacus"},
    "data": {"flwr", "hydra", "omegaconf", "opacus"},
    "algorithms": {"flwr", "hydra", "omegaconf", "opacus"},
    "models": {"flwr", "hydra", "omegaconf", "opacus"},
    "quant": {"flwr", "hydra", "omegaconf"},
    "privacy": {"flwr", "hydra", "omegaconf"},
    "training": {"flwr", "hydra", "omegaconf"},
    "per_example": {"flwr", "hydra", "omegaconf"},
    "results": {"flwr", "hydra", "omegaconf", "torch", "rich"},
    "console": {"flwr", "hydra", "omegaconf", "torch"},
    "config": {"flwr", "torch", "opacus"},
    "new": {"flwr", "torch", "hydra", "omegaconf", "numpy"},
    "client": {"hydra", "omegaconf"},
    "server": {"hydra", "omegaconf"},
}


def files():
    return sorted(PACKAGE.rglob("*.py"))


@cache
def parsed(path):
    return ast.parse(path.read_text())


def room_of(path):
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


def imports(path):
    """Top-level names of other packages, and fedq's own rooms, that a file imports anywhere in its code."""
    others, own = set(), set()
    for node in ast.walk(parsed(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "fedq":
                names = [f"fedq.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("fedq."):
                own.add(name.split(".")[1])
            else:
                others.add(name.split(".")[0])
    return others, own - {"__version__"}


def runtime_nodes(node):
    """All nodes but those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from runtime_nodes(child)


@cache
def module_imports():
    """Module -> the modules of fedq that it imports anywhere in its code."""
    paths = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in files()}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    found = {name: set() for name in paths}
    for name, path in paths.items():
        for node in runtime_nodes(parsed(path)):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= {full if full in paths else node.module for full in inside.values()}
        found[name] = (found[name] & paths.keys()) - {name}
    return found


def test_no_two_modules_import_each_other_not_even_by_way_of_others():
    left = dict(module_imports())
    while free := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in free:
            del left[name]
    assert sorted(left) == []


def test_every_room_has_its_floor():
    rooms = {room_of(path) for path in files()} - {"__init__", "config"}
    assert rooms == set(FLOOR)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = room_of(path)
    if room == "__init__":
        return
    _, own = imports(path)
    if room == "config":
        assert own <= {"config", "codec", "core"}
        return
    if room in READS_CONFIG:
        own -= {"config"}
    assert "config" not in own, f"{room} takes values, never a config"
    upwards = {other for other in own - {room} if FLOOR[other] <= FLOOR[room]}
    assert not upwards, f"{room} must not import {upwards}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_knows_only_its_libraries(path):
    others, _ = imports(path)
    assert not others & FORBIDDEN.get(room_of(path), set())


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_flower_s_private_names_stay_in_one_file(path):
    private = ("flwr.supercore", "flwr.common.serde", "flwr.proto", "flwr.server", "flwr.client.", "flwr.simulation")
    found = [
        node.module
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(private)
        if not node.module.startswith("flwr.serverapp")
    ]
    assert not found or path.relative_to(PACKAGE).as_posix() == "flower/private.py"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_says_its_job_and_stays_readable(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "the first line says the job"
    assert text.count("\n") <= 420, "which second job moved in?"


def loaded_by(statement):
    code = f"import sys; {statement}; print(' '.join(sorted(m for m in sys.modules if '.' not in m)))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.integration
def test_importing_the_codec_loads_neither_torch_nor_flower():
    assert not loaded_by("import fedq.codec") & {"torch", "flwr", "hydra", "opacus", "onnx"}


@pytest.mark.integration
def test_importing_fedq_and_its_command_line_loads_nothing_heavy():
    assert not loaded_by("import fedq, fedq.cli") & {"torch", "flwr", "hydra", "numpy", "matplotlib"}


@pytest.mark.integration
def test_the_process_of_a_message_loads_neither_torch_nor_hydra_where_a_warm_one_answers():
    assert not loaded_by("import fedq.app") & {"torch", "opacus", "hydra", "omegaconf", "sklearn", "filelock"}


@pytest.mark.integration
def test_a_run_without_privacy_does_not_load_opacus():
    assert not loaded_by("import fedq.runtime") & {"opacus", "onnx", "onnxruntime", "sklearn", "matplotlib"}


def test_the_version_is_the_same_in_both_places():
    import tomllib

    import fedq

    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    assert project["project"]["version"] == fedq.__version__


@pytest.mark.integration
def test_the_repository_is_itself_a_flower_app():
    import io
    import zipfile

    from fedq.flower import private as flower

    names = zipfile.ZipFile(io.BytesIO(flower.bundle(PACKAGE.parent))).namelist()
    assert "conf/experiment/demo.yaml" in names
    assert not [name for name in names if name.endswith(".py")]


# Private words -> what the field says. Whole words, in any case.
OLD_WORDS = {
    "mend": "fix",
    "mends": "fixes",
    "mended": "fixed",
    "dearest": "slowest",
    "reckon": "compute",
    "reckons": "computes",
    "reckoned": "computed",
    "dealer": "sampler",
    "desk": "handshake",
    "guest": "foreign app",
    "stranger": "unknown client",
    "twin": "reference model",
    "twins": "reference models",
    "whole clients": "client-level DP",
}


def test_the_field_s_words_are_used():
    root = PACKAGE.parent
    found = []
    for path in [*files(), *(root / "conf").rglob("*.yaml"), *(root / "docs").glob("*.md"), root / "README.md"]:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            for old in OLD_WORDS:
                if re.search(rf"\b{old}\b", line, re.IGNORECASE) and "fedq.guest" not in line:
                    found.append(f"{path.relative_to(root)}:{number}: say {OLD_WORDS[old]!r}, not {old!r}")
    assert not found, "\n".join(found)
