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

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from suite import Part, Settings
from timing import RESULTS, line, machine, write

SAME_MACHINE = ("cpu", "python", "torch", "tbnn")


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


def measure(settings: Settings, only: list[str] | None, folder: Path) -> Path:
    """Run the parts and write them beside those that were there before."""
    suite = parts()
    unknown = set(only or ()) - set(suite)
    if unknown:
        raise SystemExit(f"--only: expected parts among {', '.join(suite)}, got {', '.join(sorted(unknown))}")
    path = folder / f"simulation.cpu.{settings.threads}.json"
    rows, kept = _kept(path, only or list(suite))
    for part in only or suite:
        print(f"-- {part}", flush=True)
        found = suite[part](settings)
        for row in found.rows:
            print(line(row), flush=True)
        stamp = {"part": part, "date": machine()["date"]}
        rows += [{**stamp, **row} for row in found.rows]
        kept[part] = {**found.facts, "points": [point._asdict() for point in found.points]}
    return write(path, {"threads": settings.threads, "parts": kept, "rows": rows})


def _kept(path: Path, anew: list[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and facts of the parts that are not measured anew; nothing of another machine or other versions."""
    if not path.exists():
        return [], {}
    old = json.loads(path.read_text())
    if any(old[key] != machine()[key] for key in SAME_MACHINE):
        return [], {}
    rows = [row for row in old["rows"] if row["part"] not in anew]
    return rows, {part: facts for part, facts in old["parts"].items() if part not in anew}


def with_each(threads: list[int], arguments: list[str]) -> None:
    """Start this program once with each number of threads, which numba wants to know before it starts."""
    for n in threads:
        own = {"OMP_NUM_THREADS": str(n), "NUMBA_NUM_THREADS": str(n)}
        subprocess.run([sys.executable, __file__, *arguments], check=True, env={**os.environ, **own})


def draw(folder: Path) -> Path:
    """The figure from every result there is."""
    import figure

    path = folder / "simulation.cpu.png"
    figure.draw({p: json.loads(p.read_text()) for p in sorted(folder.glob("simulation.cpu.*.json"))}.values(), path)
    return path


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description="Benchmark of the packed simulator; see the top of this file.")
    parser.add_argument("--only", type=lambda text: text.split(","), help="parts, with commas between them")
    parser.add_argument("--rounds", type=int, help="rounds of every shape; default: each shape's own")
    parser.add_argument("--threads", type=lambda text: [int(n) for n in text.split(",")], help="1,2: once with each")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--peers", type=Path, help="a folder that holds SpikingJelly")
    parser.add_argument("--tiny", action="store_true", help="small sizes, one round: whether everything runs")
    parser.add_argument("--draw", action="store_true", help="only draw the figure anew")
    options = parser.parse_args()
    if options.peers is not None:
        sys.path.append(str(options.peers))
    if options.threads is not None:
        rest = [a for pair in (("--output", options.output), ("--peers", options.peers)) if pair[1] for a in pair]
        rest += ["--only", ",".join(options.only)] if options.only else []
        rest += ["--rounds", options.rounds] if options.rounds else []
        with_each(options.threads, [str(a) for a in rest] + (["--tiny"] if options.tiny else []))
    elif not options.draw:
        settings = Settings(torch.get_num_threads(), options.rounds, options.tiny)
        print(measure(settings, options.only, options.output))
    print(draw(options.output))


if __name__ == "__main__":
    main()
