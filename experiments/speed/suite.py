"""What the benchmarks that have parts share: settings, what a part found, the command line, results and figure."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timing import RESULTS, alternate, line, machine, write

BETA = 0.95
SAME_MACHINE = ("cpu", "python", "torch", "tbnn")


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        threads: of torch and numba.
        rounds: of every shape; None: each shape's own.
        tiny: sizes and repetitions that only show that everything runs.
    """

    threads: int
    rounds: int | None = None
    tiny: bool = False

    @property
    def label(self) -> str:
        """The threads as the shapes' names tell them."""
        return "1 thread" if self.threads == 1 else f"{self.threads} threads"

    def times(self, sides: Mapping[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, list[float]]:
        """The sides timed in turn, as :func:`timing.alternate`."""
        return alternate(sides, self.rounds or (1 if self.tiny else rounds), 1 if self.tiny else repeats)


@dataclass
class Part:
    """What one part of the suite found: ``rows`` of ratios, ``facts`` that are none, by name, and ``points`` of the roofline."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    points: list["Point"] = field(default_factory=list)


class Point(NamedTuple):
    """A product on the roofline."""

    name: str
    kind: str
    intensity: float
    """Bit-MACs for each bit that has to be read or written."""
    bit_macs_per_s: float


def point(name: str, kind: str, size: tuple[int, int, int], seconds: float, out_bits: int = 32) -> Point:
    """The product (M, K)·(K, N) of bits that took ``seconds`` and wrote ``out_bits`` an output.

    Every weight counts as one bit-MAC whether it met a spike or not: an event-driven product can pass the ceiling.
    """
    m, k, n = size
    macs = m * k * n
    return Point(name, kind, macs / (m * k + k * n + out_bits * m * n), macs / seconds)


def claim(what: str, value: float, low: float = -float("inf"), high: float = float("inf")) -> dict[str, Any]:
    """A figure that is no ratio of times, its aim (low <= value <= high) and whether it is met; prints it."""
    bounds = [f">= {low:g}"] * (low > -float("inf")) + [f"<= {high:g}"] * (high < float("inf"))
    aim, met = " and ".join(bounds), low <= value <= high
    print(f"{what}: {value:.3g}; aim {aim}: {'met' if met else 'missed'}", flush=True)
    return {"what": what, "value": value, "aim": aim, "met": met}


@dataclass(frozen=True)
class Suite:
    """A benchmark of several parts, one command.

    Attributes:
        name: of its results, NAME.cpu.<threads>.json and NAME.cpu.png.
        program: the file that runs it.
        about: its ``--help``.
        parts: name -> function, in order; imported on the call, so that one part can run where another cannot.
        figure: draws the results, one for each number of threads, to a path.
    """

    name: str
    program: str
    about: str
    parts: Callable[[], dict[str, Callable[[Settings], Part]]]
    figure: Callable[[Iterable[dict[str, Any]], Path], None]

    def measure(self, settings: Settings, only: list[str] | None, folder: Path) -> Path:
        """Run the parts and write them beside those that were there before."""
        suite = self.parts()
        unknown = set(only or ()) - set(suite)
        if unknown:
            raise SystemExit(f"--only: expected parts among {', '.join(suite)}, got {', '.join(sorted(unknown))}")
        path = folder / f"{self.name}.cpu.{settings.threads}.json"
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

    def draw(self, folder: Path) -> Path:
        """The figure from every result there is."""
        path = folder / f"{self.name}.cpu.png"
        self.figure([json.loads(p.read_text()) for p in sorted(folder.glob(f"{self.name}.cpu.*.json"))], path)
        return path

    def run(self) -> None:
        """The command line: measure, write, draw."""
        options = self._options()
        if options.peers is not None:
            sys.path.append(str(options.peers))
        if options.threads is not None:
            rest = [a for pair in (("--output", options.output), ("--peers", options.peers)) if pair[1] for a in pair]
            rest += ["--only", ",".join(options.only)] if options.only else []
            rest += ["--rounds", options.rounds] if options.rounds else []
            self._with_each(options.threads, [str(a) for a in rest] + (["--tiny"] if options.tiny else []))
        elif not options.draw:
            settings = Settings(torch.get_num_threads(), options.rounds, options.tiny)
            print(self.measure(settings, options.only, options.output))
        print(self.draw(options.output))

    def _options(self) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=self.about)
        parser.add_argument("--only", type=lambda text: text.split(","), help="parts, with commas between them")
        parser.add_argument("--rounds", type=int, help="rounds of every shape; default: each shape's own")
        parser.add_argument(
            "--threads", type=lambda text: [int(n) for n in text.split(",")], help="1,2: once with each"
        )
        parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
        parser.add_argument("--peers", type=Path, help="a folder that holds SpikingJelly")
        parser.add_argument("--tiny", action="store_true", help="small sizes, one round: whether everything runs")
        parser.add_argument("--draw", action="store_true", help="only draw the figure anew")
        return parser.parse_args()

    def _with_each(self, threads: list[int], arguments: list[str]) -> None:
        """Start the program once with each number of threads, which numba wants to know before it starts."""
        for n in threads:
            own = {"OMP_NUM_THREADS": str(n), "NUMBA_NUM_THREADS": str(n)}
            subprocess.run([sys.executable, self.program, *arguments], check=True, env={**os.environ, **own})


def _kept(path: Path, anew: list[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and facts of the parts that are not measured anew; nothing of another machine or other versions."""
    if not path.exists():
        return [], {}
    old = json.loads(path.read_text())
    if any(old[key] != machine()[key] for key in SAME_MACHINE):
        return [], {}
    rows = [row for row in old["rows"] if row["part"] not in anew]
    return rows, {part: facts for part, facts in old["parts"].items() if part not in anew}
