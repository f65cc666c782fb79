"""Ceilings of this machine, for comparison with a step's time.

    python tools/bench/machine.py

Arithmetic: square matrix products, and a 3x3 convolution in channels_last order, float32 and bf16. Memory: reading and writing arrays far
larger than the caches, and ones that fit into them. Best of several repeats: a ceiling, not an expectation.
"""

import time
from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
import typer

from clusterq_cli.main import run_guarded

SIDE = 2048
LARGE, SMALL = 64 * 2**20, 2**18  # values: 256 MiB, 1 MiB


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Turns; the best counts.")] = 7,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Print the ceilings."""

    def run() -> None:
        torch.set_num_threads(threads or torch.get_num_threads())
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        print(f"{device}, {torch.get_num_threads()} threads, best of {repeats}")
        for dtype in (torch.float32, torch.bfloat16):
            a = torch.randn(SIDE, SIDE, device=device).to(dtype)
            print(f"matrix product, {dtype}: {2 * SIDE**3 / _best(lambda a=a: a @ a, repeats) / 1e9:.0f} GFLOP/s")
            for channels, side, batch in ((16, 32, 256), (64, 8, 256), (256, 14, 16)):
                x = torch.randn(batch, channels, side, side, device=device).to(dtype, memory_format=torch.channels_last)
                w = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
                operations = 2 * batch * channels**2 * 9 * side**2
                seconds = _best(lambda x=x, w=w: F.conv2d(x, w, padding=1), repeats)
                print(
                    f"3x3 convolution, {channels} channels at {side}x{side}, {dtype}: {operations / seconds / 1e9:.0f} GFLOP/s"
                )
        for size in (LARGE, SMALL):
            x, y = torch.randn(size, device=device), torch.empty(size, device=device)
            seconds = _best(lambda x=x, y=y: torch.mul(x, 2, out=y), repeats)
            print(f"read and write, arrays of {4 * size >> 20} MiB: {8 * size / seconds / 1e9:.0f} GB/s")

    run_guarded(run, debug=False)


def _best(action: Callable[[], object], repeats: int) -> float:
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + repeats):
            begin = time.perf_counter()
            action()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
    return min(seconds)


if __name__ == "__main__":
    typer.run(main)
