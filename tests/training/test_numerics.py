"""What a run's fingerprint says of the processor. Knows no model."""

from fedq.training.hardware import Hardware
from fedq.training.numerics import cpu_flags, fingerprint


def test_the_flags_that_int8_kernels_ask_for_are_told(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma avx512_vnni\n\nprocessor\t: 1\nflags\t\t: amx_int8\n")
    assert cpu_flags(cpuinfo) == ["avx2", "avx512_vnni"]


def test_arm_calls_them_features(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n\n")
    assert cpu_flags(cpuinfo) == ["asimddp", "i8mm"]


def test_where_no_file_tells_them_there_are_none(tmp_path):
    assert cpu_flags(tmp_path / "cpuinfo") == []


def test_they_stand_in_the_fingerprint():
    assert fingerprint(Hardware(), autocast="off")["cpu_flags"] == cpu_flags()
