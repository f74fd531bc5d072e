"""A graph of ONNX under construction: operators, constants packed to few bits, states that come in and go out."""

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tbnn._version import __version__

Shape = tuple[int, ...]

OPSET = 17
IR_VERSION = 8
"""Of 2022: what runtimes of the last years read, and newer ones too."""
BATCH = "batch"
NEXT = ".next"
"""What the name of a state's successor ends in."""
WIDTHS = (1, 2, 4, 8)
"""Bits of a packed value: a byte holds a whole number of them."""


def onnx_package() -> Any:
    """The package ``onnx``; ``ValueError`` that says how to get it where it is missing."""
    try:
        import onnx
    except ImportError as error:
        raise ValueError(f"onnx: expected the package, got {error}; pip install 'tbnn[exchange]'") from error
    return onnx


class Graph:
    """One step, ``x`` and states to ``y`` and states; tensors are known by their names.

    Args:
        onnx: the package.
        batch: the batch's size, or None for any.
        shape: the features of x.

    Attributes:
        place: the layer whose operators are being added; their names begin with it.
    """

    def __init__(self, onnx: Any, batch: int | None, shape: Shape) -> None:
        self.onnx, self.batch = onnx, BATCH if batch is None else batch
        self.place = ""
        self.nodes: list[Any] = []
        self.constants: dict[tuple[Any, ...], Any] = {}
        self.inputs: dict[str, tuple[int | str, ...]] = {"x": (self.batch, *shape)}
        self.nexts: dict[str, str] = {}

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """The name of an operator's output, of several outputs the first's."""
        name = f"{self.place}/{kind}_{len(self.nodes)}"
        names = [name, *(f"{name}.{i}" for i in range(1, outputs))]
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), names, name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        """A number, an array or a tensor; one of equal values is one number. Equal constants are stored once."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        if array.dtype == np.float32 and array.size and (array == array.flat[0]).all():
            array = array.reshape(-1)[0]
        return self._stored(array)

    def indices(self, *values: int) -> str:
        """Axes, sizes or places, int64 (values,)."""
        return self._stored(np.array(values, np.int64))

    def packed(self, values: Tensor) -> str:
        """Values as float32 of their shape; whole numbers evenly spaced are stored as numbers of the fewest bits.

        A byte b holds values of w bits, the first in its lowest: ⌊b/2^(w·i)⌋ − 2^w·⌊b/2^(w·(i+1))⌋. Every runtime has
        these operators, which those of bits cannot be said of, and a runtime that folds constants unpacks but once.
        """
        array = values.detach().cpu().numpy().astype(np.float64)
        lowest = array.min()
        codes = array - lowest
        if (array != np.round(array)).any() or codes.max() >= 2**15:
            return self._stored(array.astype(np.float32))
        whole = codes.astype(np.int64)
        step = int(np.gcd.reduce(whole, axis=None)) or 1
        levels = int(whole.max()) // step + 1
        width = next((w for w in WIDTHS if levels <= 2**w), 16)
        codes = self._unpacked(whole // step, width)
        scaled = codes if step == 1 else self.op("Mul", codes, self.constant(float(step)))
        return scaled if lowest == 0 else self.op("Add", scaled, self.constant(float(lowest)))

    def _unpacked(self, codes: np.ndarray, width: int) -> str:
        """Codes below 2^width as float32 of their shape."""
        float32 = self.onnx.TensorProto.FLOAT
        if width >= 8:
            return self.op("Cast", self._stored(codes.astype(np.uint8 if width == 8 else np.uint16)), to=float32)
        count = 8 // width
        padded = np.pad(codes.reshape(-1), (0, -codes.size % count)).reshape(-1, count)
        exponents = width * np.arange(count + 1)
        packed = (padded << exponents[:-1]).sum(1, keepdims=True).astype(np.uint8)
        powers = (0.5**exponents).astype(np.float32)
        number = self.op("Cast", self._stored(packed), to=float32)
        from_here, further = (
            self.op("Floor", self.op("Mul", number, self._stored(part))) for part in (powers[:-1], powers[1:])
        )
        bits = self.op("Sub", from_here, self.op("Mul", further, self.constant(float(2**width))))
        flat = self.op("Reshape", bits, self.indices(-1))
        if padded.size != codes.size:
            flat = self.op("Slice", flat, self.indices(0), self.indices(codes.size))
        return self.op("Reshape", flat, self.indices(*codes.shape))

    def _stored(self, array: np.ndarray) -> str:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            name = f"{self.place}/constant_{len(self.constants)}"
            self.constants[key] = self.onnx.numpy_helper.from_array(
                np.ascontiguousarray(array).reshape(array.shape), name
            )
        return self.constants[key].name

    def state(self, name: str, shape: Shape, past: int | None = None) -> str:
        """A state that comes in: (B, features...), or the last steps' values, (past, B, features...)."""
        self.inputs[name] = (self.batch, *shape) if past is None else (past, self.batch, *shape)
        return name

    def follow(self, name: str, value: str) -> None:
        """What a state is after the step."""
        self.nexts[name] = value

    def model(self, y: str, shape: Shape) -> Any:
        """The whole as a ``ModelProto`` whose outputs are ``y`` and the states' successors, in the inputs' order."""
        helper, float32 = self.onnx.helper, self.onnx.TensorProto.FLOAT
        states = {name: sizes for name, sizes in self.inputs.items() if name != "x"}
        self._name({"y": y, **{name + NEXT: self.nexts[name] for name in states}})
        outputs = {"y": (self.batch, *shape), **{name + NEXT: sizes for name, sizes in states.items()}}
        values = [
            [helper.make_tensor_value_info(name, float32, sizes) for name, sizes in ends.items()]
            for ends in (self.inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "step", *values, list(self.constants.values()))
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
            producer_name="tbnn", producer_version=__version__, doc_string=HOW_TO_STEP,
        )  # fmt: skip
        described = {name: {"next": name + NEXT, "shape": sizes, "start": 0} for name, sizes in states.items()}
        helper.set_model_props(model, {"states": json.dumps(described)})
        return model

    def _name(self, outputs: dict[str, str]) -> None:
        """Give what leaves the graph its name: where the value is made, or by a copy if it comes in or leaves twice."""
        renamed: dict[str, str] = {}
        made = {name for node in self.nodes for name in node.output}
        for name, value in outputs.items():
            if value in made and value not in renamed:
                renamed[value] = name
            else:
                self.nodes.append(self.onnx.helper.make_node("Identity", [value], [name], name))
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]


HOW_TO_STEP = (
    "One time step of a temporal binary network. Inputs: x, the step's values (batch, features...), and the states. "
    "Outputs: y, and each state's successor in the inputs' order, named after it with .next, to be fed back at the next "
    "step. A sequence starts with states of zeros; the metadata 'states' (JSON) hold names and shapes."
)


def per_channel(value: Tensor, axes: int) -> Tensor:
    """Values of channels (C,), to broadcast to features of ``axes`` axes."""
    return value.reshape(-1, *[1] * (axes - 1))


def is_all(value: Tensor, number: float) -> bool:
    """Whether every value is this number."""
    return bool(torch.eq(value, number).all())
