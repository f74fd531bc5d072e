"""The ``.tbnn`` file: safetensors whose metadata hold a JSON header, and a digest of both.

Metadata ``tbnn`` is ``{"format": "tbnn", "version": 3, "in_features": …, "layers": [spec, …], "provenance": {…}}``,
a spec as in :mod:`tbnn.sim.layers` with its ``kind``; ``sha256`` is over that text and every tensor. Tensors are named
"layers.0.planes", "layers.1.recurrent_layer.scale", …: the layer's name, then the tensor's. Nothing is unpickled.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import MISSING, Field, asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from tbnn.files import replacing
from tbnn.sim.layers import (
    ConvSpec,
    DelayedSpec,
    DelaySpec,
    EdgeSpec,
    IntegratorSpec,
    LeakySpec,
    LinearSpec,
    PackedConv,
    PackedDelay,
    PackedDelayed,
    PackedEdge,
    PackedIntegrator,
    PackedLayer,
    PackedLeaky,
    PackedLinear,
    PackedPool,
    PackedSparse,
    PackedVoting,
    PoolSpec,
    Shapes,
    SparseSpec,
    Spec,
    VotingSpec,
    inner_linear,
)

FORMAT, VERSION = "tbnn", 3
OLDEST = 2  # a version whose fields are those of this one, but for some that have defaults
HEADER_KEYS = ("format", "version", "in_features", "layers", "provenance")

SPECS: dict[str, type[Spec]] = {spec.kind: spec for spec in get_args(Spec)}

# safetensors' names of the dtypes that occur.
DTYPES = {"I32": torch.int32, "F32": torch.float32, "U16": torch.uint16, "U8": torch.uint8}

Network = TypeVar("Network")


def all_tensors(layers: tuple[PackedLayer, ...]) -> dict[str, Tensor]:
    """Every stored tensor, by its name in the file."""
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        inner = inner_linear(layer)
        for part in (layer, *([] if inner is None or inner is layer else [inner])):
            tensors |= {f"{part.spec.name}.{key}": tensor for key, tensor in part.tensors().items()}
    return tensors


def save(layers: tuple[PackedLayer, ...], in_features: int, provenance: dict[str, Any], path: Path) -> None:
    """Write the file under a temporary name beside it, then rename: a reader finds the old file or the whole new one.

    Raises ``ValueError`` for a provenance that JSON cannot hold, ``OSError`` where the folder cannot be written.
    """
    header = {
        "format": FORMAT,
        "version": VERSION,
        "in_features": in_features,
        "layers": [{"kind": layer.spec.kind, **asdict(layer.spec)} for layer in layers],
        "provenance": provenance,
    }
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: provenance: expected what JSON can hold, {error}") from None
    write(text, all_tensors(layers), path)


def write(header: str, tensors: dict[str, Tensor], path: Path) -> None:
    """Write header and tensors with their digest, whole or not at all."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = safetensors_bytes(tensors, {"tbnn": header, "sha256": digest(header, tensors)})
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def digest(header: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the header's text and every tensor's name and little-endian bytes, in the names' order."""
    sha = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        array = tensors[name].numpy()
        sha.update(name.encode())
        sha.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return sha.hexdigest()


def load(path: Path, make: Callable[[tuple[PackedLayer, ...], int, dict[str, Any]], Network]) -> Network:
    """Read a file into ``make(layers, in_features, provenance)``.

    The header and safetensors' own table of sizes are held against each other and the size of the file before any
    tensor is read. Raises ``FileNotFoundError``, or one ``ValueError`` that names the file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header, specs = parse_header(metadata.get("tbnn"))
            shapes = expected_tensors(specs)
            _check_table(file, shapes)
            # Copies: what safe_open gives may be the file itself, mapped into memory.
            tensors = {name: file.get_tensor(name).clone() for name in shapes}
        got, expected = digest(str(metadata.get("tbnn")), tensors), metadata.get("sha256")
        if got != expected:
            raise ValueError(f"the content is damaged: its SHA-256 is {got}, the file says {expected}")
        return make(tuple(_layer(spec, tensors) for spec in specs), header["in_features"], header["provenance"])
    except (ValueError, SafetensorError, OSError, RecursionError) as error:
        raise ValueError(f"{path}: expected a whole .tbnn file, got one that fails: {error}") from None


def parse_header(text: str | None) -> tuple[dict[str, Any], list[Spec]]:
    """The header and its layers' specs; ``ValueError`` for anything but a header this version can read."""
    if text is None:
        raise ValueError("a safetensors file without the metadata 'tbnn': another program wrote it")
    header = json.loads(text, parse_constant=_no_number)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"header: expected format {FORMAT!r}, got {text[:60]!r}")
    version = header.get("version")
    if type(version) is not int or not OLDEST <= version <= VERSION:
        newer = " (a newer tbnn wrote it: update tbnn)" if type(version) is int and version > VERSION else ""
        raise ValueError(f"header: expected version {OLDEST} to {VERSION}, got {version!r}{newer}")
    if set(header) != set(HEADER_KEYS):
        raise ValueError(f"header: expected the keys {', '.join(HEADER_KEYS)}, got {', '.join(header)}")
    kinds = (("in_features", int), ("layers", list), ("provenance", dict))
    for key, kind in kinds:
        if type(header[key]) is not kind:
            raise ValueError(f"header: {key}: expected {kind.__name__}, got {header[key]!r:.60}")
    return header, [_spec(entry, version < VERSION) for entry in header["layers"]]


def _no_number(text: str) -> None:
    raise ValueError(f"header: expected finite numbers, got {text}")


def _spec(entry: Any, older: bool) -> Spec:
    """A spec from its JSON object, every field present and of its type; an older file may lack those with defaults."""
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in SPECS:
        raise ValueError(f"header: expected a layer with a kind among {', '.join(SPECS)}, got {entry!r:.60}")
    values = {key: value for key, value in entry.items() if key != "kind"}
    return _typed(SPECS[kind], values, older)


def _typed(cls: type[Any], values: Any, older: bool) -> Any:
    """A spec of class ``cls`` from its fields; ``ValueError`` for missing, extra or mistyped ones."""
    names = [f.name for f in fields(cls)]
    if older and isinstance(values, dict):
        values = {f.name: f.default for f in fields(cls) if f.default is not MISSING} | values
    if not isinstance(values, dict) or set(values) != set(names):
        raise ValueError(f"header: {cls.kind}: expected the fields {', '.join(names)}, got {values!r:.200}")
    values = dict(values)
    for f in fields(cls):
        value = values[f.name]
        if LinearSpec in (f.type, *get_args(f.type)):
            values[f.name] = None if value is None and f.type != LinearSpec else _typed(_inner(f, value), value, older)
        elif get_origin(f.type) is tuple:
            if not isinstance(value, list) or [type(v) for v in value] != list(get_args(f.type)):
                raise ValueError(f"header: {cls.kind}: {f.name}: expected {f.type}, got {value!r:.60}")
            values[f.name] = tuple(value)
        elif type(value) is not f.type:
            raise ValueError(f"header: {cls.kind}: {f.name}: expected {f.type}, got {value!r:.60}")
    return cls(**values)


def _inner(field: Field[Any], value: Any) -> type[Spec]:
    """The class of a spec inside another, told by a field that only it has."""
    marks: dict[str, type[Spec]] = {"kernel": ConvSpec, "connections": SparseSpec}
    several = field.type != LinearSpec and isinstance(value, dict)
    return next((cls for mark, cls in marks.items() if several and mark in value), LinearSpec)


def expected_tensors(specs: list[Spec]) -> Shapes:
    """Dtype and shape of every tensor of a file with these layers."""
    feedbacks = [spec.feedback for spec in specs if isinstance(spec, LeakySpec) and spec.feedback is not None]
    kernels = [spec.kernel for spec in (*specs, *feedbacks) if isinstance(spec, ConvSpec | DelayedSpec)]
    parts = [(spec.name, spec.shapes()) for spec in (*specs, *feedbacks, *kernels)]
    expected: Shapes = {}
    for name, shapes in parts:
        for key, shape in shapes.items():
            if f"{name}.{key}" in expected:
                raise ValueError(f"header: expected layers of different names, got two called {name!r}")
            expected[f"{name}.{key}"] = shape
    return expected


def _check_table(file: Any, expected: Shapes) -> None:
    """Raise ``ValueError`` unless the file's table of tensors, read without the tensors, is the expected one."""
    names = set(file.keys())
    if names != set(expected):
        missing, extra = sorted(set(expected) - names), sorted(names - set(expected))
        raise ValueError(f"tensors that the header needs and the file lacks: {missing}; that it does not name: {extra}")
    for name, (dtype, shape) in expected.items():
        entry = file.get_slice(name)
        got_dtype, got_shape = DTYPES.get(entry.get_dtype(), entry.get_dtype()), tuple(entry.get_shape())
        if got_dtype != dtype or got_shape != shape:
            raise ValueError(f"{name}: the header says {dtype} {shape}, got {got_dtype} {got_shape}")


def _layer(spec: Spec, tensors: dict[str, Tensor]) -> PackedLayer:
    """A layer from its spec and its part of the tensors."""
    own = {key: tensors[f"{spec.name}.{key}"] for key in spec.shapes()}
    if isinstance(spec, LinearSpec):
        return PackedLinear(spec, **own)
    if isinstance(spec, SparseSpec):
        return PackedSparse(spec, **own)
    if isinstance(spec, ConvSpec):
        return PackedConv(spec, _layer(spec.kernel, tensors))  # pyright: ignore[reportArgumentType]
    if isinstance(spec, DelayedSpec):
        return PackedDelayed(spec, _layer(spec.kernel, tensors), **own)  # pyright: ignore[reportArgumentType]
    if isinstance(spec, PoolSpec):
        return PackedPool(spec)
    if isinstance(spec, EdgeSpec):
        return PackedEdge(spec)
    if isinstance(spec, VotingSpec):
        return PackedVoting(spec)
    if isinstance(spec, DelaySpec):
        return PackedDelay(spec, **own)
    if isinstance(spec, IntegratorSpec):
        return PackedIntegrator(spec, **own)
    feedback = None if spec.feedback is None else _layer(spec.feedback, tensors)
    return PackedLeaky(spec, **own, feedback=feedback)  # pyright: ignore[reportArgumentType]
