"""The benchmark command, its timing helper and its rows; Ray itself only in a slow test."""

import json
import sys
from io import StringIO

import numpy as np
import pytest
from rich.console import Console
from torch import nn

from fedq.data import Dataset, Examples
from fedq.quant import quantize
from simulations.bench import BENCHMARKS, timing
from simulations.bench.__main__ import main
from simulations.bench.row import PeerAbsentError, Row, show
from simulations.bench.timing import medians

pytestmark = pytest.mark.integration

KEYS = ["name", "ours", "reference", "unit", "ratio", "compared"]


@pytest.fixture
def faster() -> Row:
    return Row("decode", ours=0.123456, reference=2.0, unit="ms", way="reference/ours", words="theirs over ours")


def test_an_unknown_name_exits_2_and_tells_the_names_there_are(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["runtim"])
    told = capsys.readouterr()
    assert all(name in told.err for name in ("runtim", *BENCHMARKS))
    assert told.out == ""


def test_without_ray_a_table_says_so_and_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    assert main(["runtime"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "ray is not installed" in told
    assert 'pip install -e ".[ray]"' in told


def test_without_ray_json_has_no_row_and_stderr_says_why(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["runtime", "--json"]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "ray is not installed" in told.err


def test_a_row_is_one_line_of_json_whose_ratio_is_that_of_its_numbers(faster):
    line = faster.to_json()
    told = json.loads(line)
    assert "\n" not in line
    assert list(told) == KEYS
    assert told["ratio"] == pytest.approx(told["reference"] / told["ours"], rel=1e-3)
    assert told["compared"] == "reference/ours: theirs over ours"


def test_the_other_way_round_the_ratio_is_turned():
    row = Row("bytes", ours=25.0, reference=100.0, unit="B", way="ours/reference", words="")
    assert row.ratio == 0.25


def test_a_nan_is_no_json():
    with pytest.raises(ValueError, match="Out of range float values"):
        Row("broken", ours=float("nan"), reference=1.0, unit="ms", way="ours/reference", words="").to_json()


def test_the_table_shows_numbers_and_words(faster):
    console = Console(width=100, file=StringIO())
    show([faster], console)
    text = console.file.getvalue()
    assert all(part in text for part in ("decode", "0.123", "16.2", "reference/ours", "theirs over ours"))


def test_contenders_take_turns_in_an_order_that_is_reversed_each_time():
    turns: list[str] = []
    medians({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, repeats=3, warmups=1)
    assert "".join(turns) == "abbaabba"


def test_the_median_leaves_warm_ups_and_outliers_out():
    clock = iter([50.0, 3.0, 1.0, 90.0, 2.0, 4.0])
    assert medians({"own clock": lambda: next(clock)}, repeats=5, warmups=1) == {"own clock": 3.0}


def test_the_machine_is_told_with_cores_flags_and_threads(monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor\t: 1\n")
    monkeypatch.setattr(timing, "_CPUINFO", cpuinfo)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    told = timing.machine()
    assert "Some CPU (avx2 avx512_vnni), 1 numerical thread(s)" in told
    assert told.startswith(f"{timing.num_cores()} cores of")


def test_a_timed_round_of_ours_is_a_whole_round():
    from simulations.bench.runtime import SMALL, _Rounds

    rounds = _Rounds(SMALL, tasks=3, rounds=2)
    assert rounds.run() > 0  # raises where a reply is dropped
    traffic = rounds._link.gather(1, rounds.broadcast, dict.fromkeys("012", -1)).traffic
    assert traffic.up > 3 * 4 * SMALL.size  # every reply carries its packet, and is counted


@pytest.fixture
def mlp_alone(monkeypatch):
    """The quantization benchmark of one small model and one density, timed once."""
    from simulations.bench import quant, quant_int8, quant_sparse, quant_steps

    for module in (quant_steps, quant_int8):
        monkeypatch.setattr(module, "MODELS", ("mlp",))
    for module in (quant_steps, quant_int8, quant_sparse):
        monkeypatch.setattr(module, "_SHORTEST", 1e-4)
    monkeypatch.setattr(quant_int8, "WIDE", {})
    monkeypatch.setattr(quant_sparse, "DENSITIES", (0.1,))
    return lambda: quant.rows(timing.Effort(repeats=1))


def test_without_fashion_mnist_every_row_that_needs_no_data_comes_and_then_the_notice(mlp_alone, monkeypatch):
    from simulations.bench import quant_int8

    monkeypatch.setattr(quant_int8, "data", lambda: None)  # as if it were not installed
    rows = []
    with pytest.raises(PeerAbsentError, match="apt-get install dataset-fashion-mnist"):
        rows.extend(mlp_alone())  # extends one by one
    assert [row.name for row in rows] == [
        "qat_step_mlp",
        "qat_dp_step_mlp",
        "sparse_int8_density10",
        "int8_file_mlp",
        "int8_speedup_mlp_batch1",
        "int8_speedup_mlp_batch64",
    ]
    assert all(row.ours > 0 and row.reference > 0 for row in rows)


def test_a_folder_without_fashion_mnist_is_none(tmp_path):
    from simulations.bench.quant_int8 import data

    assert data(str(tmp_path)) is None


def test_agreement_is_measured_on_the_file_that_was_exported(tmp_path, monkeypatch):
    from simulations.bench import quant_int8
    from simulations.bench.quant_int8 import Files, agreement, train

    monkeypatch.setitem(quant_int8.TRAINING, "mlp", (1.0, 32, 3e-3))
    examples = random_images(96)
    trained = train("mlp", Dataset(examples, None, examples, None, 10, "random"), quantized=True)
    files = Files.of(trained.model, tmp_path)
    row = agreement("mlp", trained, files, Dataset(examples, None, examples, None, 10, "random"), timing.QUICK)
    assert row.reference == 1.0
    assert row.ours >= 0.95
    assert "of 96 test images" in row.words
    assert "trained 1 epochs" in row.words


def random_images(count):
    random = np.random.default_rng(0)
    inputs = random.standard_normal((count, 1, 28, 28), dtype=np.float32)
    return Examples(inputs, random.integers(0, 10, count))


def test_an_output_step_is_the_input_step_times_the_largest_weight_step():
    from simulations.bench.quant_int8 import output_step

    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, 0.5)
    layer.weight.data[1, 0] = -6.3
    model = nn.Sequential(nn.Tanh(), layer)
    quantize(model, weight_range=63)
    assert output_step(model) == pytest.approx(6.3 / 63 / 127)


def test_a_model_without_int8_activations_has_no_output_step():
    from simulations.bench.quant_int8 import output_step

    model = nn.Sequential(nn.Linear(2, 2))
    assert output_step(model) is None
    quantize(model, activations=None)
    assert output_step(model) is None


def test_all_sparse_kernels_compute_the_product_of_the_dense_one():
    from simulations.bench.quant_sparse import kernels

    found = kernels(0.07)
    expected = found.pop("dense int8")().T
    assert len(found) >= 2
    for name, product in found.items():
        assert np.array_equal(product(), expected), name


@pytest.mark.slow
@pytest.mark.parametrize("setting", [(3.0, 1.0, 10), (5.27, 0.1, 1200), (0.7, 0.01, 300)])
def test_the_bench_s_own_reference_for_epsilon_is_that_of_dp_accounting(setting):
    """Where that is not installed, the row compares with this one."""
    from simulations.bench import privacy_epsilon

    reference, name = privacy_epsilon._reference()
    assert name == "dp-accounting"
    # dp-accounting's is an upper bound on a mesh of 1e-4
    assert privacy_epsilon.by_fft(*setting) == pytest.approx(reference(*setting), rel=1e-4)


def test_epsilon_of_a_full_batch_is_the_gaussian_mechanism_s_own():
    """Balle and Wang 2018, theorem 8: delta of one step of noise sigma; T steps are one of sigma / sqrt(T)."""
    from scipy.special import ndtr

    from simulations.bench import privacy_epsilon

    sigma = 3.0 / np.sqrt(10)
    epsilon = privacy_epsilon.by_fft(3.0, 1.0, 10)
    delta = ndtr(0.5 / sigma - epsilon * sigma) - np.exp(epsilon) * ndtr(-0.5 / sigma - epsilon * sigma)
    assert delta == pytest.approx(privacy_epsilon.DELTA, rel=1e-3)


def test_without_dp_accounting_the_row_says_what_it_compares_with(monkeypatch):
    from simulations.bench import privacy_epsilon

    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    monkeypatch.setattr(privacy_epsilon, "GRID", [(3.0, 1.0, 10)])
    (row,) = privacy_epsilon.rows(timing.QUICK)
    assert "dp-accounting is not installed" in row.words
    assert 1 <= row.ratio <= 1.01


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_the_clipped_sums_that_the_bench_times_are_those_of_opacus(name):
    from simulations.bench.privacy_steps import _Opacus

    assert _Opacus(name).difference(name) < 1e-5


def test_peak_memory_is_what_tensors_held_at_one_time():
    import torch

    from simulations.bench.privacy_steps import _peak

    def step() -> None:
        one = torch.zeros(1 << 20)
        two = torch.zeros(1 << 20)
        del one, two
        torch.zeros(1 << 20)

    assert _peak(step) == pytest.approx(2 * 4 * (1 << 20), rel=0.01)
