"""From a configuration to a network."""

from torch import nn

from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent
from tbnn.train.config import ModelConfig


def build_network(model: ModelConfig, in_features: int, classes: int) -> Network:
    """Hidden layers of leaky neurons and a leaky readout: (T, B, in_features) -> (T, B, classes).

    Raises ``ValueError`` for settings the layers refuse.
    """
    layers: list[nn.Module] = []
    width = in_features
    for hidden in model.hidden:
        layers.append(_weights(model, width, hidden))
        neuron = _neuron(model)
        layers.append(Recurrent(neuron, _weights(model, hidden, hidden)) if model.recurrent else neuron)
        if model.dropout:
            layers.append(nn.Dropout(model.dropout))
        width = hidden
    layers += [_weights(model, width, classes), LeakyIntegrator(model.beta_readout)]
    return Network(layers)


def _weights(model: ModelConfig, width: int, out: int) -> nn.Module:
    if model.weights == "float":
        return nn.Linear(width, out)
    return BinaryLinear(width, out, estimator=model.estimator, form=model.form, lam=model.lam, block=model.block)


def _neuron(model: ModelConfig) -> Leaky:
    return Leaky(
        model.beta,
        model.threshold,
        gradient=model.gradient,
        surrogate=model.spike_surrogate(),
        target=model.target,
        emit=model.emit,
        stats=model.stats,
        per_channel=model.per_channel,
        differentiate_stats=model.differentiate_stats,
        reset_mechanism=model.reset_mechanism,
        lam=model.lam,
        scale=model.scale,
        floor=model.floor,
    )
