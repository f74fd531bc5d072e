"""What a synapse and a sample cost under each rule of study 20, by their equations: writes cost.json beside this file.

    python experiments/20_learning_rules/cost.py [--source FOLDER]

The net for Braille letters (48-128r-7), one batch of validation recordings of 64 steps; see tbnn.learning.cost for what is counted.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from tbnn.compare import CompareConfig
from tbnn.compare.plan import resolve, tasks_of
from tbnn.data import PackedFrames, make
from tbnn.files import replacing
from tbnn.learning import Bptt
from tbnn.learning.cost import learning_cost
from tbnn.nn import calibrate
from tbnn.train.build import build_network
from tbnn.train.parse import Parser, add_arguments, configured
from tbnn.train.run import environment
from tbnn.train.step import learner, optimizer_of

HERE = Path(__file__).parent
TASK, BATCH = "Braille", 32


def config() -> CompareConfig:
    parser = Parser()
    add_arguments(parser, CompareConfig)
    return configured(parser, parser.parse_args([f"--config={HERE / 'compare.yaml'}"]), CompareConfig)


def measure(source: str) -> list[dict[str, Any]]:
    study, rows = config(), []
    frames = PackedFrames(make("braille7", source=source), "validation")
    words = frames.words(BATCH).transpose(0, 1).contiguous()
    for name, how in study.estimators.items():
        if how.control != "none":
            continue
        train = resolve({**tasks_of(study)[TASK].settings, **how.model})
        torch.manual_seed(0)
        network = build_network(train.model, frames.info.sensor, len(frames.info.classes))
        calibrate(network, words)
        rule = Bptt(network) if how.rule == "bptt" else learner(network, train.optim, train.learning)
        optimizer = optimizer_of(network, train.optim, rule.parameters())
        cost = learning_cost(rule, words, optimizer)
        hidden = cost.layers[0]
        rows.append({
            "estimator": name, "synapse_bits": hidden.synapse_bits, "neuron_bits": hidden.neuron_bits, "input_bits": hidden.input_bits,
            "kept_bits": cost.total.kept_bits, "operations": cost.total.eligibility + cost.total.update, "energy": cost.total.energy,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="../shared/data")
    rows = measure(parser.parse_args().source)
    with replacing(HERE / "cost.json") as temporary:
        temporary.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
