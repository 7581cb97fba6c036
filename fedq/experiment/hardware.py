"""The hardware that a config asks for. Reports hardware that this machine lacks as problems."""

import torch

from fedq.config import Config, Problem
from fedq.experiment.site import SERVER, Site
from fedq.training import Hardware
from fedq.training.hardware import CPU, DEVICES, choose, gpus, no_compiler, present


def make_hardware(config: Config, found: list[Problem], *, owner: Site | None) -> Hardware:
    """The devices of local training; the server of a deployment, which only evaluates, takes the best device."""
    if owner == SERVER or (owner is None and config.runtime.name == "deployment"):
        return Hardware((choose("auto"),))
    t = config.train
    if t.device not in ("auto", *DEVICES):
        return Hardware()  # the rules report it
    if t.device != "auto" and not present(t.device):
        has = ", ".join(filter(present, DEVICES))
        rule = f"torch finds no such device on this machine, only {has}"
        found.append(Problem("train.device", t.device, rule, "Use train.device=auto, which takes the best there is"))
        return Hardware()
    device = choose(t.device)
    if t.compile and (missing := no_compiler(device)) is not None:
        rule = f"torch.compile for {device.type} needs {missing}, which is not here"
        found.append(Problem("train.compile", True, rule, "Install it, or use train.compile=false"))
    if t.autocast == "bf16" and device.type == "mps" and t.device == "auto":
        rule = "bfloat16 is for cpu and cuda, and auto takes mps here"
        found.append(Problem("train.autocast", t.autocast, rule, "Use train.autocast=off, or train.device=cpu"))
    devices: tuple[torch.device, ...] = (device,)
    if t.data_parallel and t.device in ("auto", "cuda"):
        devices = gpus()
        if len(devices) < 2:
            rule = f"a batch is split over 2 GPUs or more, and torch sees {len(devices)} here"
            found.append(Problem("train.data_parallel", True, rule, "Use train.data_parallel=false"))
            devices = (CPU,)
    return Hardware(devices, compiled=t.compile)
