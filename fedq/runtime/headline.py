"""A run's configuration in one line, for people. Depends on the config only."""

from fedq.config import Config, public


def headline(config: Config) -> str:
    """Clients, data, model and packets, such as "10 clients, digits, mlp, W8A8 QAT, int8 packets"."""
    c = config
    algorithm = c.algorithm.get("name", "fedavg")
    parts = [
        f"{c.clients} clients" if c.fraction == 1 else f"{public.cohort_size(c)} of {c.clients} clients",
        str(c.data.get("_target_", "data")).rpartition(".")[2],
        str(c.model.get("_target_", "model")).rpartition(".")[2],
        *([algorithm] if algorithm != "fedavg" else []),
        "float32 model" if c.quant.name == "off" else _bits(c),
        f"{c.codec.name} packets" if c.downlink.name is None else f"{c.codec.name} up, {c.downlink.name} down",
    ]
    return ", ".join(parts)


def _bits(config: Config) -> str:
    activations = "" if config.quant.activations == "off" else f"A{config.quant.activation_bits}"
    return f"W{config.quant.weight_bits}{activations} QAT"
