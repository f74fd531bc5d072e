"""Dropout of spikes: what is silenced together, and that bits stay bits."""

import pytest
import torch

from tbnn.nn.dropout import SpikeDropout


def ones() -> torch.Tensor:
    return torch.ones(40, 6, 10, 4, 4)


@pytest.mark.parametrize("per", ["element", "channel", "sequence"])
def test_bits_stay_bits_and_the_asked_share_is_silent(per: str) -> None:
    y, _ = SpikeDropout(0.3, per)(ones())
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert y.mean().item() == pytest.approx(0.7, abs=0.06 if per == "sequence" else 0.03)


def test_what_is_silenced_together() -> None:
    def varies(per: str) -> list[bool]:
        y, _ = SpikeDropout(0.5, per)(ones())
        return [bool((y != y.select(axis, 0).unsqueeze(axis)).any()) for axis in range(5)]

    assert varies("element") == [True] * 5
    assert varies("channel") == [True, True, True, False, False]
    assert varies("sequence") == [False, True, True, True, True]


@pytest.mark.parametrize("per", ["element", "channel", "sequence"])
def test_evaluation_and_p_of_zero_change_nothing(per: str) -> None:
    x = torch.randn(5, 2, 3)
    assert torch.equal(SpikeDropout(0.5, per).eval()(x)[0], x)
    assert torch.equal(SpikeDropout(0.0, per)(x)[0], x)


def test_the_state_keeps_who_is_silent() -> None:
    dropout, x = SpikeDropout(0.5, "sequence"), torch.ones(12, 3, 20)
    y, state = dropout(x[:5])
    rest, again = dropout(x[5:], state)
    assert torch.equal(torch.cat([y, rest]), y[:1].expand(12, 3, 20))
    assert torch.equal(dropout.step(x[0], again)[0], y[0])
    assert not torch.equal(dropout(x)[0], torch.cat([y, rest]))


def test_gradients_pass_where_spikes_do() -> None:
    x = ones().requires_grad_()
    y, _ = SpikeDropout(0.4)(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, y.detach())


def test_rescaling_keeps_the_mean() -> None:
    y, _ = SpikeDropout(0.75, rescale=True)(ones())
    assert set(y.unique().tolist()) == {0.0, 4.0}
    assert y.mean().item() == pytest.approx(1, abs=0.05)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"p: expected a probability in \[0, 1\), got 1"):
        SpikeDropout(1.0)
    with pytest.raises(ValueError, match="per: expected one of 'element', 'channel', 'sequence', got 'batch'"):
        SpikeDropout(0.5, "batch")
    with pytest.raises(ValueError, match=r"state: expected \(2, 3\), got \(1, 3\)"):
        SpikeDropout(0.5, "sequence")(torch.ones(4, 2, 3), torch.ones(1, 3))
