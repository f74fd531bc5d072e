"""The ``tbnn`` command: every subcommand takes --help; bad input ends in one line and exit code 2."""

import itertools
import logging
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jsonargparse import Namespace
from rich.console import Console

from tbnn._version import __version__
from tbnn.compare.config import CompareConfig
from tbnn.data.frames.options import FrameOptions
from tbnn.train.config import TrainConfig
from tbnn.train.parse import Parser, add_arguments, configured

if TYPE_CHECKING:
    from tbnn.sim import PackedNetwork

console = Console(highlight=False, soft_wrap=True)

WIDTH = 120  # of what is printed as text
WORDS = ("layer", "kind", "path", "details", "estimator", "verdict")  # columns of tables that hold no numbers
SPLITS = ("train", "validation", "test")
PLOTS = {
    "raster": "one recording on its way through the network",
    "fields": "the first layer's weights as images, of the neurons that vary most between recordings",
    "learning": "traces of one recording under the run's own learning rule",
    "animation": "one recording as a GIF: input, spikes of every layer, readout",
    "flips": "the share of signs that turned in each epoch",
    "alignment": "how far the updates of an online rule agreed with the gradient (--learning.alignment true)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 if training diverged, 2 for bad input, 130 if interrupted."""
    from tbnn.train import Diverged

    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("tbnn").setLevel(logging.INFO)
    parser, commands = _parser()
    try:
        options = parser.parse_args(None if arguments is None else list(arguments))
        if options.version:
            console.print(f"tbnn {__version__}")
        elif options.command is None:
            parser.print_help()
        else:
            name, given = options.command, options[options.command]
            commands[name](given)
    except (ValueError, OSError, MemoryError, FloatingPointError) as error:
        print(f"tbnn: error: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"tbnn: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tbnn: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> tuple[Parser, dict[str, Callable[[Namespace], None]]]:
    parser = Parser(prog="tbnn", description="Train, pack and simulate temporal binary networks.")
    parser.add_argument("--version", action="store_true", help="print the version")
    subcommands = parser.add_subcommands(required=False, dest="command")
    commands: dict[str, Callable[[Namespace], None]] = {}

    def add(name: str, run: Callable[[Namespace], None], text: str) -> Parser:
        sub = Parser(description=text)
        subcommands.add_subcommand(name, sub, help=text)
        commands[name] = run
        return sub

    train = add("train", lambda options: _train(train, options), "Train a network and keep its best weights.")
    add_arguments(train, TrainConfig)
    evaluate = add("evaluate", _evaluate, "Measure a run's best network on a split.")
    _add_run(evaluate)
    _add_split(evaluate)
    compare = add("compare", lambda options: _compare(compare, options), "Compare gradient estimators on equal terms.")
    add_arguments(compare, CompareConfig)
    pack = add("pack", _pack, "Pack a run's best network into a .tbnn file.")
    _add_run(pack)
    pack.add_argument(
        "--output", type=str | None, default=None, help="the file (default: model.tbnn in the run's folder)"
    )
    simulate = add("simulate", _simulate, "Run a packed network from its bits, and check it against the trained one.")
    simulate.add_argument("path", type=str, help="a run's folder that holds model.tbnn, or a .tbnn file")
    _add_split(simulate)
    simulate.add_argument("--dataset", type=str | None, default=None, help="recipe; needed with a .tbnn file")
    simulate.add_argument("--device", type=str, default="cpu", help="cpu, cuda or cuda:N")
    simulate.add_argument("--energy", type=bool, default=False, help="show the whole energy estimate, layer by layer")
    _add_folders(simulate)
    _add_datasets(add("datasets", _datasets, "List the datasets, make packed files, look into them."))
    plot = add("plot", _plot, "Draw a trained network: a recording in it, its weights, its learning.")
    plot.add_argument("kind", type=str, choices=list(PLOTS), help="; ".join(f"{k}: {v}" for k, v in PLOTS.items()))
    _add_run(plot)
    _add_split(plot)
    plot.add_argument("--sample", type=int, default=0, help="number of the recording in the split")
    plot.add_argument(
        "--output", type=str | None, default=None, help="the PNG or GIF (default: named KIND, in the run's folder)"
    )
    report = add("report", _report, "Write one self-contained HTML page about a run, or about a folder of studies.")
    report.add_argument(
        "run", type=str, help="a run's folder, a folder of `tbnn compare` or one that holds several of them"
    )
    report.add_argument("--baseline", type=str, default=[], nargs="*", help="folders of runs to compare with")
    report.add_argument("--sample", type=int, default=0, help="number of the test recording to show")
    info = add("info", _info, "Say which paths run on this machine, or what a file or a run's folder holds.")
    info.add_argument(
        "path", type=str | None, nargs="?", default=None, help="a .tbnn file, a packed .h5 file or a run's folder"
    )
    return parser, commands


def _add_datasets(datasets: Parser) -> None:
    datasets.add_argument("action", type=str, choices=["list", "make", "show", "info"], help="what to do")
    datasets.add_argument(
        "name", type=str | None, nargs="?", default=None, help="a recipe's name or file; for info: a packed file"
    )
    _add_folders(datasets)
    datasets.add_argument("--force", type=bool, default=False, help="make: again, even if the file is there")
    datasets.add_argument("--download", type=bool, default=True, help="fetch what is missing, where that is possible")
    datasets.add_argument(
        "--compression",
        type=str,
        choices=["none", "gzip"],
        default="none",
        help="none: mapped into memory; gzip: small",
    )
    datasets.add_argument("--output", type=str | None, default=None, help="show: the folder (default: NAME)")
    _add_split(datasets, default="train", text="show: which recordings")
    datasets.add_class_arguments(FrameOptions)


def _add_run(parser: Parser) -> None:
    parser.add_argument("run", type=str, help="a run's folder, as `tbnn train --output` made it")


def _add_split(parser: Parser, default: str = "test", text: str = "which recordings") -> None:
    parser.add_argument("--split", type=str, choices=SPLITS, default=default, help=text)


def _add_folders(parser: Parser) -> None:
    parser.add_argument("--source", type=str | None, default=None, help="folder that holds the recordings")
    parser.add_argument("--cache", type=str | None, default=None, help="folder of packed files")


def _train(parser: Parser, options: Namespace) -> None:
    from tbnn.train import train

    folder = train(configured(parser, options, TrainConfig))
    console.print(f"run: {folder}")


def _compare(parser: Parser, options: Namespace) -> None:
    from tbnn.compare import compare, read_results
    from tbnn.compare.statistics import statistics
    from tbnn.compare.tables import task_table

    path = compare(configured(parser, options, CompareConfig), command=_command("compare", options))
    results = read_results(path)
    found = statistics(results)
    for task in results["tasks"]:
        table = task_table(results, task, found)
        console.print(f"\n{task}", markup=False)
        rows = [dict(itertools.zip_longest(table.titles, line.cells, fillvalue="")) for line in table.lines]
        _print_table([{title: row[title] for title in table.titles if title not in ("pairs", "d_z")} for row in rows])
        for note in table.notes:
            console.print(textwrap.fill(note, WIDTH), markup=False)
    if again := results.get("rechecked"):
        console.print(f"\nrepeated at {again['commit']}: {again['equal']} of {again['runs']} runs came out the same")
    rehearsal = " (a rehearsal: its figures mean nothing)" if results["quick"] else ""
    console.print(f"\nresults: {path}{rehearsal}", markup=False)


def _command(name: str, options: Namespace) -> str:
    """The command as it can be given again."""
    return " ".join(["tbnn", name, *(f"--config {file}" for file in options.config or ())])


def _evaluate(options: Namespace) -> None:
    from tbnn.train import load_run
    from tbnn.train.work import evaluate_run

    result = evaluate_run(load_run(options.run), options.split)
    console.print(
        f"{options.split} accuracy {result.accuracy:.4f} ({result.samples} recordings), loss {result.loss:.4f}"
    )
    for name, rate in result.rates.items():
        console.print(f"{name} fires at {rate:.2%}")


def _pack(options: Namespace) -> None:
    from tbnn.train import load_run
    from tbnn.train.work import pack_run

    path, packed = pack_run(load_run(options.run), options.output)
    console.print(f"{path}: {_size_of(packed)}")


def _simulate(options: Namespace) -> None:
    from tbnn.train.work import simulate_file, simulate_run

    path = Path(options.path)
    if path.is_dir():
        result = simulate_run(path, options.split, options.device)
    else:
        if options.dataset is None:
            raise ValueError(f"simulate: expected --dataset NAME with the file {path}, got none")
        result = simulate_file(path, options.dataset, options.split, options.source, options.cache, options.device)
    console.print(
        f"{result['split']} accuracy {result['accuracy']:.4f} ({result['samples']} recordings), from packed bits"
    )
    if "parity" in result:
        console.print(result["parity"]["summary"])
    _print_cost(result, options.energy)


def _print_cost(result: dict[str, Any], whole_energy: bool) -> None:
    """Operations, NeuroBench's metrics and the energy estimate of a simulation, all of them averages a recording."""
    from tbnn.sim.energy import joules
    from tbnn.sim.tables import counts_rows, energy_rows, neurobench_lines

    samples, energy = result["samples"], result["energy"]
    console.print(f"\na recording ({result['steps']} steps, mean of {samples:,}):")
    _print_table(counts_rows(result["counts"], samples))
    console.print("\nNeuroBench:")
    for line in neurobench_lines(result["neurobench"]):
        console.print(f"  {line}")
    if whole_energy:
        console.print("\nenergy a recording:")
        _print_table(energy_rows([*energy["layers"], energy["total"]]))
        console.print(textwrap.fill(energy["text"], WIDTH))
        return
    total = energy["total"]
    console.print(
        f"\nenergy: about {joules(total['total'])} a recording on a hypothetical {energy['technology']['name']} chip, "
        f"{joules(total['dense_float32'])} for dense float32 arithmetic;\n"
        "  an estimate from published constants, not a measurement; --energy true shows it layer by layer, and its sources"
    )


def _print_table(rows: Sequence[dict[str, str]]) -> None:
    """Aligned columns, as wide as they need to be: words to the left, numbers to the right, a last one of words wrapped."""
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = [title in WORDS for title in rows[0]]
    before = sum(width + 2 for width in widths[:-1])
    for *line, last in cells:
        first, *more = (textwrap.wrap(last, max(WIDTH - before, 24)) or [""]) if left[-1] else [last]
        columns = zip([*line, first], widths, left, strict=True)
        console.print("  ".join(c.ljust(w) if words else c.rjust(w) for c, w, words in columns).rstrip(), markup=False)
        for rest in more:
            console.print(" " * before + rest, markup=False)


def _datasets(options: Namespace) -> None:
    from tbnn.data import make, show

    if options.action == "list":
        _list_datasets()
        return
    if options.name is None:
        raise ValueError(f"datasets {options.action}: expected a name, got none; `tbnn datasets list` shows them")
    if options.action == "info":
        _print_store(Path(options.name), check=True)
        return
    path = make(
        options.name,
        source=options.source,
        cache=options.cache,
        force=options.force,
        download=options.download,
        compression=options.compression,
        **{name: options[name] for name in FrameOptions.__dataclass_fields__},
    )
    if options.action == "show":
        for file in show(path, options.output or Path(options.name).stem, options.split):
            console.print(str(file))
        return
    console.print(str(path))
    _print_store(path)


def _list_datasets() -> None:
    from tbnn.data import available

    for name, recipe in available().items():
        shape = "x".join(map(str, recipe.frame_sensor))
        console.print(
            f"{name:14} {len(recipe.classes):3} classes  {shape:>9}  {recipe.frames.frames:4} steps  {recipe.title}"
        )


def _print_store(path: Path, check: bool = False) -> None:
    from tbnn.data import PackedFrames, read_info

    info = read_info(path)
    splits = ", ".join(f"{count:,} {name}" for name, count in info.splits.items())
    width = f" of {info.bin_width:,} {info.time_unit}" if info.bin_width else ""
    console.print(f"{info.title}: {splits}; {info.steps} steps{width}; {'x'.join(map(str, info.sensor))} bits a step")
    recordings = sum(info.splits.values())
    size = path.stat().st_size
    float32 = recordings * info.steps * info.bits * 4
    console.print(
        f"{size:,} bytes, {size / recordings:,.0f} a recording, {float32 / size:.1f} times less than float32 frames"
    )
    for split in info.splits if check else ():
        data = PackedFrames(path, split)
        data.check()
        counts = dict(zip(info.classes, np.bincount(data.labels, minlength=len(info.classes)).tolist(), strict=True))
        density = np.bitwise_count(data.frames.view(np.uint32)).mean() * data.frames.shape[2] / info.bits
        console.print(
            f"{split}: {density:.2%} of the bits set, {np.median(data.events):,.0f} events in "
            f"{np.median(data.durations) / 1000:,.0f} ms (medians); classes: "
            + ", ".join(f"{name} {count}" for name, count in counts.items())
        )
    console.print(f"licence: {info.licence}\nsource: {info.source}\nrecipe: {info.recipe_hash}")


def _plot(options: Namespace) -> None:
    from tbnn.report.plots import plot
    from tbnn.train import load_run

    path = plot(options.kind, load_run(options.run), options.split, options.sample, options.output)
    console.print(str(path))


def _report(options: Namespace) -> None:
    from tbnn.report.studies import holds_studies, report_studies

    if holds_studies(options.run):
        if options.baseline or options.sample:
            raise ValueError(f"report: --baseline and --sample go with a run's folder, got the studies {options.run}")
        path, lines = report_studies(options.run)
    else:
        from tbnn.report.collect import report_run
        from tbnn.train import load_run

        path, lines = report_run(load_run(options.run), [load_run(b) for b in options.baseline], options.sample)
    for line in lines:
        console.print(line, markup=False)
    console.print(f"report: {path}")


def _info(options: Namespace) -> None:
    if options.path is None:
        from tbnn.ops.kernels import describe

        for name, value in describe().items():
            console.print(f"{name:10} {value}")
        return
    path = Path(options.path)
    if path.is_dir():
        from tbnn.train import load_run

        run = load_run(path)
        for name, value in {**run.facts, **run.checkpoint["metrics"]}.items():
            console.print(f"{name:22} {value}")
        console.print(str(run.network))
    elif path.suffix == ".tbnn":
        _print_packed(path)
    else:
        _print_store(path)


def _print_packed(path: Path) -> None:
    from tbnn.sim import PackedNetwork
    from tbnn.sim.tables import PRODUCT, network_rows

    packed = PackedNetwork.load(path)
    _print_table(network_rows(packed))
    console.print(f"({PRODUCT})\n\n{_size_of(packed)}")
    for name, value in packed.provenance.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        console.print(textwrap.fill(f"{name:12} {text}", WIDTH, subsequent_indent=" " * 13), markup=False)


def _size_of(packed: "PackedNetwork") -> str:
    return (
        f"{packed.weights:,} weights at {packed.bits_per_weight:.3f} bits (scales counted), "
        f"{packed.packed_bytes:,} bytes, {packed.float32_bytes / packed.packed_bytes:.1f} times less than in float32"
    )


if __name__ == "__main__":
    sys.exit(main())
