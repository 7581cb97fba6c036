"""Every module of fedq has a test file of its name, or stands here with the file that tests it.

`fedq/codec/int8.py` is tested by `tests/codec/test_int8.py`, or by `test_codec_int8.py` where the short name would be
taken twice. A new module without such a file needs a line in ELSEWHERE; a line whose module got one has to go.
"""

from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "fedq"

# Module -> the files below tests/ that test it.
ELSEWHERE = {
    "algorithms/algorithm": "algorithms/test_fedavg.py algorithms/test_scaffold.py",  # the interface: its algorithms
    # A server or client of a deployment
    "app/acceptance": "app/test_node.py app/test_hostile_requests.py",
    "app/direct": "app/test_warm.py app/test_serving.py",
    "app/host": "app/test_serving.py e2e/test_deployment.py",
    "app/node_config": "app/test_node.py",
    "app/owned": "app/test_hostile_requests.py",
    "app/warm/frames": "app/test_warm.py",
    "app/warm/handover": "app/test_warm.py",
    "app/warm/place": "app/test_warm.py",
    "app/warm/process": "app/test_warm.py",
    "app/warning": "app/test_hostile_requests.py",
    "artifacts/loading": "e2e/test_run.py",
    # Parts of one audit: its findings are tested as a whole
    "audit/audit": "audit/test_planted_bugs.py",
    "audit/black_box": "audit/test_audit_canaries.py",
    "audit/report": "e2e/test_cli_audit.py",
    "audit/run": "e2e/test_cli_audit.py",
    "audit/subject": "audit/test_audit_neighbours.py",
    "audit/verdict": "audit/test_audit_canaries.py",
    # Commands: tested as a user types them
    "cli/audit": "e2e/test_cli_audit.py",
    "cli/client": "e2e/test_cli_privacy.py e2e/test_client_status.py",
    "cli/foreign": "e2e/test_hostile_files.py",
    "cli/models": "e2e/test_cli_models.py",
    "cli/privacy": "e2e/test_cli_privacy.py",
    "cli/terminal": "e2e/test_cli.py",
    "client/residual": "client/test_state.py",
    "client/task": "client/test_client.py client/test_client_algorithm.py",
    # Codecs: one property is tested of all of them
    "codec/bits": "codec/test_codec_lowbits.py",
    "codec/blockwise": "codec/test_codec_lowbits.py codec/test_codec_int8.py",
    "codec/codec": "codec/test_codec_packet.py",
    "codec/codecs": "codec/test_codec_packet.py",
    "codec/elias_fano": "codec/test_codec_sparse.py",
    "codec/entropy": "codec/test_codec_packet.py fuzz/test_fuzz.py",
    "codec/finite": "codec/test_codec_kernels.py",
    "codec/float16": "codec/test_codec_packet.py",
    "codec/float32": "codec/test_codec_packet.py",
    "codec/header": "codec/test_codec_packet.py",
    "codec/int2": "codec/test_codec_lowbits.py",
    "codec/int4": "codec/test_codec_lowbits.py",
    "codec/kernel_parts": "codec/test_codec_kernels.py",
    "codec/kernels_bits": "codec/test_codec_kernels.py",
    "codec/kernels_rotation": "codec/test_codec_kernels.py",
    "codec/kernels_uniform": "codec/test_codec_kernels.py",
    "codec/lloyd": "codec/test_codec_rotation.py",
    "codec/malformed": "codec/test_codec_packet.py",
    "codec/options": "codec/test_codec_packet.py",
    "codec/pending": "codec/test_codec_accumulator.py",
    "codec/randk": "codec/test_codec_sparse.py",
    "codec/sign": "codec/test_codec_lowbits.py",
    "codec/topk": "codec/test_codec_sparse.py",
    "codec/uniform": "codec/test_codec_int8.py codec/test_codec_lowbits.py",
    # Rules: all are asked through `problems(config)`
    "config/budgets": "e2e/test_cli_privacy.py app/test_node.py",
    "config/config_file": "experiment/test_rebuild.py",
    "config/example_level": "config/test_rules.py",
    "config/hardware": "config/test_rules.py",
    "config/problem": "config/test_compose.py config/test_rules.py",
    "config/public": "config/test_rules.py",
    "config/privacy_options": "config/test_compose.py config/test_rules.py",
    "config/quant_options": "config/test_compose.py config/test_rules.py",
    "config/schema": "config/test_compose.py config/test_rules.py",
    "config/untrusted": "e2e/test_hostile_files.py",
    # Tables: tested where a command prints them
    "console/costs": "e2e/test_cli.py",
    "console/exported": "e2e/test_cli_models.py",
    "console/forecast": "e2e/test_cli_privacy.py",
    "console/live": "console/test_display.py runtime/test_observers.py",
    "console/next_steps": "console/test_report.py",
    "console/round_table": "console/test_display.py",
    "core/compiled": "codec/test_codec_jit.py",
    "core/jit": "codec/test_codec_jit.py",
    "core/lifetime": "app/test_warm.py",
    "core/limits": "config/test_deltas.py privacy/test_evidence.py",
    "core/packet_names": "client/test_client_algorithm.py",
    "core/randomness": "client/test_client.py server/test_sampling.py",
    "core/seeding": "training/test_step.py e2e/test_run.py",
    "data/errors": "data/test_idx.py data/test_table.py",  # exceptions alone
    # Parts of `build`: tested by what it builds or refuses
    "experiment/binding": "experiment/test_build.py app/test_hostile_requests.py",
    "experiment/client_level": "config/test_config_client_level.py artifacts/test_artifacts_client_level.py",
    "experiment/data": "experiment/test_build.py experiment/test_data_names.py",
    "experiment/experiment": "experiment/test_build.py",
    "experiment/foreign": "e2e/test_hostile_files.py",
    "experiment/hardware": "experiment/test_build.py training/test_on_gpus.py",
    "experiment/ledgers": "experiment/test_data_names.py",
    "experiment/model": "experiment/test_build.py",
    "experiment/optimizers": "experiment/test_build.py",
    "experiment/plans": "experiment/test_build.py",
    "experiment/trade_off": "e2e/test_cli_privacy.py",
    "flower/private": "test_architecture.py flower/test_grid.py",
    "flower/wire/checks": "flower/test_wire.py",
    "flower/wire/foreign": "flower/test_wire.py client/test_mod.py",
    "flower/wire/messages": "flower/test_wire.py",
    "models/resnet": "models/test_reference.py",
    "models/shapes": "models/test_reference.py",
    "models/transformer": "models/test_reference.py",
    "new/app": "new/test_new.py",
    "new/names": "new/test_new.py",
    "per_example/contributions": "per_example/test_layers.py privacy/test_clipping.py",
    # Parts of the ledger and of client-level DP
    "privacy/chain": "privacy/test_ledger.py privacy/test_ledger_tampering.py",
    "privacy/client_level_account": "privacy/test_client_level_evidence.py",
    "privacy/jit": "privacy/test_privacy_kernels.py",
    "privacy/mechanisms/discrete_gaussian": "privacy/test_mechanisms.py privacy/test_dpsgd_noise.py",
    "privacy/mechanisms/gaussian": "privacy/test_mechanisms.py privacy/test_dpsgd_noise.py",
    "privacy/mechanisms/mechanism": "privacy/test_mechanisms.py",
    "privacy/ledger_tip": "privacy/test_ledger.py privacy/test_ledger_tampering.py",
    "privacy/ledger_files": "privacy/test_ledger.py e2e/test_hostile_files.py",
    "privacy/spend": "privacy/test_ledger.py",
    # Export: tested by the file it writes
    "quant/parity": "quant/test_quant_export.py",
    "quant/calibration": "quant/test_quant_export.py",
    "quant/capture": "quant/test_quant_export.py",
    "quant/grids": "quant/test_quant_fake.py quant/test_quant_grad_samplers.py",
    "quant/int8_model": "quant/test_quant_export.py",
    "quant/jit": "quant/test_quant_kernels.py",
    "quant/layers": "quant/test_quant_swap.py quant/test_quant_fake.py",
    "quant/onnx_graph": "quant/test_quant_export.py",
    "quant/onnx_passes/blocks": "quant/test_quant_passes.py",
    "quant/onnx_passes/graph": "quant/test_quant_passes.py",
    "quant/onnx_passes/groups": "quant/test_quant_passes.py",
    "quant/onnx_passes/tanh": "quant/test_quant_passes.py",
    "quant/onnx_passes/tokens": "quant/test_quant_passes.py",
    "quant/placement": "quant/test_quant_swap.py",
    "quant/recurrent": "quant/test_quant_grad_samplers.py",
    "results/accounts": "console/test_accounts.py",
    "results/forecast": "e2e/test_cli.py e2e/test_sparse_run.py",
    "results/strict_json": "results/test_result.py results/test_rows.py",
    # Runtimes: tested by whole runs on each
    "runtime/deployment": "e2e/test_deployment.py runtime/test_following.py",
    "runtime/forecast": "e2e/test_cli.py runtime/test_held.py",
    "runtime/headline": "e2e/test_cli.py",
    "runtime/local": "e2e/test_run.py",
    "runtime/pool": "e2e/test_run.py e2e/test_cli.py",
    "runtime/ray": "e2e/test_deployment.py",
    "runtime/rehearsal": "e2e/test_deployment.py",
    "runtime/start": "e2e/test_run.py",
    "runtime/worker": "e2e/test_run.py",
    "runtime/worker_processes": "e2e/test_run.py e2e/test_cli.py",
    "server/flower_loop": "server/test_against_flower.py",
    "server/link": "server/test_roster.py client/test_what_leaves_a_client.py",
    "server/node_names": "server/test_hostile_nodes.py",
    "server/optimizer": "server/test_strategy.py",
    "training/arrays": "training/test_step.py training/test_pruned.py",
    "training/correction": "client/test_client_algorithm.py algorithms/test_scaffold.py",
    "training/objectives": "e2e/test_run.py",
    "training/trainer": "training/test_step.py",
}


def modules():
    files = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py") if path.stem != "__init__")
    return sorted(path.as_posix() for path in files)


def has_its_own(module):
    room, name = module.split("/")[0], module.split("/")[-1]
    return any((TESTS / room / file).is_file() for file in (f"test_{name}.py", f"test_{room}_{name}.py"))


@pytest.mark.parametrize("module", modules())
def test_a_module_has_a_test_file_of_its_name_or_is_tested_elsewhere(module):
    assert has_its_own(module) != (module in ELSEWHERE), (
        "has a test file of its own: remove its line from ELSEWHERE"
        if module in ELSEWHERE
        else f"write tests/{module.split('/')[0]}/test_{module.split('/')[-1]}.py, or add a line to ELSEWHERE"
    )


def test_modules_and_files_that_are_named_exist():
    assert set(ELSEWHERE) <= set(modules())
    assert [file for files in ELSEWHERE.values() for file in files.split() if not (TESTS / file).is_file()] == []
