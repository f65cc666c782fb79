"""Measure the speed of writing, reading, indexing and verifying shards, against the least such work costs. Ratios from one run.

    python tools/bench/shards.py speed --size 224 --images 256
    python tools/bench/shards.py encodings --shards out/
    python tools/bench/shards.py memory --size 64
    python tools/bench/shards.py million --folder /tmp/million --images 1000000

speed: writing (PNG, digests, tar, SHA-256) against PNG encoding alone, reading (tar, PNG, checks) against plain tar and PNG
decoding, in interleaved repeats, medians. encodings: bytes and seconds of lossless encodings of a set's images. memory: the
most memory that writing takes, for a few and for many samples. million: a set of tiny images, really written, indexed,
verified and opened again.
"""

import argparse
import io
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from clusterq_common.images import png
from clusterq_common.images.png import Array
from clusterq_common.shards.digest import encode_samples
from clusterq_common.shards.manifest import Generation, Manifest, Pixels, TeacherFacts, format_for, set_digest
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.sample import Sample
from clusterq_common.shards.verify import verify_set
from clusterq_common.shards.write import Written, samples_per_shard, shard_name, write_manifest, write_shard
from clusterq_common.teacher.spec import InputSpec

CLASSES = 10


def main() -> None:
    """Run one of the benchmarks and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "encodings", "memory", "million", "memory-child"))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.what == "speed":
        speed(options.size, options.images, options.repeats)
    elif options.what == "encodings":
        encodings(options.shards, options.images)
    elif options.what == "memory":
        memory(options.size)
    elif options.what == "memory-child":
        with tempfile.TemporaryDirectory() as folder:
            write_set(Path(folder), options.size, options.images)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    else:
        million(options.folder or Path(tempfile.mkdtemp()), options.images)


def pictures(size: int, count: int, seed: int = 0) -> list[Array]:
    """Return colour images about as hard to compress as a generator's: smooth shapes with some noise."""
    random = np.random.default_rng(seed)
    coarse = random.uniform(0, 255, (count, 8, 8, 3)).astype(np.uint8)
    made = []
    for one in coarse:
        smooth = np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + random.normal(0, 6, (size, size, 3))
        made.append(noisy.clip(0, 255).astype(np.uint8))
    return made


def samples(images: list[Array]) -> Iterator[Sample]:
    """Yield samples encoded one by one, as emission does."""
    logits = np.zeros(CLASSES, np.float16)
    for number, image in enumerate(images):
        label = number % CLASSES
        [(data, content)] = encode_samples([label], [image])
        yield Sample(data, content, label, label, 0, number // CLASSES, label, 0.9, logits)


def write_set(folder: Path, size: int, count: int) -> None:
    """Write a whole set, with images drawn shard by shard."""
    spec = InputSpec(size=size, channels=3, num_classes=CLASSES, mean=(0.5,) * 3, std=(0.5,) * 3)
    per_shard = samples_per_shard(spec)
    written = Written.nothing(CLASSES)

    def drawn(start: int, stop: int) -> Iterator[Sample]:
        for first in range(start, stop, 64):
            yield from samples(pictures(size, min(64, stop - first), seed=first))

    for number, start in enumerate(range(0, count, per_shard)):
        made = drawn(start, min(start + per_shard, count))
        written.add(write_shard(folder, shard_name("train", number), made, start_key=start, num_classes=CLASSES))
    splits = {"train": written.split()}
    digest = "sha256:" + "0" * 64
    facts = TeacherFacts(arch="none", is_factory=False, digest=digest, parameters=0, batchnorm_layers=0, spec=spec)
    generation = Generation(
        method="none", settings={}, source=digest, seed=0, rounds=[{"train": count // CLASSES}], candidates=count,
        rejected=[0] * CLASSES, teacher_agreement=1.0, keep_misclassified=False, chunk=64, samples_per_shard=per_shard,
        device="cpu", threads=1,
    )  # fmt: skip
    manifest = Manifest(
        format=format_for(spec),
        digest=set_digest(splits), created_by="benchmark", commit=None, teacher=facts, pixels=Pixels(clipped=0), has_logits=True,
        mean_confidence=0.9, generation=generation, splits=splits, versions={},
    )  # fmt: skip
    write_manifest(folder, manifest)


def timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def speed(size: int, count: int, repeats: int) -> None:
    """Time writing and reading against the bare codec."""
    images = pictures(size, count)
    labels = [number % CLASSES for number in range(count)]
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        folder = Path(name)
        chunks = [(labels[at : at + 64], images[at : at + 64]) for at in range(0, count, 64)]
        list(pool.map(encode_samples, *zip(*chunks[:2], strict=True)))  # started, imported
        write_set(folder / "set", size, count)
        reader = ShardSet.open(folder / "set").split("train")
        tars = sorted((folder / "set").glob("*.tar"))

        def plain_read() -> None:
            for path in tars:
                with tarfile.open(path) as tar:
                    for member in tar:
                        data = tar.extractfile(member).read()
                        if member.name.endswith(".png"):
                            np.asarray(Image.open(io.BytesIO(data)))

        def pooled() -> Iterator[Sample]:
            for (own, _), encoded in zip(chunks, pool.map(encode_samples, *zip(*chunks, strict=True)), strict=True):
                for label, (data, content) in zip(own, encoded, strict=True):
                    yield Sample(data, content, label, label, 0, 0, label, 0.9, np.zeros(CLASSES, np.float16))

        def write(made: Iterator[Sample]) -> None:
            write_shard(folder, "synth-train-000000.tar", made, start_key=0, num_classes=CLASSES)

        seconds_by_action: dict[str, list[float]] = {}
        for _ in range(repeats):
            seconds_by_action.setdefault("encode", []).append(timed(lambda: [png.encode(image) for image in images]))
            seconds_by_action.setdefault("write", []).append(timed(lambda: write(samples(images))))
            seconds_by_action.setdefault("encode in two processes", []).append(
                timed(lambda: list(pool.map(png.encode, images, chunksize=64)))
            )
            seconds_by_action.setdefault("write with two", []).append(timed(lambda: write(pooled())))
            seconds_by_action.setdefault("plain read", []).append(timed(plain_read))
            seconds_by_action.setdefault("read", []).append(
                timed(lambda: [reader.read(number) for number in range(len(reader))])
            )
    middle = {key: median(values) for key, values in seconds_by_action.items()}
    for key, seconds in middle.items():
        print(f"{key:<26} {count / seconds:9.0f} images/s")
    print(f"write / encode: {middle['encode'] / middle['write']:.2f}")
    print(f"write with two / encode in two: {middle['encode in two processes'] / middle['write with two']:.2f}")
    print(f"two processes against one, writing: {middle['write'] / middle['write with two']:.2f}")
    print(f"read / plain read: {middle['plain read'] / middle['read']:.2f}")


def encodings(path: Path, count: int) -> None:
    """Compare lossless encodings of a real set's images."""
    reader = ShardSet.open(path).split("train")
    images = [reader.read(number)[0] for number in range(min(count, len(reader)))]
    raw = sum(image.nbytes for image in images)
    print(f"{len(images)} images of {images[0].shape}, {raw / len(images):.0f} bytes raw each")
    kinds: dict[str, tuple[str, dict[str, object]]] = {
        f"PNG, level {level}": ("PNG", {"compress_level": level}) for level in (1, 6, 9)
    }
    kinds |= {
        f"WebP lossless, method {n}": ("WEBP", {"lossless": True, "exact": True, "method": n, "quality": 25 * n})
        for n in (0, 2, 4)
    }
    for name, (kind, settings) in kinds.items():
        encoded = []
        for image in images:
            buffer = io.BytesIO()
            Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, kind, **settings)
            encoded.append(buffer)
        again = []

        def encode(kind: str = kind, settings: dict[str, object] = settings) -> None:
            for image in images:
                Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(io.BytesIO(), kind, **settings)

        def decode(encoded: list[io.BytesIO] = encoded, again: list[Array] = again) -> None:
            again[:] = [np.asarray(Image.open(buffer)) for buffer in encoded]

        to, back = timed(encode), timed(decode)
        equal = all(
            np.array_equal(
                one.squeeze(), two.squeeze()[..., :3] if one.shape[2] == 3 else two.squeeze()[..., 0] if two.ndim == 3 else two
            )
            for one, two in zip(images, again, strict=True)
        )
        size = sum(len(buffer.getvalue()) for buffer in encoded)
        print(
            f"{name:<26} {size / raw:6.3f} of raw, encode {1e6 * to / len(images):8.0f} us, decode {1e6 * back / len(images):7.0f} us, {'lossless' if equal else 'NOT lossless'}"
        )


def memory(size: int) -> None:
    """Print the peak resident memory of a process that writes few or many samples."""
    for count in (256, 1024, 4096):
        command = [sys.executable, __file__, "memory-child", "--size", str(size), "--images", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{count} images of {size} x {size}: {float(done.stdout):.0f} MiB at most")


def million(folder: Path, count: int) -> None:
    """Time work on a set of very many tiny images."""
    print(
        f"write:  {timed(lambda: write_set(folder, 8, count)):8.1f} s, {sum(p.stat().st_size for p in folder.glob('*.tar')) / 1e9:.2f} GB"
    )
    steps: dict[str, Callable[[], object]] = {
        "open, hashes verified": lambda: ShardSet.open(folder),
        "open again": lambda: ShardSet.open(folder),
        "index": lambda: ShardSet.open(folder).split("train"),
        "index again": lambda: ShardSet.open(folder).split("train"),
        "verify every sample": lambda: print(f"        {len(verify_set(folder, ShardSet.open(folder).manifest))} problems"),
    }
    for name, action in steps.items():
        print(f"{name + ':':<24} {timed(action):8.3f} s", flush=True)
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
