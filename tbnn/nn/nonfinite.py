"""Where a network's first value or gradient that is no finite number comes from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

FEW = 3  # names of a message


@contextmanager
def detect_nonfinite(network: nn.Module) -> Iterator[None]:
    """Name the layer and the time step where the first NaN or infinity appears, forward or backward.

    Inside the ``with`` block, every layer's output, last state and gradients are looked at, as
    ``torch.autograd.detect_anomaly`` does with every operation's NaN gradients. A binary layer and the neurons after it
    run one after the other, not as one: slower, the same numbers. It sees ``network(x)``, not ``network.step(x_t)``.

    Raises:
        FloatingPointError: forward, of the layer whose output or state is the first that is not finite, with its
            earliest time step; backward, of the layer whose backward pass gives its input, or one of its parameters,
            such a gradient, or of the loss, with the latest time step: gradients flow from the end.

    >>> with detect_nonfinite(network):
    ...     network(x)[0].sum().backward()
    FloatingPointError: layers.2 (BinaryLinear), forward: 12 of 640 of the values of its output are not finite, the first at step 3
    """
    watch = _Watch(network)
    try:
        yield
    finally:
        watch.remove()


class _Layer:
    """A layer's name, as a message has it."""

    def __init__(self, path: str, module: nn.Module) -> None:
        self.path, self.module = path, module

    def __str__(self) -> str:
        return f"{self.path} ({type(self.module).__name__})"


class _Watch:
    """Hooks on a network's layers and parameters, and on the tensors between layers while a graph is made."""

    def __init__(self, network: nn.Module) -> None:
        self.steps = 0
        self.between: dict[int, tuple[Tensor, _Layer | None, list[_Layer]]] = {}  # by id: tensor, maker, takers
        self.hooks: list[Any] = [network.register_forward_pre_hook(self._start)]
        for path, module in network.named_modules():
            if path and not isinstance(module, nn.ModuleList):
                layer = _Layer(path, module)
                self.hooks += [
                    module.register_forward_pre_hook(self._entering(layer)),
                    module.register_forward_hook(self._leaving(layer)),
                ]
        for path, parameter in network.named_parameters():
            if parameter.requires_grad:
                owner, _, name = path.rpartition(".")
                layer = _Layer(owner or "network", network.get_submodule(owner))
                self.hooks.append(parameter.register_hook(self._of_parameter(layer, name)))

    def remove(self) -> None:
        """Take all hooks away, those of a graph that lives on too."""
        for hook in self.hooks:
            hook.remove()
        self.between.clear()

    def _start(self, _network: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.between.clear()  # a graph keeps the tensors it needs; ids are good while they are kept here
        x = inputs[0]
        self.steps = len(x)
        if x.is_floating_point() and not _finite(x):
            raise FloatingPointError(f"x, the network's input: {self._found(x, 'its values')}")

    def _entering(self, layer: _Layer) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0]
            if isinstance(x, Tensor) and x.requires_grad:
                self._gradient_of(x, None)[2].append(layer)

        return hook

    def _leaving(self, layer: _Layer) -> Callable[..., None]:
        def hook(module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
            y, state = output if isinstance(output, tuple) else (output, None)
            if not _finite(y):
                bad = [name for name, p in module.named_parameters() if not _finite(p)]
                why = f"; not finite: its {', '.join(bad[:FEW])}" if bad else ""
                raise FloatingPointError(f"{layer}, forward: {self._found(y, 'the values of its output')}{why}")
            for name, part in _tensors("state", state):
                if not _finite(part):
                    raise FloatingPointError(f"{layer}, forward: {_counted(part, f'the values of its {name}')}")
            if y.requires_grad:
                self._gradient_of(y, layer)

        return hook

    def _gradient_of(self, x: Tensor, maker: _Layer | None) -> tuple[Tensor, _Layer | None, list[_Layer]]:
        """What is known of a tensor between layers; its gradient is looked at from now on."""
        known = self.between.get(id(x))
        if known is None:
            known = self.between[id(x)] = (x, maker, [])
            takers = known[2]

            def hook(grad: Tensor) -> None:
                if not _finite(grad):
                    raise FloatingPointError(self._backward_message(grad, maker, takers))

            self.hooks.append(x.register_hook(hook))
        return known

    def _backward_message(self, grad: Tensor, maker: _Layer | None, takers: list[_Layer]) -> str:
        inner = [a for a in takers if not any(b.path.startswith(f"{a.path}.") for b in takers)]
        if inner:
            names = " or ".join(str(layer) for layer in inner[:FEW])
            return f"{names}, backward: {self._found(grad, 'the gradients of its input', last=True)}"
        found = self._found(grad, f"the gradients of the output of {maker}", last=True)
        return f"the loss, backward: {found}"

    def _of_parameter(self, layer: _Layer, name: str) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            if not _finite(grad):
                raise FloatingPointError(f"{layer}, backward: {_counted(grad, f'the gradients of its {name}')}")

        return hook

    def _found(self, x: Tensor, what: str, last: bool = False) -> str:
        """How many values are not finite, and the first step that has some; in backward the latest."""
        bad = ~x.detach().isfinite()
        if not x.ndim or not self.steps or len(x) % self.steps:
            return _counted(x, what)
        of_steps = bad.reshape(self.steps, -1).any(1).nonzero().flatten().tolist()
        where = f"the latest at step {of_steps[-1]}" if last else f"the first at step {of_steps[0]}"
        return f"{_counted(x, what)}, {where}"


def _finite(x: Tensor) -> bool:
    return not x.is_floating_point() or bool(x.detach().isfinite().all())


def _counted(x: Tensor, what: str) -> str:
    return f"{int((~x.detach().isfinite()).sum())} of {x.numel()} of {what} are not finite"


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state, named by their fields."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, tuple):
        fields = getattr(value, "_fields", range(len(value)))
        for field, part in zip(fields, value, strict=True):
            yield from _tensors(str(field), part)
