"""How every figure looks: paper white, colour-blind-safe, no pyplot, the same bytes for the same data."""

import base64
import io
import re
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which stays distinct in the common kinds of colour blindness.
BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
INK, GREY, FAINT = "#1f2933", "#6b7785", "#d9dee4"

DOTS_PER_INCH = 180  # of what is drawn as pixels inside the vector figures

_STYLE: Any = {  # matplotlib wants a type of its own for the keys, which its older versions lack
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": "#52606d",
    "ytick.color": "#52606d",
    "text.color": INK,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "tbnn",
}

_P = ParamSpec("_P")


def styled(draw: "Callable[_P, Figure]") -> "Callable[_P, Figure]":
    """Run a function that draws a figure under the report's style, whatever the user's own settings."""

    @wraps(draw)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> "Figure":
        import matplotlib as mpl  # slow to import

        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches, with constrained layout and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.05))
    FigureCanvasAgg(figure)
    return figure


def svg_uri(figure: "Figure") -> str:
    """The figure as an SVG inside a data URI. As an image of its own its ids and styles cannot meet another's."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", dpi=DOTS_PER_INCH, metadata=nothing)
    drawing = re.sub(r"\A.*?(?=<svg)", "", buffer.getvalue(), count=1, flags=re.DOTALL)
    return "data:image/svg+xml;base64," + base64.b64encode(_counted_clips(drawing).encode()).decode()


def _counted_clips(drawing: str) -> str:
    """Clip paths by number: matplotlib names them after their exact coordinates, whose last digit the layout does not fix."""
    names: dict[str, str] = {}
    return re.sub(
        r'(?<=[#"])p[0-9a-f]{10}(?=[)"])', lambda found: names.setdefault(found[0], f"clip{len(names)}"), drawing
    )


def png(figure: "Figure", dots: int) -> bytes:
    """The figure as a PNG of so many dots an inch, in a palette of 128 colours, without date or program."""
    import matplotlib as mpl
    from PIL import Image

    drawn, packed = io.BytesIO(), io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(drawn, format="png", dpi=dots, facecolor="white")
    with Image.open(drawn) as image:
        flat = image.convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    flat.save(packed, "png", optimize=True)
    return packed.getvalue()


def label(name: str, longest: int = 24) -> str:
    """A name from the user's data as text in a figure: shortened, and never read as a formula."""
    name = " ".join(name.split())
    name = name if len(name) <= longest else name[: longest - 1] + "…"
    return name.replace("$", r"\$")


def percent_axis(axis: "Axes") -> None:
    """Show fractions on the y axis in percent."""
    from matplotlib.ticker import FuncFormatter

    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))


def short_axis(axis: "Axes", which: str = "x") -> None:
    """Show large numbers on a logarithmic axis as 10, 1 k, 1 M."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    chosen = axis.xaxis if which == "x" else axis.yaxis
    low, high = chosen.get_view_interval()
    # Less than two decades would show a single power of ten.
    chosen.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,), numticks=7))
    chosen.set_minor_locator(NullLocator())
    chosen.set_major_formatter(FuncFormatter(_power))


def _power(value: float, _: object) -> str:
    for power, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= power:
            return f"{value / power:g}{prefix}"
    return f"{value:g}"


def whole_ticks(axis: "Axes") -> None:
    """Whole numbers on the x axis."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
