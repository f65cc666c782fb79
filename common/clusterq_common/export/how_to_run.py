"""A file's own instructions: a program of a few lines that runs it in ONNX Runtime. Free of torch and onnx."""

import math

from clusterq_common.export.description import Description

# What the program reads and writes; a reader replaces both names.
MODEL, PHOTOGRAPH = "model.onnx", "photograph.jpg"
MODES = {1: "L", 3: "RGB"}


def how_to_run(about: Description) -> str:
    """Return a sentence on the file and a Python program that classifies a photograph with it.

    The program decodes, resizes and crops as the evaluation does (`data.preprocess`), and prints the class. It names nothing but
    numbers from the description, so a stranger's description cannot put code into it.
    """
    spec, name = about.input, about.arch.encode("ascii", "replace").decode()
    head = f"clusterq {about.clusterq}: {name} at {about.bits}. {about.preprocessing}"
    if spec.channels not in MODES:
        return head
    kind = "np.uint8" if about.with_preprocessing else "np.float32"
    lines = [
        "import json",
        "import numpy as np, onnxruntime",
        "from PIL import Image",
        f'session = onnxruntime.InferenceSession("{MODEL}")',
        f'image = Image.open("{PHOTOGRAPH}").convert("{MODES[spec.channels]}")',
        *_resized(about),
        f"pixels = np.asarray(image, {kind}).reshape(1, {spec.height}, {spec.width}, {spec.channels})",
        *_input(about),
        'logits = session.run(["logits"], {"image": pixels})[0]',
        'names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])',
        "print(names[logits[0].argmax()] if names else logits[0].argmax())",
    ]
    return "\n".join([head, "", *lines, ""])


def _resized(about: Description) -> list[str]:
    spec, geometry = about.input, about.geometry
    method = f"Image.Resampling.{geometry.interpolation.upper()}"
    if geometry.crop_pct is None:
        return [f"image = image.resize(({spec.width}, {spec.height}), {method})"]
    down, across = (math.ceil(side / geometry.crop_pct - 1e-9) for side in (spec.height, spec.width))
    return [
        f"down, across, (width, height) = {down}, {across}, image.size",
        "fits = down * width <= across * height",
        "sides = (across, across * height // width) if fits else (down * width // height, down)",
        f"left, top = round((sides[0] - {spec.width}) / 2), round((sides[1] - {spec.height}) / 2)",
        f"image = image.resize(sides, {method}).crop((left, top, left + {spec.width}, top + {spec.height}))",
    ]


def _input(about: Description) -> list[str]:
    lines = []
    if not about.with_preprocessing:
        mean, std = list(about.input.mean), list(about.input.std)
        lines.append(f"pixels = ((pixels / 255 - np.float32({mean})) / np.float32({std})).transpose(0, 3, 1, 2)")
    if about.fixed_batch is not None and about.fixed_batch > 1:
        lines.append(f"pixels = pixels.repeat({about.fixed_batch}, axis=0)  # the file takes so many at once")
    return lines
