"""What the last table says and how it fits. Knows only fedq.results."""

import io

import pytest
from rich.console import Console

from fedq.console import PartCost, final_table
from fedq.console.next_steps import next_steps


@pytest.fixture
def printed(make_result):
    """The report as text of at most `width` columns, runs of blanks as one."""

    def show(costs=(), *, width=80, encoding="utf-8", overrides=(), squeeze=True, **different):
        raw = io.BytesIO()
        file = io.TextIOWrapper(raw, encoding=encoding)
        Console(file=file, width=width).print(final_table(make_result(**different), costs, overrides=overrides))
        file.flush()
        text = raw.getvalue().decode(encoding)
        return " ".join(text.split()) if squeeze else text

    return show


def test_both_models_stand_with_the_ops_that_ran(printed):
    text = printed()
    assert "accuracy 75.00 % fake-quant model, on the server's held-out test set" in text
    assert "int8 74.31 % int8 model, on int8 kernels: 2 QGemm; still in float: 1 Tanh" in text


def test_a_quantized_run_without_an_int8_model_says_what_its_accuracy_is_of_and_why(printed):
    none = {"int8_ops": {}, "float_ops": {}, "int8_accuracy": None, "int8_model_bytes": None}
    text = printed(quantized=["0 (Linear): int8 weights", "no int8 model: ranges are each example's own"], **none)
    assert "accuracy 75.00 % fake-quant model, on the server's" in text
    assert "int8 none ranges are each example's own" in text
    assert "float32 model, on" in printed(quantized=[], **none)


def test_agreement_of_the_two_models_is_told(printed):
    assert "99.72 % of its answers are the fake-quant model's" in printed(int8_agreement=0.9972)
    assert "of its answers" not in printed()


def test_an_int8_file_that_runs_in_float_is_called_that(printed):
    assert "on int8 kernels: NOT ONE" in printed(int8_ops={})


def test_an_int8_model_that_is_slower_than_float32_is_called_that(printed):
    profile = {"QLinearConv": 0.614, "MaxPool": 0.236, "Tanh": 0.045, "QGemm": 0.008}
    text = printed(int8_speedup=0.618, int8_profile=profile)
    assert "0.62 times as fast as the same model in float32: int8 does not pay on this machine" in text
    assert "its time goes to 61 % QLinearConv, 24 % MaxPool, 4 % Tanh " in text
    assert "QGemm" not in text.split("its time goes to")[1].split("epsilon")[0]


@pytest.mark.parametrize("speedup", [None, 1.0, 2.04])
def test_an_int8_model_that_pays_needs_no_such_line(printed, speedup):
    assert "does not pay" not in printed(int8_speedup=speedup, int8_profile={"QGemm": 1.0})


def test_epsilon_stands_with_delta_and_unit(printed):
    assert "epsilon 4.00 at delta 1e-05, protecting one example of one client" in printed()


def test_epsilon_is_rounded_up(printed):
    assert "epsilon 7.94 at" in printed(epsilon=7.9301)


def test_an_epsilon_of_one_run_alone_is_called_that(printed):
    alone = "this run alone, by public numbers; what clients spent before is not included"
    assert f"protecting one example of one client; {alone}" in printed(epsilon_of="run")
    assert "this run alone" not in printed(epsilon_of="ledgers")


def test_a_run_that_is_not_private_says_why(printed):
    text = printed(private=False, privacy_reasons=["noise was seeded", "client 7 keeps no ledger"])
    assert "private no because noise was seeded; client 7 keeps no ledger" in text


def test_without_privacy_none_is_claimed(printed):
    text = printed(epsilon=None, private=False)
    assert "privacy off no privacy claimed" in text
    assert "epsilon" not in text.split("try next")[0]


def test_bytes_stand_against_float32(printed):
    text = printed()
    assert "sent up 4.00 kB 25.0 % of 16.0 kB as float32" in text
    assert "sent down 5.50 kB 27.5 % of 20.0 kB as float32" in text
    assert "model file 5.00 kB int8, 25.0 % of 20.0 kB as float32" in text


def test_lost_clients_are_counted_by_reason(printed):
    assert "lost replies 12 11 late, 1 nonfinite; 1 round skipped" in printed()


def test_another_metric_takes_the_place_of_accuracy(printed):
    text = printed(accuracy=None, metric="mse", metric_value=0.12344, int8_metric_value=0.125)
    assert "mse 0.1234 fake-quant model" in text
    assert "int8 0.125 int8 model" in text


def test_a_run_that_was_not_evaluated_says_so(printed):
    assert "not evaluated: no test set" in printed(accuracy=None, int8_accuracy=None, accuracy_source="none")


def test_the_cost_of_a_part_is_a_difference_in_points(printed):
    costs = [PartCost("QAT", 0.962, 0.958, "demo, 5 runs"), PartCost("privacy", 0.958, 0.931, "demo, 5 runs")]
    text = printed(costs)
    assert "QAT 96.2 % 95.8 % -0.4 points" in text
    assert "privacy 95.8 % 93.1 % -2.7 points" in text
    assert text.count("demo, 5 runs") == 1


def test_an_early_end_is_told_first(printed):
    text = printed(status="ended", status_reason="all clients declined: budget")
    assert text.index("because all clients declined: budget") < text.index("accuracy")


def test_files_that_are_there_are_listed(printed, tmp_path):
    (tmp_path / "model.onnx").touch()
    (tmp_path / "clients").mkdir()
    text = printed(folder=tmp_path, width=200)
    assert str(tmp_path) in text
    assert "model.onnx the int8 model" in text
    assert "clients/" in text
    assert "model.safetensors" not in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_screen(printed, width):
    costs = [
        PartCost("a part with a rather long name " * 3, 0.9, 0.8, "a"),
        PartCost("b", 0.9, 0.8, "b" * 50),
    ]
    text = printed(costs, width=width, squeeze=False, int8_ops={f"Op{i}": i for i in range(20)})
    assert max(map(len, text.splitlines())) <= width


def test_the_report_prints_where_only_ascii_can(printed):
    assert "accuracy" in printed([PartCost("QAT", 0.9, 0.8, "x")], encoding="ascii")


def test_foreign_text_is_neither_markup_nor_control(printed):
    text = printed(
        name="[red]x\x1b[2J",
        status_reason="[bold]y[/bold]\r\nz",
        metric="m[0]",
        accuracy=None,
        metric_value=1.0,
    )
    assert "[red]x\\x1b[2J" in text
    assert "[bold]y[/bold]\\r\\nz" in text
    assert "m[0]" in text
    assert "\x1b" not in text


def test_the_same_run_without_privacy_drops_its_options(make_result):
    words = ["experiment=demo", "privacy=example", "privacy.target_epsilon=4", "rounds=3"]
    assert next_steps(make_result(), words)[0].command == "fedq run experiment=demo rounds=3 privacy=off"


def test_another_seed_replaces_the_old_one(make_result):
    assert next_steps(make_result(seed=4), ["seed=4", "rounds=3"])[1].command == "fedq run rounds=3 seed=5"


def test_an_int8_run_is_compared_with_plain_fedavg(make_result):
    first = next_steps(make_result(epsilon=None), ["codec=int8", "codec.block=64"])[0]
    assert first.command == "fedq run quant=off codec=float32"


def test_plain_fedavg_is_offered_without_the_options_of_either_direction(make_result):
    words = ["rounds=3", "codec=sign", "codec.rotate=true", "downlink.name=int4", "downlink.kind=delta"]
    first = next_steps(make_result(epsilon=None), words)[0]
    assert first.command == "fedq run rounds=3 quant=off codec=float32"


def test_a_float_run_is_offered_int8(make_result):
    plain = make_result(epsilon=None, int8_model_bytes=None, bytes_up=16_000)
    assert next_steps(plain, [])[0].command == "fedq run codec=int8"


def test_a_pasted_command_is_quoted_and_fits(make_result):
    import shlex

    words = ["name=it is mine", *(f"model.option_{i}={i}" for i in range(12))]
    command = next_steps(make_result(), words)[0].command
    assert max(map(len, command.splitlines())) <= 76
    # What the shell makes of a backslash and a newline: nothing.
    assert shlex.split(command.replace("\\\n", "")) == ["fedq", "run", *words, "privacy=off"]
