"""What a machine has, and what is taken of it."""

import pytest
import torch

from fedq.training import Hardware, hardware


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")


@pytest.fixture
def neither_gpu_nor_mps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_takes_the_first_gpu(two_gpus):
    assert hardware.choose("auto") == torch.device("cuda", 0)


def test_auto_takes_metal_where_there_is_no_gpu(monkeypatch, neither_gpu_nor_mps):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert hardware.choose("auto") == torch.device("mps")


def test_auto_is_the_cpu_where_there_is_nothing_else(neither_gpu_nor_mps):
    assert hardware.choose("auto") == torch.device("cpu")


def test_the_cpu_can_be_had_beside_gpus(two_gpus):
    assert hardware.choose("cpu") == torch.device("cpu")


def test_gpus_are_all_that_are_visible(two_gpus):
    assert hardware.gpus() == (torch.device("cuda", 0), torch.device("cuda", 1))


def test_a_fingerprint_names_the_gpus_and_how_many_they_are(two_gpus):
    assert Hardware().describe() == "cpu"
    assert Hardware(hardware.gpus()).describe() == "2 x Tesla T4"


def test_a_machine_without_a_c_compiler_is_known_before_it_compiles(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert hardware.no_compiler(torch.device("cpu")) == "a C++ compiler (no-such-compiler)"
