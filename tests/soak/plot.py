"""A picture of a run: memory, counts and latencies over time."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .samples import Sample, Soak

FORMS = ("svg", "png")


def draw(soak: Soak, name: Path) -> list[Path]:
    """Write the picture, as SVG and as PNG, and return the files.

    Raises: ModuleNotFoundError when Matplotlib is missing (extra: bench).
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, (memory, steady, busy, times) = pyplot.subplots(
        4, figsize=(9, 13), sharex=True, layout="constrained"
    )
    memory.set_title(", ".join(soak.facts.values()))
    memory.plot(*_series(soak.samples, lambda one: one.memory / 1024), label="resident")
    memory.set_ylabel("memory, MB")
    for name_, axes in (
        ("tasks", busy), ("in flight", busy), ("messages", busy), ("stored", busy),
        ("threads", steady), ("files", steady), ("connections", steady), ("channels", steady),
    ):  # fmt: skip
        axes.plot(*_series(soak.samples, lambda one, name=name_: one.counts.get(name)), label=name_)
    busy.set(ylabel="count", yscale="symlog")
    steady.set(ylabel="count", ylim=(0, None))
    for part in ("p50", "p95", "p99"):
        times.plot(
            *_series(soak.samples, lambda one, part=part: one.latency and getattr(one.latency, part)),
            label=part,
        )
    times.set(ylabel="time of one saga, ms", yscale="log", xlabel="minutes")
    for axes in (memory, steady, busy, times):
        axes.legend(fontsize="small", loc="upper left")
        axes.grid(visible=True, alpha=0.25)
    files = [name.with_suffix(f".{form}") for form in FORMS]
    for file in files:
        figure.savefig(file)
    pyplot.close(figure)
    return files


def _series(samples: Iterable[Sample], value: Any) -> tuple[list[float], list[float]]:
    seen = [(one.at / 60, found) for one in samples if (found := value(one)) is not None]
    return [at for at, _ in seen], [found for _, found in seen]
