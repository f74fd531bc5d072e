"""A reader and simulator of .tbnn files in NumPy alone, written from docs/format.md."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {"I32": "<i4", "F32": "<f4", "U16": "<u2", "U8": "u1"}
f32 = np.float32


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the tensors."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + length])
    header = json.loads(table.pop("__metadata__")["tbnn"])
    tensors = {}
    for name, entry in table.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return header, tensors


def bits_of(words: np.ndarray, count: int) -> np.ndarray:
    """(..., words) -> 0/1 (..., count)."""
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little", count=count)


class Linear:
    """``y = Σ_k (scale_k·p_k + offset_k·n_k) + bias``."""

    each = False  # whether each output has bits of its own

    def __init__(self, layer: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        name, bits, top = layer["name"], layer["bits"], 2 ** layer["bits"] - 1
        factors, constant = ([2 ** (j + 1) for j in range(bits)], -top) if bits > 1 else ([2], -1)
        if layer["zeros"]:
            factors, constant = ([*factors, -top] if bits > 1 else [1, -1]), 0
        planes = bits_of(tensors[f"{name}.planes"], layer["in_features"]).astype(np.int64)
        self.values = np.tensordot(factors, planes, 1) + constant  # (out, in)
        self.scale, self.block = tensors[f"{name}.scale"], layer["block"]
        self.offset, self.bias = tensors.get(f"{name}.offset"), tensors.get(f"{name}.bias")

    def __call__(self, s: np.ndarray, bias: np.ndarray | None = None, rows: slice = slice(None)) -> np.ndarray:
        """Bits (..., in), or those of each output (..., out, in), -> (..., out)."""
        y, each = f32(0), self.each
        for k, lo in enumerate(range(0, s.shape[-1], self.block)):
            part, values = s[..., lo : lo + self.block].astype(np.int64), self.values[rows, lo : lo + self.block]
            p = (part * values).sum(-1) if each else part @ values.T
            term = p.astype(f32) * self.scale[rows, k]
            if self.offset is not None:
                term = term + part.sum(-1, keepdims=not each).astype(f32) * self.offset[rows, k]
            y = term if k == 0 else y + term
        bias = self.bias if bias is None else bias
        return y if bias is None else y + bias[rows]


class Sparse(Linear):
    """The same from lists of connections."""

    def __init__(self, layer: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        name, self.block = layer["name"], layer["in_features"]
        lists = np.repeat(np.arange(2 * self.block), np.diff(tensors[f"{name}.starts"]))
        self.values = np.zeros((layer["out_features"], self.block), np.int64)
        magnitudes = tensors.get(f"{name}.magnitudes", np.ones(len(lists)))
        self.values[tensors[f"{name}.outputs"], lists // 2] = (1 - 2 * (lists % 2)) * magnitudes
        self.scale, self.offset = tensors[f"{name}.scale"], tensors.get(f"{name}.offset")
        self.bias = tensors.get(f"{name}.bias")


class Conv:
    """Windows times the kernel."""

    def __init__(self, layer: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        self.layer, self.kernel = layer, Linear(layer["kernel"], tensors)

    def __call__(self, s: np.ndarray) -> np.ndarray:
        layer, groups = self.layer, self.layer["groups"]
        top, bottom, left, right = layer["margins"]
        x = s.reshape(len(s), layer["channels"], layer["height"], layer["width"])
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        view = windows(x, layer["window"], layer["stride"], layer["dilation"])  # (B, C, OH, OW, kh, kw)
        per, out = layer["channels"] // groups, layer["kernel"]["out_features"] // groups
        parts = []
        for g in range(groups):
            patch = (
                view[:, g * per : (g + 1) * per]
                .transpose(0, 2, 3, 1, 4, 5)
                .reshape(*view.shape[:1], *view.shape[2:4], -1)
            )
            parts.append(self.kernel(patch, rows=slice(g * out, (g + 1) * out)))
        return np.concatenate(parts, -1).transpose(0, 3, 1, 2).reshape(len(s), -1)


def windows(x: np.ndarray, window: list[int], stride: list[int], dilation: list[int]) -> np.ndarray:
    """(B, C, H, W) -> (B, C, OH, OW, kh, kw)."""
    spans = [(size - 1) * step + 1 for size, step in zip(window, dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, spans, (2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


class Delayed:
    """A kernel whose outputs see the bits of other steps."""

    def __init__(self, layer: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        self.kernel, self.past = Linear(layer["kernel"], tensors), []
        self.kernel.each = True
        bits = bits_of(tensors[f"{layer['name']}.delay"], layer["kernel"]["in_features"]).astype(int)
        self.delay = np.tensordot(2 ** np.arange(len(bits)), bits, 1)  # (out, in)

    def __call__(self, s: np.ndarray) -> np.ndarray:
        self.past.append(s)
        reach = range(min(len(self.past), self.delay.max() + 1))
        return self.kernel(sum(self.past[-1 - d][:, None] * (self.delay == d) for d in reach))


class Pool:
    """OR over windows."""

    def __init__(self, layer: dict[str, Any], _: dict[str, np.ndarray]) -> None:
        self.layer = layer

    def __call__(self, s: np.ndarray) -> np.ndarray:
        layer, (ph, pw) = self.layer, self.layer["padding"]
        x = s.reshape(len(s), layer["channels"], layer["height"], layer["width"])
        x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
        return windows(x, layer["window"], layer["stride"], [1, 1]).max((-1, -2)).reshape(len(s), -1)


class Neuron:
    """The steps 1 to 7 of "leaky", or an integrator."""

    def __init__(self, layer: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        name = layer["name"]
        self.layer, self.integrates = layer, layer["kind"] == "integrator"
        self.beta, self.theta = tensors[f"{name}.beta"], tensors.get(f"{name}.threshold")
        self.second, self.rest_bias = tensors.get(f"{name}.second"), tensors.get(f"{name}.rest_bias")
        inner, self.v = layer.get("feedback"), None
        kind = "conv" if "kernel" in (inner or ()) else "sparse" if "connections" in (inner or ()) else "linear"
        self.feedback = inner and KINDS[kind](inner, tensors)

    def __call__(self, current: np.ndarray) -> np.ndarray:
        first, layer = self.v is None, self.layer
        if first:
            self.v, self.w, self.q, self.waiting = (np.zeros(current.shape, f32) for _ in range(4))
            self.past = [self.q] * layer.get("delay", 1)
        if self.integrates:
            self.v = self.beta * self.v + current
            return self.v
        if self.feedback is not None:
            bias = [self.rest_bias] if first and self.rest_bias is not None else []
            current = current + self.feedback(self.past[0], *bias)
        v, w, q = self.v, self.w, self.q
        if layer["reset"] == "zero":
            v = (1 - q) * v
        if self.second is None:
            v = self.beta * v + current
            level = v
        else:
            rho, a, b, c, d, e, f = self.second
            w = rho * w + a * v + b * current + c * q
            v = self.beta * v + e * w + d * current
        if layer["reset"] == "subtract":
            v = v - self.theta * q
        level = v if self.second is None else v - f * w
        fired = (level > self.theta) & (self.waiting == 0)
        if 0 < layer["winners"] < level.shape[1]:
            above = np.where(fired, level - self.theta, -np.inf)
            order = np.argsort(-above, 1, kind="stable")[:, : layer["winners"]]
            winner = np.zeros_like(fired)
            np.put_along_axis(winner, order, True, 1)
            fired &= winner
        self.v, self.w, self.q = v, w, fired.astype(f32)
        self.past = [*self.past[1:], self.q]
        self.waiting = np.where(fired, layer["refractory"], np.maximum(self.waiting - 1, 0)).astype(f32)
        return self.q


class Delay:
    """Each channel by its own number of steps."""

    def __init__(self, layer: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        self.delay, self.past = np.repeat(tensors[f"{layer['name']}.delay"], layer["size"]), []

    def __call__(self, s: np.ndarray) -> np.ndarray:
        self.past.append(s)
        zeros = np.zeros_like(s)
        return sum((self.past[-1 - d] if d < len(self.past) else zeros) * (self.delay == d) for d in set(self.delay))


class Voting:
    """The mean over voters."""

    def __init__(self, layer: dict[str, Any], _: dict[str, np.ndarray]) -> None:
        self.voters = layer["voters"]

    def __call__(self, s: np.ndarray) -> np.ndarray:
        return s.reshape(len(s), -1, self.voters).mean(-1, dtype=f32)


def turn(op: str, s: np.ndarray, pile: list[np.ndarray]) -> np.ndarray:
    """An edge of a residual block."""
    if op == "fork":
        pile.append(s)
        return s
    kept = pile.pop()
    if op == "swap":
        pile.append(s)
        return kept
    return {"or": np.maximum(s, kept), "and": s * kept, "iand": (1 - s) * kept, "current": s + kept}[op]


KINDS = {
    "linear": Linear, "sparse": Sparse, "conv": Conv, "delayed": Delayed, "pool": Pool, "leaky": Neuron, "integrator": Neuron,
    "delay": Delay, "voting": Voting,
}  # fmt: skip


def simulate(path: Path, x: np.ndarray) -> np.ndarray:
    """0/1 (T, B, in_features) -> what leaves the last layer, (T, B, ...)."""
    header, tensors = read(path)
    layers = [
        KINDS[layer["kind"]](layer, tensors) if layer["kind"] in KINDS else layer["op"] for layer in header["layers"]
    ]
    out, pile = [], []
    for s in x.astype(f32):
        for layer in layers:
            s = turn(layer, s, pile) if isinstance(layer, str) else layer(s)
        out.append(s)
    return np.stack(out)
