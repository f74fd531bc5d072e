"""The order of a NIR graph's nodes: a chain, in which neurons may have feedback."""

from typing import Any, NamedTuple


class Loop(NamedTuple):
    """Nodes whose output returns to them."""

    body: list[str]
    """On the way ahead: where feedback arrives first, where it leaves last."""
    back: list[str]
    """On the way back, in order."""


def chain(nir: Any, graph: Any) -> tuple[dict[str, Any], list[str | Loop], tuple[int, ...] | None]:
    """All nodes by name, their order from the input to the output, and the features of one step where the input says.

    Subgraphs are taken apart; their nodes are called ``subgraph.node``. Nodes and edges may stand in any order.

    Raises:
        ValueError: not one input and one output; an edge to no node; a branch, or a node outside the chain, by name and type.
    """
    nodes, edges, start, end = _flat(nir, graph, "")
    ahead: dict[str, list[str]] = {name: [] for name in nodes}
    behind: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in dict.fromkeys(edges):
        ahead[source].append(target)
        behind[target].append(source)
    shape = nodes[start].input_type["input"]
    items, seen = _walk(nodes, ahead, behind, start, end)
    outside = [name for name in nodes if name not in seen]
    if outside:
        raise ValueError(f"{_place(nodes, outside[0])}: expected a node on the way from the input to the output")
    return nodes, items, None if shape is None else tuple(int(size) for size in shape)


def _flat(nir: Any, graph: Any, prefix: str) -> tuple[dict[str, Any], list[tuple[str, str]], str, str]:
    """(nodes, edges, input, output) with subgraphs in place: their inputs and outputs are left out."""
    nodes: dict[str, Any] = {}
    edges = [(prefix + source, prefix + target) for source, target in graph.edges]
    for edge in edges:
        for name in edge:
            if name.removeprefix(prefix) not in graph.nodes:
                raise ValueError(f"{name}: expected a node of the graph, got an edge {edge} without it")
    ends: dict[Any, list[str]] = {nir.Input: [], nir.Output: []}
    for short, node in graph.nodes.items():
        name = prefix + short
        if isinstance(node, nir.NIRGraph):
            inner, inner_edges, start, end = _flat(nir, node, f"{name}.")
            edges = [(end if a == name else a, start if b == name else b) for a, b in edges] + inner_edges
            for passed in (start, end):
                del inner[passed]
                edges = _without(passed, edges)
            nodes |= inner
            continue
        nodes[name] = node
        if type(node) in ends:
            ends[type(node)].append(name)
    for kind, names in ends.items():
        if len(names) != 1:
            raise ValueError(f"{prefix[:-1] or 'graph'}: expected one {kind.__name__} node, got {names or 'none'}")
    return nodes, edges, ends[nir.Input][0], ends[nir.Output][0]


def _without(name: str, edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The edges with those into a node joined to those out of it."""
    into = [source for source, target in edges if target == name]
    out = [target for source, target in edges if source == name]
    return [edge for edge in edges if name not in edge] + [(source, target) for source in into for target in out]


def _walk(
    nodes: dict[str, Any], ahead: dict[str, list[str]], behind: dict[str, list[str]], start: str, end: str
) -> tuple[list[str | Loop], set[str]]:
    """The chain, and every node in it."""
    items: list[str | Loop] = []
    seen = {start}
    last, at = start, _only(nodes, start, ahead[start], "one edge out")
    while at != end:
        arriving = [name for name in behind[at] if name != last]
        if at in seen:
            raise ValueError(f"{_place(nodes, at)}: expected a chain from the input to the output, got a cycle")
        if not arriving:
            items.append(at)
            seen.add(at)
            last, at = at, _only(nodes, at, ahead[at], "one edge out")
            continue
        source = _only(nodes, at, arriving, "at most one edge of feedback")
        back = _way_back(nodes, ahead, behind, at, source)
        leaves = behind[back[0]][0] if back else source
        body = [at]
        while body[-1] != leaves:
            body.append(_only(nodes, body[-1], ahead[body[-1]], "one edge out"))
            if len(body) > len(nodes) or body[-1] == end:
                raise ValueError(
                    f"{_place(nodes, at)}: expected feedback from a neuron after it, got one from {leaves}"
                )
        items.append(Loop(body, back))
        seen |= {*body, *back}
        returned = back[0] if back else at
        last, at = leaves, _only(nodes, leaves, [name for name in ahead[leaves] if name != returned], "one edge ahead")
    if behind[end] != [last]:
        raise ValueError(f"{_place(nodes, end)}: expected one edge in, got edges from {behind[end]}")
    return items, seen | {end}


def _way_back(
    nodes: dict[str, Any], ahead: dict[str, list[str]], behind: dict[str, list[str]], at: str, source: str
) -> list[str]:
    """The nodes between where a loop leaves the chain and where it arrives, ``at``; ``source`` is the last of them."""
    back: list[str] = []
    while len(ahead[source]) == 1:
        if source in (at, *back):
            raise ValueError(f"{_place(nodes, at)}: expected a chain from the input to the output, got a cycle")
        back.insert(0, source)
        source = _only(nodes, source, behind[source], "one edge in")
    return back


def _only(nodes: dict[str, Any], name: str, names: list[str], expected: str) -> str:
    if len(names) != 1:
        raise ValueError(f"{_place(nodes, name)}: expected {expected} (a chain), got edges with {names or 'no node'}")
    return names[0]


def _place(nodes: dict[str, Any], name: str) -> str:
    return f"{name} ({type(nodes[name]).__name__})"
