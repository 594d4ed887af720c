"""Drawings as inline SVG: text stays text, and every colour is a variable of the page.

Colours are drawn as marks (`#5e0003`) that are replaced by CSS variables, so that one drawing serves
light and dark.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from draftless.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_IN = 5.0  # 360 pt: at phone width a point is about a pixel
INK, GRID, GROUND = "#010203", "#040506", "#070809"
_RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "draftless",
    "text.parse_math": False,
    "font.size": 11.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
}


def series_color(number: int) -> str:
    """The mark of a method's colour, `--c0`, `--c1`, ... in the page."""
    return f"#5e00{number:02x}"


def stage_color(number: int) -> str:
    """The mark of a stage's colour, `--s0`, `--s1`, ... in the page."""
    return f"#5a00{number:02x}"


def shortened(text: str, limit: int) -> str:
    """Text for a drawing: printable, and cut if it is too long."""
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def inline(draw: Callable[[Axes], None], height: float, label: str, width: float = WIDTH_IN) -> str:
    """Draw one chart; returns an `<svg>` that takes its size and colours from the page."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("charts need matplotlib: pip install 'draftless[bench]'") from error
    settings: Any = {**matplotlib.rcParamsDefault, **_RC}  # whatever the user's own style is
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The reader's browser has glyphs that the fonts used for measuring do not have.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _themed(file.getvalue(), label)


def _themed(text: str, label: str) -> str:
    svg = text[text.index("<svg") :]
    size = re.search(r'viewBox="([^"]*)"', svg)
    head = f'<svg viewBox="{size[1] if size else ""}" '
    head += f'role="img" aria-label="{escape(label)}">' if label else 'aria-hidden="true">'
    # A tenth of a point is enough for coordinates; text keeps its digits.
    body = re.sub(
        r"<[^>]*>",
        lambda tag: re.sub(r"(\.\d)\d+", r"\1", tag[0]),
        svg[svg.index(">") + 1 :],
    )
    svg = head + body
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->|<defs>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"#5e00(..)", lambda found: f"var(--c{int(found[1], 16)})", svg)
    svg = re.sub(r"#5a00(..)", lambda found: f"var(--s{int(found[1], 16)})", svg)
    svg = svg.replace(INK, "var(--ink)").replace(GRID, "var(--grid)").replace(GROUND, "var(--bg)")
    # The page's font; ids of groups that nothing refers to; rotations by nothing.
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def with_own_ids(svg: str, number: int) -> str:
    """The drawing with ids that no other drawing of the page has."""
    svg = re.sub(r'id="(\w+)"', rf'id="d{number}-\1"', svg)
    return re.sub(r"#(m\w+|p\w+)(?=[\")])", rf"#d{number}-\1", svg)
