"""An evaluation's result, in result.json and in words."""

from typing import Any

from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.preprocess import describe_preprocessing
from clusterq_finetune.data.real import Remark, ValidationImages
from clusterq_finetune.evaluation.evaluate import EvaluationResult

NAMES_SHOWN = 10
# What an evaluation says of the images, not of a model.
ABOUT_IMAGES = {"modes", "remarks"}
# The modes that a classifier's images have as a rule; others are worth a line.
USUAL_MODES = [["RGB"], ["L"]]


def add_evaluation(
    result: dict[str, Any], results: dict[str, EvaluationResult], images: ValidationImages, spec: InputSpec
) -> None:
    """Put what was measured into the sections of the models it is about, and on what and how beside them."""
    for name, evaluation in results.items():
        result[name] |= evaluation.model_dump(exclude=ABOUT_IMAGES)
    # Every model saw the same images.
    first = next(iter(results.values()))
    about = {"layout": images.layout, "images": first.images + len(first.unreadable)}
    result["evaluated_on"] = about | first.model_dump(include=ABOUT_IMAGES)
    result["preprocessing"] = describe_preprocessing(spec, images.geometry)


def summary_lines(result: dict[str, Any]) -> list[str]:
    """The accuracies of a result as lines for a person, the images that could not be read, and what else is to be known of them."""
    measured = {name: part for name, part in result.items() if isinstance(part, dict) and "top1" in part}
    lines = [
        f"{name:>10}: top-1 {part['top1']:.2f} % ({part['top1_interval'][0]:.2f} to {part['top1_interval'][1]:.2f}), "
        f"top-5 {part['top5']:.2f} % on {part['images']} images"
        + (f", balanced {part['balanced_accuracy']:.2f} %" if "balanced_accuracy" in part else "")
        + ("" if part["agreement"] is None else f", agrees with the teacher on {part['agreement']:.2f} %")
        + _apart(part)
        + f" ({part['images_per_second']:.0f} images/s)"
        for name, part in measured.items()
    ]
    lines += [_binary(name, part["binary"]) for name, part in measured.items() if part.get("binary")]
    unreadable = next(iter(measured.values()))["unreadable"] if measured else []
    if unreadable:
        shown = ", ".join(unreadable[:NAMES_SHOWN]) + (" ..." if len(unreadable) > NAMES_SHOWN else "")
        lines.append(f"{len(unreadable)} unreadable image{'s' if len(unreadable) > 1 else ''}: {shown}")
    about = result.get("evaluated_on", {})
    modes = about.get("modes", {})
    if modes and list(modes) not in USUAL_MODES:
        lines.append("pixel modes: " + ", ".join(f"{mode} {count}" for mode, count in modes.items()))
    return lines + [Remark.model_validate(remark).line() for remark in about.get("remarks", [])]


def top1_so_far(top1: dict[str, float]) -> str:
    """The progress line's numbers: each model's top-1 on the images seen so far."""
    return "top-1 " + ", ".join(f"{name} {value:.2f} %" for name, value in top1.items()) if top1 else ""


def _binary(name: str, scores: dict[str, Any]) -> str:
    """The figures of a classifier with two classes."""

    def figure(what: str, decimals: int, unit: str) -> str:
        value, ends = scores[what], scores[f"{what}_interval"]
        if value is None:
            return "unknown"
        interval = f" ({ends[0]:.{decimals}f} to {ends[1]:.{decimals}f})" if ends is not None else ""
        return f"{value:.{decimals}f}{unit}{interval}"

    return (
        f"{name:>10}: AUROC {figure('auroc', 4, '')}, sensitivity {figure('sensitivity', 2, ' %')}, "
        f"specificity {figure('specificity', 2, ' %')}; class 1 is the positive one"
    )


def _apart(part: dict[str, Any]) -> str:
    """Describe the distance of integer arithmetic from the student, where it was measured."""
    if "agreement_with_student" not in part:
        return ""
    agreement, difference = part["agreement_with_student"], part["largest_logit_difference"]
    return f", agrees with the student on {agreement:.2f} %, logits at most {difference:.2g} apart"
