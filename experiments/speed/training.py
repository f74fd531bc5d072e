"""Training on the CPU against the other libraries: time and memory.

    python experiments/speed/training.py                          # with the threads torch has
    python experiments/speed/training.py --threads 1,2            # once with each number of threads, and the figure
    python experiments/speed/training.py --only LIFC,ON --rounds 5
    python experiments/speed/training.py --peers FOLDER           # SpikingJelly, from a folder of its own (see simulation.py)

Correctness first, in every part: spikes equal to snntorch's (those that differ are counted) and gradients of the weights
within 1e-3; then times, all sides in one process, in turn. The neuron is β = 0.95, θ = 1, subtract reset, atan(2); weights are
±2^-j in both, so that the order of a sum decides nothing. Writes results/training.cpu.<threads>.json (a part that is not
measured stays as it was there) and draws results/training.cpu.png from all there are.

LIFC    the neurons alone, (T, B, N) = (500, 16, 512) and (100, 128, 1024), forward and backward; share of the bandwidth
ON      Linear(N, N) and leaky neurons, B = 16, T = 500, 20 % input spikes, forward and backward, no input gradient
REC     700 -> 512 recurrent -> 20, T = 500, B = 16 and 128, against RLeaky
E2E     whole steps of the zoo's nmnist_conv and braille_recurrent on random data of their shapes
GROWTH  time against steps, batch and neurons
MEM     what three layers keep for backward and hold at most, T = 100 to 10,000, every memory mode; one long recurrent run
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from suite import Part, Settings, Suite


def parts() -> dict[str, Callable[[Settings], Part]]:
    """The suite, in order. Imported here, so that one part can run where another cannot."""
    import shapes_lifc
    import shapes_train
    import train_growth
    import train_memory
    import train_steps

    return {
        "LIFC": shapes_lifc.measure,
        "ON": shapes_train.measure_on,
        "REC": shapes_train.measure_rec,
        "E2E": train_steps.measure,
        "GROWTH": train_growth.measure,
        "MEM": train_memory.measure,
    }


def draw(results: Iterable[dict[str, Any]], path: Path) -> None:
    """The figure; matplotlib is wanted only here."""
    import train_figure

    train_figure.draw(results, path)


SUITE = Suite("training", __file__, "Benchmark of training; see the top of this file.", parts, draw)

if __name__ == "__main__":
    SUITE.run()
