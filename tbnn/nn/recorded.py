"""Layers that remember how they were made, so that a network can be written down as a configuration and made again."""

import functools
import inspect
from typing import Any, TypeVar, get_args, get_type_hints

Class = TypeVar("Class", bound=type)

LAYERS: dict[str, type] = {}
"""Every recorded class, by its name: what a configuration may name."""


class Recorded:
    """Mixin of layers: each instance keeps the arguments it was made with, each subclass is known to configurations.

    A subclass made with ``abstract=True`` is a base, which configurations do not name.

    >>> class Twice(Recorded, nn.Module):
    ...     def __init__(self, gain: float = 2.0) -> None:
    ...         super().__init__()
    >>> arguments_of(Twice())
    {'gain': 2.0}
    """

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _keep_arguments(cls)
        if not abstract:
            LAYERS[cls.__name__] = cls


def record(cls: Class) -> Class:
    """Class decorator: what :class:`Recorded` does, for a layer that does not inherit from it, a user's neuron say."""
    _keep_arguments(cls)
    LAYERS[cls.__name__] = cls
    return cls


def _keep_arguments(cls: type) -> None:
    """Wrap a class's own constructor, if it has one, to keep the arguments of the instances it makes."""
    init: Any = cls.__dict__.get("__init__")
    if init is None or hasattr(init, "__wrapped__"):
        return

    @functools.wraps(init)
    def recording(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        bound = inspect.signature(init).bind(self, *args, **kwargs)  # a subclass's constructor ends later and overrules
        bound.apply_defaults()
        made_with = dict(list(bound.arguments.items())[1:])
        for name, parameter in inspect.signature(init).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                made_with |= made_with.pop(name)
        self.__dict__["made_with"] = made_with

    cls.__init__ = recording  # pyright: ignore[reportAttributeAccessIssue]


def arguments_of(module: Any) -> dict[str, Any]:
    """The arguments a layer was made with, defaults included; one that became a submodule is that, as it is now.

    Raises ``ValueError`` for an object whose class is not recorded.
    """
    if LAYERS.get(type(module).__name__) is not type(module):
        raise ValueError(
            f"{type(module).__name__}: expected a layer that configurations know "
            f"({', '.join(sorted(LAYERS))}); tbnn.nn.record makes a class known"
        )
    submodules = module.__dict__.get("_modules", {})
    made_with = module.__dict__.get("made_with", {})
    return {name: value if submodules.get(name) is None else submodules[name] for name, value in made_with.items()}


def known_arguments(cls: type) -> list[str]:
    """The names that a class's constructor takes, those of typed ``**options`` included."""
    names = []
    for name, parameter in list(inspect.signature(cls).parameters.items()):
        if parameter.kind is parameter.VAR_KEYWORD:
            options = get_args(get_type_hints(inspect.unwrap(cls.__init__))[name])  # pyright: ignore[reportAttributeAccessIssue]
            names += list(options[0].__annotations__) if options else []
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            names.append(name)
    return names
