"""LEARN: what a step of an online learning rule costs beside a forward step, and what it holds as time goes on.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python experiments/speed/learning.py [--rounds N]

Two ways: a stream, ``step`` and ``update`` at every step, against ``network.step`` in evaluation; and whole sequences, several
steps at once where the rule can (tbnn.learning.stretch), against the fused forward pass. The latent weights' gradients at the
end are included. Both sides see the same bits in one process; before anything is timed the rule's readouts are compared with
the network's. Held at most: how far a process grows in so many steps (VmHWM, Linux only), each rule and way in a process of its
own.
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
STREAM, WHOLE = "a forward step", "a step of the fused forward pass"
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
            STREAM: lambda network=network, x=x: by_steps(network, x),
            WHOLE: lambda network=network, x=x: _forward(network, x),
        }
        for name in ("bptt", *RULES):
            for way in (STREAM, WHOLE):
                rule = rule_named(name, network)
                whole = way == WHOLE
                readout = sequence(rule, x, y, whole)
                torch.testing.assert_close(readout, expected, rtol=1e-4, atol=1e-4)
                sides[f"{name} {way}"] = lambda rule=rule, x=x, y=y, whole=whole: sequence(rule, x, y, whole)
        times = alternate(sides, rounds, 3)
        for name in ("bptt", *RULES):
            for way in (STREAM, WHOLE):
                aim = AIM if name in RULES else None
                rows.append({"shape": f"{name}, {shape}", **row(times, f"{name} {way}", way, aim)})
    return rows


def sequence(rule: Rule, x: Tensor, y: Tensor, whole: bool) -> Tensor:
    """A rule over all steps, at once where it can or by single ones."""
    if whole:
        return rule.sequence(x, y).readout
    state, readouts = None, []
    for t, x_t in enumerate(x, 1):
        state = rule.step(x_t, state)
        readouts.append(state.readout.detach())
        if rule.every is not None or t == len(x):
            rule.credit(y, 1 / len(x) if rule.every is not None else 1.0)
    rule.finish()
    return torch.stack(readouts)


@torch.no_grad()
def _forward(network: Network, x: Tensor) -> Tensor:
    return network(x)[0]


def held(name: str, steps: int, whole: bool) -> int:
    """Bytes by which this process grows over a sequence, input apart, past what it held after a short one."""
    inputs, hidden, classes, batch = SHAPES["Braille net 48-128r-7, B=32"]
    network = network_of(inputs, hidden, classes)
    x, y = data(inputs, classes, batch, steps)
    rule = rule_named(name, network)
    sequence(rule, x[:40], y, whole)
    gc.collect()
    return grown(lambda: sequence(rule, x, y, whole))


def memory() -> list[dict[str, Any]]:
    """Bytes held at most, each rule, way and length in a process of its own."""
    found = []
    for name in ("bptt", *RULES):
        for way in (STREAM, WHOLE):
            for steps in LENGTHS:
                command = [sys.executable, __file__, "--held", name, str(steps), str(int(way == WHOLE))]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found.append({"rule": name, "way": way, "steps": steps, "bytes": json.loads(done.stdout)})
    return found


def main() -> Path | None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--held", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.held:
        print(json.dumps(held(options.held[0], int(options.held[1]), options.held[2] == "1")))
        return None
    rows = speed(options.rounds, options.steps)
    for one in rows:
        print(line(one))
    held_at_most = memory()
    for one in held_at_most:
        print(f"{one['rule']:10} {one['way']:34} {one['steps']:6} steps: {one['bytes'] / 2**20:8.1f} MiB held at most")
    threads = torch.get_num_threads()
    return write(RESULTS / f"learning.cpu.{threads}.json", {"threads": threads, "rows": rows, "memory": held_at_most})


if __name__ == "__main__":
    main()
