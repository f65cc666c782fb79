"""Page of a `clusterq-gen train` run: a generator or a bank of images, and its shards."""

import math

from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.spec import shown_arch
from clusterq_report.charts.bars import Bars, bar_chart
from clusterq_report.charts.scale import usable
from clusterq_report.charts.series import curves, series, shares
from clusterq_report.charts.small_multiples import small_lines
from clusterq_report.html.gallery import stored_images
from clusterq_report.html.page import Level, Remark, Report, Section, figure, paragraph
from clusterq_report.html.text import percent
from clusterq_report.pages import network_sections as inside
from clusterq_report.pages import provenance
from clusterq_report.run_data import Points, Source, real, section, word

NO_SHARDS = "There are no shards yet; samples/ in the run's folder has grids of images along the way."
MOST_CLASSES = 40
# Number of last steps over which a figure is averaged.
LAST_STEPS = 50
# Below this share of images with the requested class seen by the teacher, the classes were hardly learned.
FEW_AGREE = 0.5
MANY_CLIPPED = 0.1


def generator_report(source: Source) -> Report:
    """Return the page of a generator's run, made from its folder.

    Raises:
        ClusterqError: a file in the folder was not written by a run.
    """
    config, manifest = source.config, source.manifest
    method = word(section(config.get("method")).get("method"), "generator")
    arch = shown_arch(word(section(config.get("teacher")).get("arch"), "a teacher"))
    bank = any(name.startswith("first/") for name in source.steps)
    tiles = {"Teacher": arch, "Method": method, "Seed": provenance.seed(source), **_progress(source, bank=bank)}
    if manifest is None:
        lead = f"{method} for {arch}: not finished, there are no shards yet."
    else:
        held = manifest.splits["heldout"].samples if "heldout" in manifest.splits else 0
        lead = f"{method} made {manifest.splits['train'].samples:,} training and {held:,} held-out images for {arch} without one real image."
        tiles |= {
            "Training images": f"{manifest.splits['train'].samples:,}",
            "Mean confidence": percent(100 * manifest.mean_confidence, 1),
        }
        if manifest.generation is not None:
            tiles["Teacher sees the class asked for"] = percent(100 * manifest.generation.teacher_agreement, 1)
    if not bank:
        tiles["In-loop student"] = word(section(config.get("quant")).get("bits"))
        tiles["It agrees with the teacher"] = percent(_late(series(source.steps, "student/").get("agreement", [])), 1)
    sections = [
        Section("images", "Images", stored_images(source, NO_SHARDS)),
        Section("learning", "Learning", _bank_losses(source) if bank else _learning(source)),
        Section("features", "Inside the teacher", inside.features(source) if manifest else ""),
        Section("emission", "Emission", _emission(source)),
        Section("layers", "The in-loop student, layer by layer", inside.quantization(source)),
        Section("again", "Run it again", provenance.again(source)),
        Section("settings", "Settings", provenance.settings(source)),
        Section("origins", "Origins", provenance.origins(source)),
    ]
    return Report(f"{method} images for {arch}", lead, tiles, _remarks(source, bank=bank), sections)


def _progress(source: Source, *, bank: bool) -> dict[str, str]:
    steps, total = source.steps_done, _total_steps(source)
    if bank:
        return {"Batches": f"{steps:,}"}
    return {"Steps": f"{steps:,}" + (f" of {total:,}" if total and steps < total else "")}


def _total_steps(source: Source) -> int | None:
    train = section(source.config.get("train"))
    epochs, steps = real(train.get("epochs")), real(train.get("steps_per_epoch"))
    return None if epochs is None or steps is None else int(epochs * steps)


def _late(points: Points) -> float | None:
    """Return the mean over the last steps, in percent."""
    values = usable(y for _, y in points[-LAST_STEPS:])
    return 100 * math.fsum(values) / len(values) if values else None


def _learning(source: Source) -> str:
    if not source.metrics:
        return paragraph("Not one step is on record yet.")
    train = section(source.config.get("train"))
    warm, steps = real(train.get("warmup_epochs")), real(train.get("steps_per_epoch"))
    notes = [(warm * steps, "warm-up ends")] if warm and steps else []
    losses, student = series(source.steps, "loss/"), series(source.steps, "student/")
    agreement = {"student agrees with teacher": student.pop("agreement")} if "agreement" in student else {}
    accuracy = {"teacher sees the class asked for": series(source.steps, "teacher/accuracy").get("", [])}
    markup = curves(
        losses,
        title="Losses of the generator",
        x_label="step",
        y_label="weighted loss",
        caption="Terms of the generator's loss, weighted as they are summed.",
        notes=notes,
    )
    markup += shares(
        {**accuracy, **agreement},
        title="Teacher and student",
        x_label="step",
        notes=notes,
        caption="Share of a batch's images in which the teacher sees the class asked for, and on which teacher and in-loop student name the same class.",
    )
    markup += curves(
        student,
        title="Losses of the in-loop student",
        x_label="step",
        y_label="loss",
        caption="What the in-loop student minimises.",
    )
    markup += curves(
        series(source.steps, "gradient/"),
        title="Gradient norms",
        x_label="step",
        y_label="gradient norm",
        caption="Norm of each term's gradient at the generator's output: a term far below the others has no say.",
        notes=notes,
    )
    markup += curves(
        series(source.steps, "centroids/"),
        title="Drift of class centroids",
        x_label="step",
        y_label="drift",
        caption="How far a step's class statistics lie from the class centroids, root mean square over channels, mean over layers and classes: it should fall, and stay above zero while images vary.",
    )
    markup += _drift_by_layer(source, [x for x, _ in notes])
    return markup + curves(
        {"learning rate": series(source.steps, "lr").get("", [])},
        title="Learning rate",
        x_label="step",
        y_label="learning rate",
        caption="Of the generator.",
    )


def _drift_by_layer(source: Source, notes: list[float]) -> str:
    """Return a figure of the centroids' drift by layer; empty for runs without centroids or without this record."""
    layers = series(source.steps, "drift/")
    if not layers:
        return ""
    title = "Drift of class centroids by layer"
    drawn, axes = small_lines(layers, title=title, notes=notes)
    caption = "The same in each semantic layer, in its running stds, so that layers compare; over steps. A layer that stays far above the others is "
    return figure(title, drawn, f"{caption}where classes do not settle. {axes}")


def _bank_losses(source: Source) -> str:
    markup = ""
    for name, last in series(source.steps, "loss/").items():
        first = series(source.steps, "first/").get(name, [])
        both = {f"{name}, first step": first, f"{name}, last step": last}
        markup += curves(
            both,
            title=f"{name} of each batch",
            x_label="batch",
            y_label="weighted loss",
            caption=f"The term {name} before and after each batch of images was optimised.",
        )
    return markup


def _emission(source: Source) -> str:
    manifest = source.manifest
    if manifest is None or manifest.generation is None:
        return ""
    made, counts = manifest.generation, manifest.splits["train"].per_class
    names = manifest.class_names or [str(label) for label in range(len(counts))]
    held = manifest.splits["heldout"].per_class if "heldout" in manifest.splits else [0] * len(counts)
    kept = [a + b for a, b in zip(counts, held, strict=True)]
    rejected = [100 * lost / (lost + got) if lost + got else None for lost, got in zip(made.rejected, kept, strict=True)]
    order = (
        sorted(range(len(counts)), key=lambda n: -(rejected[n] or 0.0))[:MOST_CLASSES]
        if len(counts) > MOST_CLASSES
        else range(len(counts))
    )
    drawn = bar_chart(
        [Bars(str(names[n]), [rejected[n]]) for n in order],
        ["rejected"],
        title="Candidates rejected by class",
        x_label="percent of a class's candidates",
        high=100.0,
        decimals=1,
    )
    steps = section(made.settings.get("refine")).get("refine_steps")
    caption = (
        f"Candidates were optimised for {steps} steps, to have the statistics of the teacher's BatchNorm layers. "
        if steps
        else ""
    )
    caption += (
        f"Of {made.candidates:,} candidates the teacher took the shown share for another class: they are not in the shards. Training images of a "
        f"class: {min(counts):,} to {max(counts):,}. {percent(100 * manifest.pixels.clipped)} of the pixels are black or white in a channel."
    )
    return figure(
        "Candidates rejected by class",
        drawn,
        caption + (f" The {MOST_CLASSES} most rejected classes." if len(counts) > MOST_CLASSES else ""),
    )


def _remarks(source: Source, *, bank: bool) -> list[Remark]:
    notes = []
    manifest, total = source.manifest, _total_steps(source)
    steps = source.steps_done
    if manifest is None:
        where = f"{steps:,} of {total:,} steps" if total and not bank else f"{steps:,} records"
        notes.append(
            Remark(
                "warning",
                f"The run is not finished: {where} are on record, and there is no complete set of shards. {setting_name('resume')} goes on.",
            )
        )
    missing = sum(y is None for points in series(source.steps, "loss/").values() for _, y in points)
    if missing:
        notes.append(
            Remark(
                "warning",
                f"{missing} loss values are not finite: the training went astray; try a smaller {setting_name('lr')}.",
            )
        )
    seen = _late(series(source.steps, "teacher/accuracy").get("", []))
    if seen is not None and not bank:
        level: Level = "warning" if seen < 100 * FEW_AGREE else "good"
        notes.append(
            Remark(level, f"At the end of training the teacher sees the class asked for in {seen:.1f} % of the images.")
        )
    if manifest is not None:
        counts = manifest.splits["train"].per_class
        empty = [label for label, count in enumerate(counts) if not count]
        if empty:
            notes.append(Remark("warning", f"{len(empty)} classes have no training image: {', '.join(map(str, empty[:10]))}."))
        elif min(counts) < max(counts):
            notes.append(Remark("plain", f"Classes have {min(counts):,} to {max(counts):,} training images."))
        else:
            notes.append(Remark("good", f"Every class has {counts[0]:,} training images."))
        if manifest.generation is not None and manifest.generation.keep_misclassified:
            notes.append(Remark("plain", "Images that the teacher takes for another class were kept."))
        if manifest.pixels.clipped > MANY_CLIPPED:
            share = percent(100 * manifest.pixels.clipped, 1)
            notes.append(Remark("plain", f"{share} of the pixel values lie at an end of the range; of photographs few do."))
        if "heldout" not in manifest.splits:
            notes.append(
                Remark("plain", "There are no held-out images, so fine-tuning cannot be watched on images it has not seen.")
            )
        notes.append(
            Remark(
                "plain",
                "How good the shards are shows after fine-tuning, on real images: agreement on synthetic images is no accuracy.",
            )
        )
    return notes
