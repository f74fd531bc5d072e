"""LEARN: what a step of an online learning rule costs beside a forward step, and what it holds as time goes on.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python experiments/speed/learning.py [--rounds N]

A forward step is ``network.step`` in evaluation, and, beside it, the share of a step in the fused forward pass of the whole
sequence; a rule's step is its step and update, the latent weights' gradients at the end of the sequence included. Both sides
see the same bits in one process; before anything is timed the rule's readouts are compared with the network's. Held at
most: how far a process grows in so many steps (VmHWM, Linux only), each rule in a process of its own.
"""

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import RESULTS, alternate, line, row, write
from torch import Tensor
from train_memory import grown

from tbnn.learning import Bptt, LearningConfig, Rule, rule_of
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent, calibrate

SHAPES = {"Braille net 48-128r-7, B=32": (48, 128, 7, 32), "700-512r-20, B=16": (700, 512, 20, 16)}
RULES = ("ottt", "eprop", "decolle", "dfa", "fa", "reward")
STEPS, AIM = 100, 0.5  # a rule's step at most twice a forward step
LENGTHS = (100, 1000)


def network_of(inputs: int, hidden: int, classes: int) -> Network:
    torch.manual_seed(0)
    neuron = Leaky(0.9, target="trace", differentiate_stats=False)
    layers = [BinaryLinear(inputs, hidden), Recurrent(neuron, BinaryLinear(hidden, hidden))]
    return Network([*layers, BinaryLinear(hidden, classes), LeakyIntegrator(0.9)])


def data(inputs: int, classes: int, batch: int, steps: int) -> tuple[Tensor, Tensor]:
    return (torch.rand(steps, batch, inputs) < 0.1).float(), torch.randint(0, classes, (batch,))


def rule_named(name: str, network: Network) -> Rule:
    if name == "bptt":
        return Bptt(network)
    return rule_of(network, LearningConfig(rule=name))  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def by_steps(network: Network, x: Tensor) -> Tensor:
    state, readouts = None, []
    for x_t in x:
        readout, state = network.step(x_t, state)
        readouts.append(readout)
    return torch.stack(readouts)


def speed(rounds: int, steps: int) -> list[dict[str, Any]]:
    """Each rule against both kinds of forward step, shape by shape."""
    rows = []
    for shape, (inputs, hidden, classes, batch) in SHAPES.items():
        network = network_of(inputs, hidden, classes)
        x, y = data(inputs, classes, batch, steps)
        calibrate(network, x)
        expected = by_steps(network, x)
        sides: dict[str, Callable[[], object]] = {
            "a forward step": lambda network=network, x=x: by_steps(network, x),
            "a step of the fused forward pass": lambda network=network, x=x: _forward(network, x),
        }
        for name in ("bptt", *RULES):
            rule = rule_named(name, network)
            torch.testing.assert_close(rule.sequence(x, y).readout, expected, rtol=1e-4, atol=1e-4)
            sides[name] = lambda rule=rule, x=x, y=y: rule.sequence(x, y)
        times = alternate(sides, rounds, 3)
        for name in ("bptt", *RULES):
            for theirs in ("a forward step", "a step of the fused forward pass"):
                aim = AIM if theirs == "a forward step" and name in RULES else None
                rows.append({"shape": f"{name}, {shape}", **row(times, name, theirs, aim)})
    return rows


@torch.no_grad()
def _forward(network: Network, x: Tensor) -> Tensor:
    return network(x)[0]


def held(name: str, steps: int) -> int:
    """Bytes by which this process grows over a sequence, past what it held after a short one."""
    inputs, hidden, classes, batch = SHAPES["Braille net 48-128r-7, B=32"]
    network = network_of(inputs, hidden, classes)
    x, y = data(inputs, classes, batch, 20)
    rule = rule_named(name, network)

    def run(count: int) -> None:
        state = None
        for t in range(count):
            state = rule.step(x[t % 20], state)
            if rule.every is not None:
                rule.update(y, 1 / count)
        if rule.every is None:
            rule.update(y)

    run(40)
    gc.collect()
    return grown(lambda: run(steps))


def memory() -> list[dict[str, Any]]:
    """Bytes held at most, each rule and length in a process of its own."""
    found = []
    for name in ("bptt", *RULES):
        for steps in LENGTHS:
            command = [sys.executable, __file__, "--held", name, str(steps)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append({"rule": name, "steps": steps, "bytes": json.loads(done.stdout)})
    return found


def main() -> Path | None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--held", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.held:
        print(json.dumps(held(options.held[0], int(options.held[1]))))
        return None
    rows = speed(options.rounds, options.steps)
    for one in rows:
        print(line(one))
    held_at_most = memory()
    for one in held_at_most:
        print(f"{one['rule']:10} {one['steps']:6} steps: {one['bytes'] / 2**20:8.1f} MiB held at most")
    threads = torch.get_num_threads()
    return write(RESULTS / f"learning.cpu.{threads}.json", {"threads": threads, "rows": rows, "memory": held_at_most})


if __name__ == "__main__":
    main()
