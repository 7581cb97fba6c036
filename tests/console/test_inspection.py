"""What is said of an inspection: the sentence, the advice and the table, from figures by hand."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from fedq.console.inspection import Inspected, inspection_json, inspection_table, remedies, sparkline, summary
from fedq.quant.inspection import GridView, Inspection, LayerView, WeightView
from fedq.results import strict_json

ABOUT = Inspected("outputs/run", "256 of 359 test examples", None, 6454, 4.0, 8.0, ())
INPUT = GridView("input", "fixed", 8, -4.0, 4.0, clipped=0.0, used=0.9)
OUTPUT = GridView("output", "fixed", 8, 0.0, 8.0, clipped=0.0, used=0.9)
WEIGHT = WeightView("hidden.weight", (64, 64), 0.25, (1, 8, 4), 4608)
HIDDEN = LayerView("hidden", "Linear", 8, (WEIGHT,), (INPUT, OUTPUT), None, 0.04, 0.001, 0.04)
LAST = LayerView("last", "Linear", 8, (replace(WEIGHT, name="last.weight"),), (), "hidden", 0.02, 0.02, 0.05)
FLOAT = LayerView("norm", "LayerNorm", None, (WeightView("norm.weight", (64,), 0.0, (), 256),), (), None, 0, 0, 0.05)


def found(*layers):
    return Inspection(layers, 256, 4810)


def clipping(**changes):
    return replace(HIDDEN, grids=(INPUT, replace(OUTPUT, **changes)))


def shown(what, about=ABOUT):
    page = io.StringIO()
    Console(file=page, width=100).print(inspection_table(what, about))
    return page.getvalue()


def test_clipping_is_mended_by_a_range_that_holds_the_largest_value():
    seen = found(clipping(clipped=0.041, used=2.31), LAST)
    assert remedies(seen, ABOUT) == ["quant.activation_range=19", "quant.activations=learned", "quant.skip=[hidden]"]
    assert summary(seen, ABOUT) == (
        "hidden loses most by itself, 4.0 % of its output: 4.1 % of the values lie beyond its output grid "
        "[0, 8]. Try quant.activation_range=19 or quant.activations=learned or quant.skip=[hidden]."
    )


def test_the_input_s_own_range_has_an_option_of_its_own():
    seen = found(replace(HIDDEN, grids=(replace(INPUT, clipped=0.5, used=3.0), OUTPUT)))
    assert remedies(seen, ABOUT)[0] == "quant.input_range=12"


def test_an_idle_range_is_made_smaller_but_not_below_what_other_layers_need():
    wide = clipping(used=0.1)
    assert remedies(found(wide), ABOUT)[0] == "quant.activation_range=0.8"
    needs = replace(LAST, grids=(replace(OUTPUT, used=0.4),))
    assert remedies(found(wide, needs), ABOUT)[0] == "quant.activation_range=3.2"
    full = replace(LAST, grids=(OUTPUT,))
    assert remedies(found(wide, full), ABOUT) == ["quant.activations=learned", "quant.skip=[hidden]"]


def test_coarse_weights_get_more_bits():
    coarse = replace(HIDDEN, bits=4, weights_error=0.038)
    assert remedies(found(coarse), ABOUT) == ["quant.weight_bits=8", "quant.skip=[hidden]"]
    assert "rounding its weights to 4 bits alone costs 3.8 %" in summary(found(coarse), ABOUT)


def test_coarse_activations_get_more_bits():
    coarse = replace(HIDDEN, grids=(replace(INPUT, bits=4), replace(OUTPUT, bits=4)))
    assert remedies(found(coarse), ABOUT) == ["quant.activation_bits=8", "quant.skip=[hidden]"]


def test_learned_ranges_are_not_set_by_hand():
    learned = replace(HIDDEN, grids=(replace(OUTPUT, kind="learned", clipped=0.1, used=2.0),))
    assert remedies(found(learned), ABOUT) == ["quant.skip=[hidden]"]


def test_layers_that_are_skipped_already_stay_in_the_advice():
    assert remedies(found(HIDDEN), replace(ABOUT, skip=("first",)))[-1] == "quant.skip=[first,hidden]"


def test_where_little_is_lost_there_is_nothing_to_try():
    seen = found(replace(HIDDEN, own_error=0.004))
    assert remedies(seen, ABOUT) == []
    assert summary(seen, ABOUT) == "No layer loses much: hidden most, 0.4 % of its output. There is nothing to fix."


def test_the_table_fits_100_columns_and_marks_the_worst():
    page = shown(found(clipping(clipped=0.041, used=2.31), FLOAT, LAST))
    assert max(map(len, page.splitlines())) <= 100
    lines = page.splitlines()
    assert [line.split()[0] for line in lines if line.rstrip().endswith("<")] == ["hidden"]
    for words in ("64x64", "25.0 %", "[-4, 4]", "231 %", "4.1 %", "LayerNorm", "float", "256 of 359 test examples",
                  "4,810 parameters", "6.45 kB"):  # fmt: skip
        assert words in page


def test_layers_that_stay_float_are_told_with_the_reason():
    about = replace(ABOUT, left_float={"last": "named in quant.skip"})
    assert " last stays float: named in quant.skip\n" in shown(found(HIDDEN), about).replace(" \n", "\n").replace(
        "  ", ""
    )
    assert inspection_json(found(HIDDEN), about)["left_float"] == {"last": "named in quant.skip"}


def test_a_foreign_name_cannot_move_the_cursor():
    page = shown(found(replace(HIDDEN, name="\x1b[2Jevil")))
    assert "\x1b" not in page


def test_json_says_the_same():
    seen = found(clipping(clipped=0.041, used=2.31), FLOAT, LAST)
    told = strict_json.loads(strict_json.dumps(inspection_json(seen, ABOUT)))
    assert [layer["name"] for layer in told["layers"]] == ["hidden", "norm", "last"]
    assert told["layers"][0]["grids"][1]["clipped"] == 0.041
    assert told["loses_most"]["layer"] == "hidden"
    assert told["summary"] == summary(seen, ABOUT)
    assert told["int8_bytes"] == 2 * 4608 + 256
    assert told["float32_bytes"] == 4 * 4810


@pytest.mark.parametrize(
    ("counts", "bars"), [((1, 100, 8), "▂██"), ((8, 0, 8), "█ █"), ((0, 0, 0), ""), ((0, 5, 0), " █ "), ((), "")]
)
def test_a_sparkline_measures_by_what_lies_beside_the_middle(counts, bars):
    assert sparkline(counts) == bars


def test_long_names_give_way_to_numbers_beside_the_figures_so_that_these_keep_their_lines():
    seen = found(replace(HIDDEN, name="scattering.low1_coarse.along"), FLOAT)
    page = io.StringIO()
    Console(file=page, width=80).print(inspection_table(seen, ABOUT))
    _, figures = page.getvalue().split("activations and errors")
    header, first = figures.splitlines()[1], figures.splitlines()[3]
    assert (header.split()[0], first.split()[0]) == ("nr", "1")
    assert all(figure in first for figure in ("[0, 8]", "4.0 %"))
    assert "along" not in figures.split("clipped: beyond")[0]
