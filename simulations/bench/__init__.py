"""Benchmarks: ours against a peer, on this machine, now.   python -m simulations.bench NAME [--json] [--full]"""

# Name -> module whose `rows(effort)` yields `Row`s. Imported when asked for: threads must be pinned before torch is.
BENCHMARKS = {
    "codec": "simulations.bench.codec",
    "job": "simulations.bench.job",
    "deployed": "simulations.bench.deployed",
    "privacy": "simulations.bench.privacy",
    "quant": "simulations.bench.quant",
    "runtime": "simulations.bench.runtime",
    "startup": "simulations.bench.startup",
}
