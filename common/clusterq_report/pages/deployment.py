"""Speed of the file that a student was exported to, from the run's benchmark.json."""

from typing import Any

from clusterq_common.export.targets import RUNTIMES, TARGETS
from clusterq_common.quantities import number, percent, size
from clusterq_report.html.blocks import Block, Folded, Paragraph, Table
from clusterq_report.run_data import RunData, real, reals, rows, section, word

LATENCY_HEADS = ["batch", "ms", "images/s", "float, ms", "float, images/s", "of float's time", "95 % interval"]
KERNEL_HEADS = ["kernel", "arithmetic", "calls", "share of the time"]


def exported_file(source: RunData) -> list[Block]:
    """Return the section: what was measured and on what, the latencies, and the kernels; empty without a benchmark."""
    benchmark = source.benchmark
    if not benchmark:
        return []
    return [Paragraph(facts(benchmark)), Table(LATENCY_HEADS, latency_rows(benchmark), words=0), *_kernels(benchmark)]


def timed_in(target: str, runtime: str = "onnxruntime") -> str:
    """Return where a file was timed, in words. Its target is named where that is another one.

    Args:
        target: as the file says it, with or without remarks behind its name; empty for none.
        runtime: the package that timed it.

    >>> timed_in("openvino (checked with openvino 2026.4.1)"), timed_in("openvino", "openvino")
    ('in ONNX Runtime on the CPU, not in openvino', 'in OpenVINO on the CPU')
    """
    own = {str(name): about.package for name, about in TARGETS.items()}
    words = target.split()
    elsewhere = f", not in {words[0]}" if words and own.get(words[0]) != runtime else ""
    return f"in {RUNTIMES.get(runtime, runtime)} on the CPU{elsewhere}"


def timed(benchmark: dict[str, Any]) -> str:
    """Return where the benchmark of a run timed its file, in words."""
    return timed_in(word(section(benchmark.get("file")).get("target"), ""), runtime_of(benchmark))


def runtime_of(benchmark: dict[str, Any]) -> str:
    """Return the package that timed the file. Benchmarks of earlier versions do not name it; they knew one alone."""
    return word(benchmark.get("runtime"), "onnxruntime")


def facts(benchmark: dict[str, Any]) -> str:
    """Return the file, its size, and where it was timed, in words."""
    about, sizes, kernels = section(benchmark.get("file")), section(benchmark.get("bytes")), _of_file(benchmark)
    stored, floats = real(sizes.get("file")), real(sizes.get("float"))
    words = f"An ONNX file at {word(about.get('bits'))}: {'of unknown size' if stored is None else size(stored)}"
    words += f", {stored / floats:.2f} of the float file's. " if stored is not None and floats else ". "
    if about.get("target"):
        words += f"Made for {word(about.get('target'))}. "
    words += f"{number(real(kernels.get('integer_layers')))} of {number(real(kernels.get('layers')))} convolutions and matrix products "
    words += f"run in integers, in which {percent(100 * (real(kernels.get('integer_share')) or 0.0))} of the time is spent. "
    return words + (
        f"Timed {timed(benchmark)} (version {word(section(benchmark.get('versions')).get(runtime_of(benchmark)))}) with "
        f"{number(real(benchmark.get('threads')))} threads on {word(benchmark.get('processor'))}: medians of {number(real(benchmark.get('turns')))} turns that the two files take; ratios are within a turn."
    )


def latency_rows(benchmark: dict[str, Any]) -> list[list[str]]:
    """Return a row for each batch size, for `LATENCY_HEADS`; empty cells where no float file was measured."""
    cells_by_row = []
    for row in rows(benchmark.get("latency")):
        times, rates = section(row.get("milliseconds")), section(row.get("images_per_second"))
        cells = [number(real(row.get("batch")))]
        for name in ("file", "float"):
            middle, rate = [*reals(times.get(name)), None][0], real(rates.get(name))
            cells += ["" if middle is None else f"{middle:.2f}", "" if rate is None else f"{rate:.0f}"]
        ratio = [value for value in reals(row.get("ratio")) if value is not None]
        cells += [f"{ratio[0]:.2f}", f"{ratio[1]:.2f} to {ratio[2]:.2f}"] if len(ratio) == 3 else ["", ""]
        cells_by_row.append(cells)
    return cells_by_row


def kernel_rows(benchmark: dict[str, Any]) -> list[list[str]]:
    """Return a row for each kind of kernel of the file, for `KERNEL_HEADS`."""
    return [
        [
            word(row.get("operator")),
            "integers" if row.get("integers") is True else "float",
            number(real(row.get("calls"))),
            percent(100 * (real(row.get("share")) or 0.0)),
        ]
        for row in rows(_of_file(benchmark).get("kernels"))
    ]


def _of_file(benchmark: dict[str, Any]) -> dict[str, Any]:
    return section(section(benchmark.get("kernels")).get("file"))


def _kernels(benchmark: dict[str, Any]) -> list[Block]:
    listed = kernel_rows(benchmark)
    return [Folded("Every kernel", [Table(KERNEL_HEADS, listed, words=2)])] if listed else []
