"""The examples of docs/hardware.md run as they stand, one after the other, and do what the page says."""

import re
from pathlib import Path

import pytest
import torch

from fedq.training import hardware

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "hardware.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run_blocks(number):
    """The first block defines the model and the data; each of the others goes on from the one before it."""
    torch.manual_seed(0)
    names, losses = {}, []
    for block in BLOCKS[:number]:
        exec(block, names)
        losses.append(float(names["loss"].detach()) if "loss" in names else None)
    return names, losses


def test_the_page_shows_the_model_and_three_things_to_do_with_it():
    assert len(BLOCKS) == 4


def test_the_quantized_model_trains_and_goes_on_training_in_parallel(capsys):
    names, (_, quantized, parallel) = run_blocks(3)
    assert "0 (Linear): int8 weights" in capsys.readouterr().out
    first = torch.nn.functional.cross_entropy(names["net"]()(names["inputs"]), names["targets"]).item()
    assert quantized < 0.5 * first
    assert parallel < quantized


@pytest.mark.slow
def test_the_model_is_federated_and_delivered_in_int8(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names, _ = run_blocks(4)
    result = names["result"]
    assert (result.status, result.rounds) == ("finished", 3)
    assert result.int8_ops
    assert result.bytes_up < 0.3 * result.float32_bytes_up


@pytest.mark.skipif(torch.cuda.is_available(), reason="the page quotes a machine without a GPU")
def test_what_is_said_of_a_missing_gpu_is_what_the_page_quotes():
    from fedq.config import ConfigError, compose
    from fedq.experiment import build

    with pytest.raises(ConfigError, match=r"^train\.device") as caught:
        build(compose(["train.device=cuda"]))
    assert str(caught.value) in PAGE or hardware.present("mps")
