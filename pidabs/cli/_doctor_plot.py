"""The plot of `pidabs doctor`: how the measured times are distributed, as an SVG by matplotlib."""

from __future__ import annotations

import os
from importlib.util import find_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._doctor_measure import Measured

MISSING = 'a plot needs matplotlib, which is not installed: pip install "pidabs[plot]"'


class Plot:
    """A file that is to hold the plot.  What can be wrong with it is found when it is made, before anybody measures.

    Raises ImportError, OSError.  A file that did not exist and was not drawn is removed at the end.
    """

    def __init__(self, path: str) -> None:
        if find_spec("matplotlib") is None:
            raise ImportError(MISSING)
        self._path = path
        self._new = not os.path.lexists(path)
        self._file = open(path, "ab")  # noqa: SIM115  # not "w": what is there stays, until there is something to draw

    def __enter__(self) -> Plot:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._new:
            os.unlink(self._path)

    def draw(self, measured: list[Measured], host: str) -> None:
        svg = _svg([case for case in measured if case.times], host)
        if self._file.seekable():
            self._file.truncate(0)
        self._file.write(svg)
        self._file.flush()
        self._new = False


def _svg(cases: list[Measured], host: str) -> bytes:
    from io import BytesIO

    # Not pyplot, which looks for a screen.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    output = BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "pidabs", "font.size": 9}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for case in cases:
            share = [(index + 1) / len(case.times) for index in range(len(case.times))]
            label = f"{case.title} (n={len(case.times)}, p50 {case.quantile(0.5):.3g} ms)"
            axes.step([case.times[0], *case.times], [0, *share], where="post", label=label, linewidth=1.2)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("milliseconds until the next holder has the lock")
        axes.set_ylabel("share of all that took no longer")
        axes.set_title(f"How fast a lock is free: {host}")
        axes.grid(True, which="both", linewidth=0.3)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        figure.savefig(output, format="svg", metadata={"Date": None})
    return output.getvalue()
