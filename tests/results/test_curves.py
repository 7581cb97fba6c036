"""What the picture shows, read from the figure itself. Knows only fedq.results."""

import subprocess
import sys

import pytest

from fedq.results import RoundRow, save_curves


def titles(figure):
    return [axis.get_title(loc="left") for axis in figure.axes]


def line(figure, label):
    found = [drawn for axis in figure.axes for drawn in axis.get_lines() if str(drawn.get_label()).startswith(label)]
    return [tuple(map(float, point)) for point in found[0].get_xydata()]


def test_accuracy_is_drawn_by_round(make_result):
    points = line(make_result().plot(), "test")
    assert points == [(0, 0.1), (1, 0.5), (2, 0.5), (3, 0.8), (4, 0.75)]


def test_the_int8_model_is_marked_at_the_end(make_result):
    assert line(make_result().plot(), "int8 model") == [(4, 0.7431)]


def test_bytes_are_cumulated_up_and_down(make_result):
    figure = make_result().plot()
    assert line(figure, "this run") == [(0, 1_100), (1, 3_200), (2, 5_300), (3, 7_400), (4, 9_500)]
    assert line(figure, "as float32") == [(0, 4_000), (1, 12_000), (2, 20_000), (3, 28_000), (4, 36_000)]


def test_epsilon_has_a_panel_only_if_it_was_spent(make_result):
    assert len(titles(make_result().plot())) == 3
    assert len(titles(make_result(history=[RoundRow(1, "ok", accuracy=0.5)]).plot())) == 2


def test_a_run_that_is_not_private_says_so_in_the_picture(make_result):
    def notes(result):
        return " ".join(text.get_text() for text in result.plot().axes[2].texts)

    assert "NOT private" in notes(make_result(private=False))
    assert "NOT private" not in notes(make_result())


def test_without_accuracy_the_loss_is_drawn(make_result):
    rows = [RoundRow(i, "ok", loss=1.0 / i) for i in (1, 2)]
    figure = make_result(accuracy=None, int8_accuracy=None, history=rows).plot()
    assert titles(figure)[0] == "Loss"
    assert line(figure, "test") == [(1, 1.0), (2, 0.5)]


@pytest.mark.integration
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_any_number_of_rounds_gives_a_png(make_result, four_rounds, tmp_path, count):
    save_curves(make_result(history=four_rounds[:count]), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.integration
def test_pyplot_is_left_alone(tmp_path):
    program = (
        "import sys; from pathlib import Path; from fedq.results import Result, RoundRow\n"
        "r = Result(name='x', status='finished', rounds=1, seed=0, wall_seconds=1.0, bytes_up=1,\n"
        "           bytes_down=1, float32_bytes_up=4, float32_bytes_down=4,\n"
        "           history=[RoundRow(1, 'ok', accuracy=.5)])\n"
        "assert r.plot()._repr_png_().startswith(b'\\x89PNG')\n"
        "print('matplotlib.pyplot' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
