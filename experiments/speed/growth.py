"""REC: how the time of sparse recurrent networks grows with neurons, synapses and activity; a large one in memory.

Every neuron has an input of its own that makes it spike, so that activity is what is asked for at every size; what comes
back through the synapses is too weak to change that. Correctness first: a small network with strong synapses gives the
same spikes, bit for bit, with its feedback as bit planes.

    python experiments/speed/growth.py NEURONS CONNECTIVITY STEPS    # one network in a process of its own, as JSON
"""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from suite import BETA, Part, Settings

from tbnn import pack_bits
from tbnn.nn import BinaryLinear, Leaky, Network
from tbnn.sim import PackedLinear, PackedNetwork, pack
from tbnn.sim.layers import PackedSparse, SparseSpec

NEURONS, SYNAPSES, ACTIVITY = 2**14, 2**22, 0.01
STEPS = 100
SWEEPS: dict[str, list[float]] = {
    "neurons": [float(2**i) for i in range(11, 19)],
    "synapses": [float(2**i) for i in range(18, 26)],
    "activity": [0.001 * 2**i for i in range(8)],
}
LARGE = (2**16, 0.01, 1000)
ENTRY_SCALE = 1.0625  # just above the threshold: one input, one spike
WEAK, STRONG = 2.0**-10, 2.0**-3


def sparse_network(neurons: int, synapses: int, scale: float) -> PackedNetwork:
    """N inputs, one to each of N neurons that return to each other through about so many synapses of ±scale."""
    starts = torch.arange(2 * neurons + 1, dtype=torch.int32).add_(1).div_(2, rounding_mode="floor")
    entry = PackedSparse(
        SparseSpec("layers.0", neurons, neurons, neurons, offset=False, bias=False),
        starts,
        torch.arange(neurons).to(torch.uint16 if neurons <= 2**16 else torch.int32),
        torch.full((neurons, 1), ENTRY_SCALE),
    )
    density = synapses / neurons**2
    feedback = PackedSparse.random("layers.1.recurrent_layer", neurons, neurons, density, seed=0, scale=scale)
    return PackedNetwork((entry, with_feedback(neurons, feedback)), neurons)


def with_feedback(neurons: int, feedback: PackedSparse | PackedLinear) -> Any:
    """Packed leaky neurons whose spikes return through a layer."""
    leaky: Any = pack(Network([BinaryLinear(1, neurons), Leaky(BETA)])).layers[1]
    return replace(leaky, spec=replace(leaky.spec, feedback=feedback.spec), feedback=feedback)


def input_words(steps: int, neurons: int, activity: float) -> torch.Tensor:
    """Random input (T, 1, words), drawn a step at a time: a large one would not fit as numbers."""
    rng = np.random.default_rng(0)
    frames = (torch.from_numpy(rng.random((1, neurons), np.float32) < activity) for _ in range(steps))
    return torch.stack([pack_bits(frame) for frame in frames])


def check() -> None:
    """End the program unless lists and bit planes give the same spikes where the feedback decides."""
    neurons = 200
    network = sparse_network(neurons, neurons * neurons // 10, STRONG)
    neuron: Any = network.layers[1]
    planes = PackedNetwork((network.layers[0], with_feedback(neurons, neuron.feedback.to_linear())), neurons)
    words = input_words(50, neurons, 0.1)
    spikes: list[Any] = [n.simulate(words).output_spikes for n in (network, planes)]
    if not torch.equal(*spikes):
        raise SystemExit("REC: spikes with lists of connections differ from those with bit planes")
    if torch.equal(spikes[0], words):
        raise SystemExit("REC: the feedback of the check changes nothing")


def seconds_per_step(neurons: int, synapses: int, activity: float, steps: int, settings: Settings) -> float:
    """The median of several runs."""
    network, words = sparse_network(neurons, synapses, WEAK), input_words(steps, neurons, activity)
    rate = network.simulate(words).counts.layers[-1].firing_rate or 0.0
    if abs(rate - activity) > 0.1 * activity + 3 * (activity / (steps * neurons)) ** 0.5:
        raise SystemExit(f"REC: {neurons} neurons fire at {rate:.4g}, expected {activity:.4g}")
    with network.open_stream(1) as stream:
        return (
            float(np.median(settings.times({"packed": lambda: stream.push(words)}, rounds=3, repeats=1)["packed"]))
            / steps
        )


def exponent(x: list[float], y: list[float]) -> float:
    """The slope of log y over log x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def measure(settings: Settings) -> Part:
    """The three sweeps, the model of all, and the large network."""
    check()
    fixed = {"neurons": 256.0, "synapses": 1024.0} if settings.tiny else {"neurons": NEURONS, "synapses": SYNAPSES}
    part, steps, points = Part(facts={"sweeps": []}), 10 if settings.tiny else STEPS, []
    for name, values in SWEEPS.items():
        some = [64.0, 128.0] if settings.tiny and name != "activity" else values[-2:] if settings.tiny else values
        seconds = []
        for value in some:
            given = {**fixed, "activity": ACTIVITY, name: value}
            n, s, a = int(given["neurons"]), int(given["synapses"]), given["activity"]
            seconds.append(seconds_per_step(n, s, a, steps, settings))
            points.append((n, s * a, seconds[-1]))
        part.facts["sweeps"].append(
            {"grows": name, "values": some, "seconds_per_step": seconds, "exponent": exponent(some, seconds)}
        )
        print(f"REC: time grows with {name}^{part.facts['sweeps'][-1]['exponent']:.2f} ({some[0]:g} to {some[-1]:g})")
    part.facts["model"] = fitted(points)
    large = (256, 0.05, 10) if settings.tiny else LARGE
    part.facts["large"] = _in_a_process(*large)
    print(f"REC: {part.facts['large']}")
    return part


def fitted(points: list[tuple[int, float, float]]) -> dict[str, float]:
    """``a + b·neurons + c·synapses·activity`` of all sweeps, by non-negative least squares of relative errors."""
    from scipy.optimize import nnls

    neurons, events, seconds = (np.array(column) for column in zip(*points, strict=True))
    terms = np.stack([np.ones_like(seconds), neurons, events], 1)
    constants, _ = nnls(terms / seconds[:, None], np.ones_like(seconds))
    errors = np.abs(terms @ constants / seconds - 1)
    names = ("ns_a_step", "ns_a_neuron", "ns_a_synaptic_event")
    return {
        **dict(zip(names, (1e9 * constants).tolist(), strict=True)),
        "median_relative_error": float(np.median(errors)),
    }


def _in_a_process(neurons: int, connectivity: float, steps: int) -> dict[str, Any]:
    """A network of its own process, whose memory is then its own."""
    command = [sys.executable, __file__, str(neurons), str(connectivity), str(steps)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def run_one(neurons: int, connectivity: float, steps: int) -> dict[str, Any]:
    """Time and memory of one network, built and run."""
    words, before = input_words(steps, neurons, ACTIVITY), peak_bytes()
    start = time.perf_counter()
    network = sparse_network(neurons, int(connectivity * neurons**2), WEAK)
    built = time.perf_counter() - start
    network.simulate(words[:2])
    start = time.perf_counter()
    counts = network.simulate(words).counts
    seconds = time.perf_counter() - start
    return {
        "neurons": neurons,
        "connectivity": connectivity,
        "steps": steps,
        "firing_rate": counts.layers[-1].firing_rate,
        "packed_bytes": network.packed_bytes,
        "peak_bytes": peak_bytes(),
        "peak_bytes_before": before,
        "build_s": built,
        "seconds": seconds,
    }


def peak_bytes() -> int | None:
    """The most memory this process has held; None where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    print(json.dumps(run_one(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))))
