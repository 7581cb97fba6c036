"""When weights are pruned, and the rules about it. Knows the schema; not layouts or who prunes."""

from collections.abc import Iterator, Sequence

from fedq.config.problem import Problem
from fedq.config.schema import Config


def pruning_rounds(config: Config) -> tuple[int, int]:
    """(round up to which all is dense, round after which the sparsity is reached); the shares rounded down."""
    begin = int(config.quant.sparsity_begin * config.rounds + 1e-9)
    return begin, max(begin + 1, int(config.quant.sparsity_end * config.rounds + 1e-9))


def pruning_problems(config: Config) -> Iterator[Problem]:
    q = config.quant
    if q.sparsity is None or q.name == "off":
        return
    if q.sparsity_begin >= q.sparsity_end:
        rule = f"pruning must begin before it ends, at quant.sparsity_end={q.sparsity_end:g}"
        yield Problem("quant.sparsity_begin", q.sparsity_begin, rule, "Use quant.sparsity_begin=0.1")
    elif config.rounds < 2:
        rule = "what pruning breaks is fixed in the rounds after it: there must be two or more"
        yield Problem("rounds", config.rounds, rule, "Use rounds=20, or quant.sparsity=null")
    elif (end := pruning_rounds(config)[1]) >= config.rounds:
        rule = f"the last weights would go after round {end} of {config.rounds}, and one round at least must follow"
        yield Problem("quant.sparsity_end", q.sparsity_end, rule, "Use quant.sparsity_begin=0.1 quant.sparsity_end=0.6")
    if config.downlink.kind == "delta":
        rule = f"changes are against weights that quant.sparsity={q.sparsity:g} takes away between two rounds"
        yield Problem("downlink.kind", "delta", rule, "Use downlink.kind=weights")


def idle_pruning(config: Config) -> tuple[Sequence[str], bool, str, str]:
    """Options that do nothing in a dense run: (keys, whether they apply, why not, the fix)."""
    keys = ("quant.sparsity_begin", "quant.sparsity_end")
    rule = "quant.sparsity is null, so it would do nothing"
    return keys, config.quant.sparsity is not None, rule, "Add quant.sparsity=0.9"
