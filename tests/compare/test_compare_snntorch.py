"""A comparison's snntorch is snntorch: the curves of a plain script, and those of tbnn's own neurons."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tbnn.bits import unpack_bits
from tbnn.compare import CompareConfig, EstimatorConfig, TuningConfig
from tbnn.compare.in_snntorch import InSnntorch, spike_grad
from tbnn.compare.plan import Job, final_jobs
from tbnn.compare.trial import _drawn, run_job
from tbnn.data import PackedFrames
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, calibrate
from tbnn.surrogate import sigmoid
from tbnn.train.batches import EpochOrder, packed_file, train_loader

RATE = 5e-3


def job(how: EstimatorConfig, cache: Path, **model: Any) -> Job:
    base = {
        "data": {"dataset": "digits_rows", "cache": str(cache)},
        "model": {"hidden": [20], **model},
        "optim": {"epochs": 2, "batch_size": 128, "learning_rate": RATE, "calibrate": 0},
    }
    config = CompareConfig(base=base, estimators={"it": how}, tuning=TuningConfig(trials=0))
    return final_jobs(config, "base", "it", {})[0]


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "compare-cache"


def tutorial(frames: PackedFrames, surrogate: str, seed: int) -> tuple[list[float], Tensor]:
    """snntorch's fifth tutorial in its own words: layers, a loop over time, a loop over batches; its curve and weights."""
    import snntorch as snn
    from snntorch import surrogate as theirs

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(frames.info.bits, 20)
            self.lif1 = snn.Leaky(beta=0.9, spike_grad=getattr(theirs, surrogate)())
            self.fc2 = nn.Linear(20, 10)
            self.lif2 = snn.Leaky(beta=0.9, reset_mechanism="none", threshold=1e9)

        def forward(self, x: Tensor) -> Tensor:
            mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
            mem2_rec = []
            for x_t in x.unbind(0):
                spk1, mem1 = self.lif1(self.fc1(x_t), mem1)
                _, mem2 = self.lif2(self.fc2(spk1), mem2)
                mem2_rec.append(mem2)
            return torch.stack(mem2_rec)

    torch.manual_seed(seed)
    net = Net()
    drawn = Network(  # the same start: tbnn's draw
        [BinaryLinear(frames.info.bits, 20), Leaky(0.9), BinaryLinear(20, 10), LeakyIntegrator(0.9)]
    )
    torch.manual_seed(seed)
    for layer in (drawn.layers[0], drawn.layers[2]):
        layer.reset_parameters()  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        for plain, layer in ((net.fc1, drawn.layers[0]), (net.fc2, drawn.layers[2])):
            plain.weight.copy_(layer.weight)  # pyright: ignore[reportArgumentType]
            plain.bias.zero_()
    order = EpochOrder(len(frames), seed)
    loader = train_loader(frames, order, 128)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=2 * len(loader))
    curve = []
    for order.epoch in (1, 2):
        total = 0.0
        for words, labels in loader:
            loss = nn.functional.cross_entropy(net(unpack_bits(words, frames.info.bits)).mean(0), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(labels)
        curve.append(total / len(frames))
    return curve, net.fc1.weight.detach()


@pytest.mark.parametrize("surrogate", ["atan", "fast_sigmoid"])
def test_the_curve_of_a_plain_script(surrogate: str, cache: Path) -> None:
    one = job(EstimatorConfig(surrogate, "float", library="snntorch"), cache)
    row = run_job(one)
    curve, _ = tutorial(PackedFrames(packed_file(one.train.data), "train"), surrogate, one.train.seed)
    assert row["losses"] == pytest.approx(curve, rel=1e-5)
    assert row["losses"][1] < row["losses"][0]


@pytest.mark.parametrize(
    ("surrogate", "width"),
    [
        ("atan", None),
        ("fast_sigmoid", None),
        ("sigmoid", 5.0),
        ("straight_through_estimator", None),
        ("heaviside", None),
        ("signed", None),
        ("spike_rate_escape", None),
        ("sparse_fast_sigmoid", None),
    ],
)
@pytest.mark.parametrize(("weights", "scale"), [("ste", 0.25), ("float", 1.0)])
def test_both_libraries_give_the_same_gradients(
    surrogate: str, width: float | None, weights: str, scale: float, cache: Path
) -> None:
    """At the start, exactly: later a rounding that moves a spike makes two runs of either library part."""
    settings = {"model.scale": scale, "model.surrogate_width": width}
    own = job(EstimatorConfig(surrogate, weights, settings=settings), cache, recurrent=True)
    frames = PackedFrames(packed_file(own.train.data), "train")
    torch.manual_seed(3)
    network = _drawn(own.train.model, frames.info)
    words, labels = next(iter(train_loader(frames, EpochOrder(len(frames), 0), 64)))
    calibrate(network, words)
    theirs = InSnntorch(network, frames.info.bits, spike_grad(surrogate, width, scale))
    gradients = []
    for model in (network, theirs):
        readout = model(words)[0]
        nn.functional.cross_entropy(readout.mean(0), labels).backward()
        gradients.append({p.shape: p.grad for p in model.parameters() if p.grad is not None and p.ndim == 2})
    assert gradients[0].keys() == gradients[1].keys()
    for shape, grad in gradients[0].items():
        assert (
            surrogate == "sparse_fast_sigmoid" or grad.abs().max() > 0
        )  # which asks for membranes at twice the threshold
        assert torch.allclose(grad, gradients[1][shape], rtol=1e-3, atol=1e-5 * grad.abs().max().item()), shape


def test_a_known_defect_of_snntorchs_sigmoid() -> None:
    """exp(25·4) overflows in float32 and its gradient is NaN; a membrane that far below threshold ends a run. Ours is 0."""
    for spike, expected in ((spike_grad("sigmoid", None, 1.0), True), (sigmoid(), False)):
        u = torch.tensor([-4.0], requires_grad=True)
        (gradient,) = torch.autograd.grad(spike(u).sum(), u)
        assert bool(gradient.isnan()) is expected


def test_both_libraries_learn_alike(cache: Path) -> None:
    rows = [run_job(job(EstimatorConfig("fast_sigmoid", library=library), cache)) for library in ("tbnn", "snntorch")]
    assert rows[0]["initial"] == rows[1]["initial"]
    assert rows[0]["losses"] == pytest.approx(rows[1]["losses"], rel=0.02)


def test_the_random_surrogate_runs_in_snntorch(cache: Path) -> None:
    row = run_job(job(EstimatorConfig("sso", library="snntorch"), cache))
    assert row["diverged"] is None
    assert row["grad_norm"]["median"] > 0


def test_a_scale_changes_the_gradient_alone() -> None:
    u = torch.linspace(-1, 1, 7, requires_grad=True)
    plain, scaled = spike_grad("atan", 3.0, 1.0), spike_grad("atan", 3.0, 4.0)
    assert torch.equal(plain(u), scaled(u))
    (a,) = torch.autograd.grad(plain(u).sum(), u)
    (b,) = torch.autograd.grad(scaled(u).sum(), u)
    assert torch.allclose(4 * a, b)


def test_what_snntorch_does_not_have_is_refused(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"snntorch has no 'boxcar', expected one of atan"):
        spike_grad("boxcar", None, 1.0)
    winners = job(EstimatorConfig("atan", library="snntorch"), cache)
    model = replace(winners.train.model, activity="winners")
    with pytest.raises(ValueError, match=r"layers.1 .*activity"):
        run_job(replace(winners, train=replace(winners.train, model=model)))
