"""Estimators that change while a network trains: moved together, once an epoch say."""

from torch import nn

from tbnn.nn.weights import BinaryWeight
from tbnn.ops.quantize.estimators import check_progress, estimator_of


def progress(network: nn.Module, share: float) -> None:
    """Set the estimator of every layer of binary weights to a point of training: ``estimator.at(share)``.

    ReSTE's power rises, QGait's soft quantiser comes in, PEGE's share of quantised weights grows; the others stay as they
    are. A network whose training ends with ``progress(network, 1)`` is quantised throughout. Evaluation always is.

    Args:
        network: any module; layers inside of others are found too. Networks that share a layer share its estimator.
        share: of the training that is over, from 0 to 1.

    Raises:
        ValueError: a share outside [0, 1].

    >>> net = Network([BinaryLinear(8, 4, estimator="pege"), Leaky(0.9)])
    >>> for epoch in range(10):
    ...     progress(net, epoch / 9)
    ...     net(torch.ones(5, 2, 8))
    """
    check_progress("progress", share)
    for layer in network.modules():
        if isinstance(layer, BinaryWeight):
            now = estimator_of(layer.estimator)
            if now.at(share) != now:  # else a name stays a name
                layer.estimator = now.at(share)
