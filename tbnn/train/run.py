"""A run's folder: its configuration, environment, checkpoints and results.

config.yaml             the whole configuration
run.json                versions, device, commit, dataset, seed
metrics.csv, .jsonl     one row an epoch; tensorboard/ holds the same
best.safetensors/.json  weights of the best validation epoch, and what it measured
last.safetensors/.json  weights of the last epoch; last.optimizer.pt: optimizer and schedule, to go on from it
evaluation.SPLIT.json   what ``tbnn evaluate`` measured
model.tbnn              what ``tbnn pack`` made; simulation.json what ``tbnn simulate`` measured
report.html             what ``tbnn report`` made
"""

import hashlib
import json
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tbnn._version import __version__
from tbnn.data import StoreInfo
from tbnn.files import replacing
from tbnn.learning import rule_of
from tbnn.nn import Network
from tbnn.train.build import build_network
from tbnn.train.config import TrainConfig


@dataclass(frozen=True)
class Run:
    """A finished (or interrupted) run, read back."""

    folder: Path
    config: TrainConfig
    facts: dict[str, Any]
    """run.json."""
    checkpoint: dict[str, Any]
    """The JSON beside the weights."""
    network: Network


def environment() -> dict[str, str]:
    """Versions, machine and commit that a result depends on."""
    return {
        "tbnn": __version__,
        "commit": _commit() or "unknown",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
    }


def _commit() -> str | None:
    """The commit of the checkout that tbnn runs from, "+" if it has changes; None for an installed wheel."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ``ValueError`` if it is damaged."""
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def write_config(folder: Path, config: TrainConfig) -> None:
    """Save the configuration in the form that ``--config`` reads."""
    content = asdict(config)
    for name in ("hidden", "n_of_m"):
        value = getattr(config.model, name)
        content["model"][name] = None if value is None else list(value)
    with replacing(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_weights(path: Path, network: nn.Module, facts: dict[str, Any]) -> None:
    """Write ``path`` (safetensors) and the JSON beside it."""
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary)
    write_json(path.with_suffix(".json"), facts)


def load_weights(path: Path, network: nn.Module) -> dict[str, Any]:
    """Load ``path`` into a network; returns the JSON beside it. ``ValueError`` if either does not fit."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path}: not a checkpoint of this network ({str(error).splitlines()[0]})") from None
    return read_json(path.with_suffix(".json"))


def run_facts(folder: Path, config: TrainConfig, info: StoreInfo, device: str, packed: Path) -> dict[str, Any]:
    """What run.json holds; config.yaml lies in the folder already."""
    return {
        "config_sha256": _sha256(folder / "config.yaml"),
        "dataset": info.name,
        "recipe_hash": info.recipe_hash,
        "packed_file": str(packed),
        "sensor": list(info.sensor),
        "classes": list(info.classes),
        "seed": config.seed,
        "device": device,
        **environment(),
    }


def load_run(folder: str | Path, which: str = "best") -> Run:
    """Read a run back with the weights of its ``"best"`` or ``"last"`` epoch.

    Raises:
        FileNotFoundError: the folder holds no run, or no such checkpoint.
        ValueError: a file of the run is damaged.
    """
    from tbnn.train.parse import config_from_file

    folder = Path(folder)
    for needed in ("run.json", "config.yaml"):
        if not (folder / needed).is_file():
            raise FileNotFoundError(f"{folder}: not a training run, {needed} is missing")
    facts = read_json(folder / "run.json")
    if _sha256(folder / "config.yaml") != facts.get("config_sha256"):
        raise ValueError(
            f"{folder / 'config.yaml'}: not the configuration this run was trained with (its SHA-256 differs)"
        )
    config = config_from_file(folder / "config.yaml")
    sensor = facts.get("sensor")
    if not (isinstance(sensor, list) and len(sensor) == 3) or not isinstance(facts.get("classes"), list):
        raise ValueError(f"{folder / 'run.json'}: expected the entries 'sensor' and 'classes', got {sorted(facts)}")
    network = build_network(config.model, (sensor[0], sensor[1], sensor[2]), len(facts["classes"]))
    if config.learning.rule != "bptt":
        rule_of(network, config.learning, config.seed)  # which may give neurons thresholds of their own
    checkpoint = load_weights(folder / f"{which}.safetensors", network)
    network.eval()
    return Run(folder, config, facts, checkpoint, network)
