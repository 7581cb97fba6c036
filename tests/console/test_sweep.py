import io

from rich.console import Console

from fedq.console import sweep_table
from fedq.results import Result


def result(**different):
    usual = {"name": "demo", "status": "finished", "rounds": 3, "seed": 0, "wall_seconds": 1.0}
    traffic = {"bytes_up": 1000, "bytes_down": 2000, "float32_bytes_up": 4000, "float32_bytes_down": 8000}
    return Result(**(usual | traffic | different))


def lines(runs):
    screen = io.StringIO()
    Console(file=screen, width=120, color_system=None).print(sweep_table(runs))
    return screen.getvalue().splitlines()


def test_a_row_shows_what_the_run_changed_and_what_came_of_it():
    common = ["experiment=demo"]
    header, one, two = lines(
        [
            (
                [*common, "privacy.target_epsilon=1"],
                result(accuracy=0.8, int8_accuracy=0.79, epsilon=1.0, private=True),
            ),
            ([*common, "privacy.target_epsilon=8"], result(accuracy=0.9, int8_accuracy=0.91, epsilon=7.994)),
        ]
    )
    assert header.split() == ["run", "score", "int8", "epsilon", "up", "down", "folder"]
    assert one.split() == ["privacy.target_epsilon=1", "80.0", "%", "79.0", "%", "1.00", "1.00", "kB", "2.00", "kB"]
    assert two.split()[:7] == ["privacy.target_epsilon=8", "90.0", "%", "91.0", "%", "8.00", "(not"]


def test_a_regression_shows_its_metric():
    (_, row) = lines([(["a=1"], result(metric="r2", metric_value=0.5))])
    assert row.split()[:4] == ["demo", "0.5", "-", "off"]
