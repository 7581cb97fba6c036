"""The pruning schedule in rounds, and rules about it. Knows the schema; not layouts."""

from collections.abc import Iterator

from fedq.config.problem import Problem
from fedq.config.schema import Config


def pruning_rounds(config: Config) -> tuple[int, int]:
    """(last dense round, round after which the sparsity is reached), both rounded down."""
    begin = int(config.quant.sparsity_begin * config.rounds + 1e-9)
    return begin, max(begin + 1, int(config.quant.sparsity_end * config.rounds + 1e-9))


def pruning_problems(config: Config) -> Iterator[Problem]:
    """What is wrong with the options of pruning."""
    q = config.quant
    if q.sparsity is None or q.name == "off":
        return
    if q.sparsity_begin >= q.sparsity_end:
        rule = f"pruning must begin before it ends, at quant.sparsity_end={q.sparsity_end:g}"
        yield Problem("quant.sparsity_begin", q.sparsity_begin, rule, "Use quant.sparsity_begin=0.1")
    elif config.rounds < 2:
        rule = "training after pruning must repair the model, so there must be two rounds or more"
        yield Problem("rounds", config.rounds, rule, "Use rounds=20, or quant.sparsity=null")
    elif (end := pruning_rounds(config)[1]) >= config.rounds:
        rule = f"the last weights would be pruned after round {end} of {config.rounds}, and one more round must follow"
        yield Problem("quant.sparsity_end", q.sparsity_end, rule, "Use quant.sparsity_begin=0.1 quant.sparsity_end=0.6")
    if config.downlink.kind == "delta":
        rule = f"quant.sparsity={q.sparsity:g} prunes weights between two rounds, but changes refer to older weights"
        yield Problem("downlink.kind", "delta", rule, "Use downlink.kind=weights")
