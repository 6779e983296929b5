"""Draw throughput and latency against concurrency: what was measured at two concurrencies or more becomes a curve.

python -m benchmarks engine peers --plots DIRECTORY
python -m benchmarks.plots results.json DIRECTORY      # what `--json` has printed
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.report import Report
from benchmarks.runner import Figure, Line, curve_of

FORMS = ("svg", "png")
Curves = Mapping[str, Sequence[tuple[int, Line]]]


def draw(reports: Iterable[Report], directory: Path) -> list[Path]:
    """Write a picture for each report that has curves, as SVG and as PNG, and return the files.

    Raises: ModuleNotFoundError when Matplotlib is missing (extra: bench).
    """
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "benchmarks"  # the same figures give the same file
    from matplotlib import pyplot

    files: list[Path] = []
    directory.mkdir(parents=True, exist_ok=True)
    for report in reports:
        curves = curves_of(report.lines)
        if not curves:
            continue
        figure, (above, below) = pyplot.subplots(2, figsize=(9, 11), sharex=True, layout="constrained")
        colours = dict(zip(curves, mpl.colormaps["tab20"].colors, strict=False))
        _panel(above, curves, colours, lambda line: line.rate, report.unit)
        _panel(below, curves, colours, lambda line: line.p50, "time of one saga, p50, ms")
        below.set_xlabel("at once")
        above.set_title(report.question)
        figure.legend(
            *above.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=2
        )
        for form in FORMS:
            file = directory / f"{report.question.partition(':')[0]}.{form}"
            figure.savefig(file, metadata={"Date": None} if form == "svg" else None)
            files.append(file)
        pyplot.close(figure)
    return files


def curves_of(lines: Iterable[Line]) -> Curves:
    """Return what was measured at several concurrencies: for each its lines, the lowest concurrency first."""
    found: dict[str, list[tuple[int, Line]]] = {}
    for line in lines:
        name, at_once = curve_of(line.name)
        if at_once:
            found.setdefault(name, []).append((at_once, line))
    return {name: points for name, points in found.items() if len(points) > 1}


def _panel(
    axes: Any,
    curves: Curves,
    colours: Mapping[str, object],
    value: Callable[[Line], Figure | None],
    label: str,
) -> None:
    for name, points in curves.items():
        known = [(at_once, figure) for at_once, line in points if (figure := value(line)) is not None]
        if len(known) > 1:
            medians = [figure.median for _, figure in known]
            spread = [
                [figure.median - figure.low for _, figure in known],
                [figure.high - figure.median for _, figure in known],
            ]
            axes.errorbar(
                [at_once for at_once, _ in known],
                medians,
                spread,
                label=name,
                color=colours.get(name),
                marker="o",
                capsize=2,
            )
    axes.set(xscale="log", yscale="log", ylabel=label)
    axes.grid(visible=True, which="both", alpha=0.25)


def main() -> None:
    """Draw what was measured before."""
    results, directory = sys.argv[1:]
    reports = msgspec.json.decode(Path(results).read_bytes(), type=list[Report])
    for file in draw(reports, Path(directory)):
        print(file)


if __name__ == "__main__":
    main()
