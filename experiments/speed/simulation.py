"""Packed simulation on the CPU against what one would run otherwise.

    python experiments/speed/simulation.py                          # with the threads torch has
    python experiments/speed/simulation.py --threads 1,2            # once with each number of threads, and the figure
    python experiments/speed/simulation.py --only BIN,ON --rounds 5
    python experiments/speed/simulation.py --peers FOLDER           # SpikingJelly, from a folder of its own (see below)

Correctness first, in every part; then times, all sides in one process, in turn. Writes results/simulation.cpu.<threads>.json
(a part that is not measured stays as it was there) and draws results/simulation.cpu.png from all there are.

BIN     (256x4096)·(4096x1024), 5 to 50 % spikes, against torch in fp32, bf16, int8, and the core's own ceiling
DENS    densities of spikes and weights: dense, event-driven, the choice between them, torch dense and CSR
ON      Linear(N, N) and leaky neurons, B = 16, T = 500, 20 % input spikes, forward, against snntorch and SpikingJelly
CONV    the zoo's DVS Gesture net with 32 channels, 2x128x128, T = 20, B = 16, 1 % input spikes, against the model
STEP    batch 1, one step at a time, against the model's step
MEMORY  bits stored a weight
REC     sparse recurrent networks: time against neurons, synapses and activity

SpikingJelly 2.0.0 wants torchvision and torchaudio beside it: ``pip install --no-deps --target FOLDER spikingjelly==2.0.0
torchvision==0.28.0 torchaudio==2.11.0 loguru SciencePlots`` leaves the environment at hand alone.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from suite import Part, Settings, Suite


def parts() -> dict[str, Callable[[Settings], Part]]:
    """The suite, in order; the small and quick first. Imported here, so that one part can run where another cannot."""
    import density
    import growth
    import shapes_bin
    import shapes_network
    import shapes_on

    return {
        "MEMORY": shapes_network.measure_memory,
        "STEP": shapes_network.measure_step,
        "BIN": shapes_bin.measure,
        "CONV": shapes_network.measure_conv,
        "ON": shapes_on.measure,
        "DENS": density.measure,
        "REC": growth.measure,
    }


def draw(results: Iterable[dict[str, Any]], path: Path) -> None:
    """The figure; matplotlib is wanted only here."""
    import figure

    figure.draw(results, path)


SUITE = Suite("simulation", __file__, "Benchmark of the packed simulator; see the top of this file.", parts, draw)

if __name__ == "__main__":
    SUITE.run()
