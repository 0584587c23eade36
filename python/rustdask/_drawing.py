"""Pictures of graphs of lazy calls: in Graphviz's language, and drawn, with Graphviz where it is installed and without.

Guarantees: text and SVG take no other program. Equal calls that are pure are drawn as the one task that they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rustdask import _core
from rustdask._delayed_graph import Node, Plan, label_of, ordered

_SWEEPS = 8
_LAYER_HEIGHT = 70.0
_BOX_HEIGHT = 30.0
_CHARACTER_WIDTH = 8.0
_GAP = 20.0
_MARGIN = 10.0


@dataclass(frozen=True)
class _Shape:
    """A task or a value. `needs`: the places of shapes in the drawing that lead to it."""

    label: str
    is_call: bool
    needs: tuple[int, ...]


class Drawing:
    """A picture of a graph. Shows itself in a notebook; its ``str()`` is the graph in Graphviz's language.

    Parameters
    ----------
    outputs : sequence of Node
    """

    def __init__(self, outputs: Sequence[Node]) -> None:
        self._shapes = _shapes(outputs)

    def __str__(self) -> str:
        return "\n".join(["digraph {", "  rankdir=BT", *self._statements(), "}"])

    def _statements(self) -> Iterator[str]:
        for at, shape in enumerate(self._shapes):
            label = shape.label.replace("\\", "\\\\").replace('"', '\\"')
            yield f'  {at} [label="{label}", shape={"ellipse" if shape.is_call else "box"}]'
        for at, shape in enumerate(self._shapes):
            yield from (f"  {need} -> {at}" for need in shape.needs)

    def _repr_svg_(self) -> str:
        return self.render("svg").decode()

    def render(self, format: str) -> bytes:
        """Return the contents of a file.

        Parameters
        ----------
        format : str
            ``"dot"``, ``"svg"``, or what Graphviz's program ``dot`` can make.

        Raises
        ------
        RuntimeError
            If ``dot`` is needed and not there, or fails.
        """
        if format in ("dot", "gv"):
            return f"{self}\n".encode()
        program = shutil.which("dot")
        if program is not None:
            return _rendered(program, format, str(self))
        if format == "svg":
            return _svg(self._shapes).encode()
        raise RuntimeError(f"{format} takes Graphviz's program dot, which is not installed; svg and dot do without")


def draw(outputs: Sequence[Node], filename: str | os.PathLike[str] | None, format: str | None) -> Drawing:
    """Return the picture of a graph, and write it to a file if one is named."""
    drawing = Drawing(outputs)
    if filename is None:
        if format is not None:
            raise ValueError(f"format={format!r} is that of a file; give a filename, too")
        return drawing
    path = Path(filename)
    if not path.suffix:
        path = path.with_name(f"{path.name}.{format or 'svg'}")
    path.write_bytes(drawing.render(format or path.suffix[1:].lower()))
    return drawing


def _shapes(outputs: Sequence[Node]) -> list[_Shape]:
    places = Plan(outputs).places
    shapes: list[_Shape] = []
    numbers: dict[Any, int] = {}
    for node in ordered(outputs):
        name = _identity(node, places[node])
        if name not in numbers:
            needs = {numbers[_identity(need, places[need])] for need in node.needs}
            numbers[name] = len(shapes)
            shapes.append(_Shape(label_of(node), node.function is not None, tuple(sorted(needs))))
    return shapes


def _identity(node: Node, place: Any) -> Any:
    return place.task if type(place) is _core.Input else node


def _rendered(program: str, format: str, text: str) -> bytes:
    ended = subprocess.run([program, f"-T{format}"], input=text.encode(), capture_output=True)
    if ended.returncode != 0:
        raise RuntimeError(f"Graphviz's program dot has failed: {ended.stderr.decode(errors='replace').strip()}")
    return ended.stdout


# A layout in layers (Sugiyama et al., IEEE Trans. SMC 11, 1981), without nodes for edges that pass a layer.


def _svg(shapes: Sequence[_Shape]) -> str:
    centres, width, height = _layout(shapes)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif" font-size="13">',
        '<g fill="none" stroke="#888">',
        *(_edge(centres[need], centres[at]) for at, shape in enumerate(shapes) for need in shape.needs),
        "</g>",
        '<g fill="white" stroke="black">',
        *map(_outline, shapes, centres),
        "</g>",
        '<g text-anchor="middle">',
        *(
            f'<text x="{x:.1f}" y="{y + 4.5:.1f}">{escape(shape.label)}</text>'
            for shape, (x, y) in zip(shapes, centres, strict=True)
        ),
        "</g>",
        "</svg>",
    ]
    return "\n".join(lines)


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    """Upwards, from the top of one shape to the bottom of another."""
    (x, y), (to_x, to_y) = (start[0], start[1] - _BOX_HEIGHT / 2), (end[0], end[1] + _BOX_HEIGHT / 2)
    middle = (y + to_y) / 2
    return f'<path d="M{x:.1f},{y:.1f}C{x:.1f},{middle:.1f} {to_x:.1f},{middle:.1f} {to_x:.1f},{to_y:.1f}"/>'


def _outline(shape: _Shape, centre: tuple[float, float]) -> str:
    (x, y), half, half_height = centre, _width(shape) / 2, _BOX_HEIGHT / 2
    if shape.is_call:
        return f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{half:.1f}" ry="{half_height:.1f}"/>'
    return f'<rect x="{x - half:.1f}" y="{y - half_height:.1f}" width="{2 * half:.1f}" height="{2 * half_height:.1f}"/>'


def _width(shape: _Shape) -> float:
    return max(2 * _BOX_HEIGHT, _CHARACTER_WIDTH * len(shape.label) + _BOX_HEIGHT)


def _layout(shapes: Sequence[_Shape]) -> tuple[list[tuple[float, float]], float, float]:
    layers = _layers(shapes)
    _untangle(shapes, layers)
    widths = [sum(_width(shapes[at]) + _GAP for at in layer) - _GAP for layer in layers]
    width = max(widths, default=0.0)
    centres = [(0.0, 0.0)] * len(shapes)
    for depth, layer in enumerate(layers):
        x = _MARGIN + (width - widths[depth]) / 2
        y = _MARGIN + _BOX_HEIGHT / 2 + _LAYER_HEIGHT * (len(layers) - 1 - depth)
        for at in layer:
            centres[at] = x + _width(shapes[at]) / 2, y
            x += _width(shapes[at]) + _GAP
    return centres, width + 2 * _MARGIN, _LAYER_HEIGHT * (len(layers) - 1) + _BOX_HEIGHT + 2 * _MARGIN


def _layers(shapes: Sequence[_Shape]) -> list[list[int]]:
    """Each shape as low as what it needs allows."""
    depths: list[int] = []
    layers: list[list[int]] = []
    for at, shape in enumerate(shapes):
        depth = max((depths[need] + 1 for need in shape.needs), default=0)
        depths.append(depth)
        if depth == len(layers):
            layers.append([])
        layers[depth].append(at)
    return layers


def _untangle(shapes: Sequence[_Shape], layers: list[list[int]]) -> None:
    """Order each layer by where the neighbours of its shapes are, from below and from above in turn."""
    dependents: list[list[int]] = [[] for _ in shapes]
    for at, shape in enumerate(shapes):
        for need in shape.needs:
            dependents[need].append(at)
    places = {at: place / len(layer) for layer in layers for place, at in enumerate(layer)}
    for sweep in range(_SWEEPS):
        upwards = sweep % 2 == 0
        for layer in layers if upwards else layers[::-1]:
            wanted = {at: _mean_place(shapes[at].needs if upwards else dependents[at], places, at) for at in layer}
            layer.sort(key=wanted.__getitem__)
            places.update((at, place / len(layer)) for place, at in enumerate(layer))


def _mean_place(neighbours: Sequence[int], places: dict[int, float], at: int) -> float:
    return sum(places[near] for near in neighbours) / len(neighbours) if neighbours else places[at]
