"""MEM: what three layers keep for backward and hold at most, against the steps; the time it costs; one long recurrent run.

    python experiments/speed/train_memory.py SIDE NEURONS BATCH STEPS...    # one side in a process of its own, as JSON
    python experiments/speed/train_memory.py recurrent MODE NEURONS BATCH STEPS

Kept is measured twice, after forward: the bytes of the storages that autograd saves (weights and the caller's input apart),
and by how much the process has grown, which also finds what hides from autograd. The peak is the most the process grew
by in forward and backward. Linux only: it reads and resets the high-water mark, VmHWM, in /proc; getrusage's ru_maxrss is a
mark that cannot be reset, and that a process inherits from the one that started it.
"""

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from shapes_on import free_bytes
from shapes_train import recurrent_layers
from suite import Part, Settings, claim
from timing import row
from torch import Tensor, nn
from train_sides import (
    MODES,
    binary,
    check_networks,
    in_snntorch,
    modes,
    network_of,
    neuron,
    spikes_in,
    trained,
)

from tbnn import pack_bits
from tbnn.nn import Network

RATE, HIDDEN_RATE, LAYERS = 0.2, 0.05, 3
STEPS, NEURONS, BATCH = (100, 316, 1000, 3162, 10_000), 512, 16
TIMED = 1000
SNNTORCH, RECURRENT = "snntorch", "recurrent"
MOST_BITS, PEAKS, SLOWER, LONG_BYTES = 1.5, 16.0, 1.35, 2e9
ROOM = 0.8  # of the free memory that a run may be expected to take


def measure(settings: Settings) -> Part:
    """Bytes against steps, a process a side; times in one process; the long run."""
    part = Part(facts={"gate": [], "sweeps": [], "claims": []})
    neurons, batch, steps = (40, 2, [30, 60]) if settings.tiny else (NEURONS, BATCH, list(STEPS))
    x = spikes_in(30, min(batch, 4), neurons, RATE)
    for mode in modes():
        checked = check_networks(f"MEM {LAYERS} layers, {mode}", stack(neurons, mode), x, 2 * LAYERS)
        part.facts["gate"].append(checked)
    for side in (SNNTORCH, *modes()):
        found = sweep(side, neurons, batch, steps) if settings.tiny else _in_a_process(side, neurons, batch, *steps)
        part.facts["sweeps"].append({"side": side, "neurons": neurons, "batch": batch, "points": found})
        for at in found:
            print(f"MEM {side} T={at['steps']}: {_told(at)}", flush=True)
    _claims(part, settings)
    if len(modes()) > 1:
        _time_modes(part, neurons, batch, settings)
    long = (40, 2, 30) if settings.tiny else (NEURONS, BATCH, STEPS[-1])
    part.facts["long"] = {mode: _in_a_process(RECURRENT, mode, *long) for mode in modes()[-1:]}
    for mode, at in part.facts["long"].items():
        held = at.get("held_at_most", float("inf"))
        name = f"MEM recurrent {long[0]} neurons T={long[2]} B={long[1]}, {mode}: bytes of the whole process"
        part.facts["claims"].append(claim(name, held, high=LONG_BYTES))
    return part


def stack(neurons: int, mode: str = MODES[0]) -> Network:
    """Three layers of N neurons."""
    torch.manual_seed(0)
    rates = (RATE, *[HIDDEN_RATE] * (LAYERS - 1))
    return network_of([part for rate in rates for part in (binary(neurons, neurons, rate), neuron())], mode)


def _claims(part: Part, settings: Settings) -> None:
    """At the most steps that both sides ran."""
    points = {s["side"]: {p["steps"]: p for p in s["points"]} for s in part.facts["sweeps"]}
    least, theirs = points[modes()[-1]], points[SNNTORCH]
    if not least or not theirs:
        return
    last = max(least)
    about = f"{modes()[-1]}, {settings.label}"
    part.facts["claims"] += [
        claim(f"MEM T={last}: {kind} bits a neuron and step, {about}", least[last][f"{kind}_bits"], high=MOST_BITS)
        for kind in ("saved", "grown")
    ]
    both = max(least.keys() & theirs.keys())
    ratio = theirs[both]["peak_bytes"] / max(least[both]["peak_bytes"], 1)
    part.facts["claims"].append(claim(f"MEM T={both}: snntorch's peak over that of {about}", ratio, low=PEAKS))


def _time_modes(part: Part, neurons: int, batch: int, settings: Settings) -> None:
    """What keeping less costs in time."""
    steps = 30 if settings.tiny else TIMED
    x = pack_bits(spikes_in(steps, batch, neurons, RATE))
    networks = {mode: stack(neurons, mode) for mode in modes()}
    times = settings.times({mode: _step_of(network, x) for mode, network in networks.items()}, rounds=5, repeats=1)
    shape = f"MEM {LAYERS}x{neurons} T={steps} B={batch} fwd+bwd"
    for mode in modes()[1:]:
        aim = 1 / SLOWER if mode == modes()[-1] else None
        part.rows.append({"shape": f"{shape}, {mode}, {settings.label}", **row(times, mode, modes()[0], aim)})


def _step_of(network: Network, x: Tensor) -> Any:
    own = list(network.parameters())
    return lambda: trained(lambda: network(x)[0], own)


def sweep(side: str, neurons: int, batch: int, steps: Iterable[int]) -> list[dict[str, Any]]:
    """Memory of one side at every number of steps, until the next would not fit."""
    network: Any = stack(neurons, MODES[0] if side == SNNTORCH else side)
    network = in_snntorch(network) if side == SNNTORCH else network
    found: list[dict[str, Any]] = []
    one_step(network, _input(side, 10, neurons, batch))  # compiles
    for n in steps:
        if found and found[-1]["peak_bytes"] * n / found[-1]["steps"] > ROOM * free_bytes():
            print(f"MEM {side} T={n}: left out: there is no memory for it", file=sys.stderr)
            break
        found.append({"steps": n, **one_step(network, _input(side, n, neurons, batch))})
        for kind in ("saved", "grown"):
            found[-1][f"{kind}_bits"] = 8 * found[-1][f"{kind}_bytes"] / (LAYERS * n * batch * neurons)
    return found


def _input(side: str, steps: int, neurons: int, batch: int) -> Tensor:
    """Numbers for snntorch, words for us; drawn in pieces, so that words come without their numbers."""
    pieces = [spikes_in(min(100, steps - t), batch, neurons, RATE) for t in range(0, steps, 100)]
    return torch.cat(pieces if side == SNNTORCH else [pack_bits(piece) for piece in pieces])


def one_step(network: nn.Module, x: Tensor) -> dict[str, Any]:
    """Bytes of one forward and backward: what autograd saved, what the process grew by until then, and at most."""
    for parameter in network.parameters():
        parameter.grad = None
    apart = {t.untyped_storage().data_ptr() for t in (x, *network.parameters(), *network.buffers())}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    before = _resident(reset=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out, state = network(x)
    loss = out.sum()
    del out, state
    kept = _resident()
    loss.backward()
    return {
        "saved_bytes": sum(saved.values()),
        "grown_bytes": kept - before,
        "peak_bytes": _status("VmHWM") - before,
        "held_at_most": _status("VmHWM"),
    }


def grown(run: Callable[[], object]) -> int:
    """Bytes by which the process grows at most while something runs."""
    before = _resident(reset=True)
    run()
    return _status("VmHWM") - before


def _resident(reset: bool = False) -> int:
    """Bytes that the process holds, what the allocator only keeps at hand given back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held now
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def _in_a_process(*arguments: str | int) -> Any:
    """This file with these arguments, whose memory is then its own; a failure is told, not raised."""
    command = [sys.executable, *(f"-X{k}={v}" for k, v in sys._xoptions.items()), __file__, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"MEM {' '.join(map(str, arguments))}: failed with {done.returncode}")
        return {} if arguments[0] == RECURRENT else []
    return json.loads(done.stdout.splitlines()[-1])


def _told(at: dict[str, Any]) -> str:
    bits = f"{at['saved_bits']:.2f} bits a neuron and step saved, {at['grown_bits']:.2f} grown by"
    return f"{bits}, peak {at['peak_bytes'] / 2**20:.1f} MiB"


def run_recurrent(mode: str, neurons: int, batch: int, steps: int) -> dict[str, Any]:
    """A recurrent network in training over many steps."""
    torch.manual_seed(0)
    network = network_of(recurrent_layers(700, neurons, 20), mode)
    one_step(network, _input(mode, 10, 700, batch))
    return one_step(network, _input(mode, steps, 700, batch))


if __name__ == "__main__":
    kind, *given = sys.argv[1:]
    if kind == RECURRENT:
        print(json.dumps(run_recurrent(given[0], *map(int, given[1:]))))
    else:
        print(json.dumps(sweep(kind, int(given[0]), int(given[1]), map(int, given[2:]))))
