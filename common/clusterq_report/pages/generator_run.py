"""Page of a `clusterq-gen train` run: a generator or a bank of images, and its shards."""

import math

from clusterq_common.quantities import count, percent
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.spec import shown_arch
from clusterq_report.charts.bars import Bars, bar_chart
from clusterq_report.charts.lines import small_multiples_of_lines
from clusterq_report.charts.svg import usable
from clusterq_report.html.blocks import Block, Figure, Paragraph
from clusterq_report.html.gallery import stored_images
from clusterq_report.html.page import Level, Remark, Report, Section
from clusterq_report.html.text import class_label
from clusterq_report.pages import loss_terms, provenance
from clusterq_report.pages import network_sections as inside
from clusterq_report.pages.curves import curves, series, shares
from clusterq_report.pages.layers import Layers
from clusterq_report.run_data import Points, RunData, real, section, word

NO_SHARDS = "There are no shards yet; samples/ in the run's folder has grids of images along the way."
MOST_CLASSES = 40
# Number of last steps over which a figure is averaged.
LAST_STEPS = 50
# Below this share of images with the requested class seen by the teacher, the classes were hardly learned.
FEW_AGREE = 0.5
MANY_CLIPPED = 0.1


def generator_report(source: RunData) -> Report:
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
            tiles["Emission: candidates that the teacher names as asked"] = percent(
                100 * manifest.generation.teacher_agreement, 1
            )
    if not bank:
        tiles["In-loop student"] = word(section(config.get("quant")).get("bits"))
        tiles["In-loop student agrees, end of training"] = percent(
            _late(series(source.steps, "student/").get("agreement", [])), 1
        )
    sections = [
        Section("images", "Images", stored_images(source, NO_SHARDS), opened=True),
        Section("learning", "Learning", _bank_losses(source) if bank else _learning(source)),
        Section("features", "Inside the teacher", inside.features(source) if manifest else []),
        Section("emission", "Emission", _emission(source)),
        Section(
            "layers",
            "Layer by layer: costs" + ("" if bank else ", and errors of the in-loop student"),
            inside.quantization(source),
        ),
        Section("again", "Run it again", provenance.rerun_commands(source)),
        Section("settings", "Settings", provenance.settings(source)),
        Section("origins", "Origins", provenance.origins(source)),
    ]
    return Report(
        f"{method} images for {arch}", lead, tiles, _remarks(source, bank=bank), sections, provenance.next_step(source)
    )


def _progress(source: RunData, *, bank: bool) -> dict[str, str]:
    steps, total = source.steps_done, _total_steps(source)
    if bank:
        return {"Batches": f"{steps:,}"}
    return {"Steps": f"{steps:,}" + (f" of {total:,}" if total and steps < total else "")}


def _total_steps(source: RunData) -> int | None:
    train = section(source.config.get("train"))
    epochs, steps = real(train.get("epochs")), real(train.get("steps_per_epoch"))
    return None if epochs is None or steps is None else int(epochs * steps)


def _late(points: Points) -> float | None:
    """Return the mean over the last steps, in percent."""
    values = usable(y for _, y in points[-LAST_STEPS:])
    return 100 * math.fsum(values) / len(values) if values else None


def _learning(source: RunData) -> list[Block]:
    if not source.metrics:
        return [Paragraph("Not one step is on record yet.")]
    train = section(source.config.get("train"))
    warm, steps = real(train.get("warmup_epochs")), real(train.get("steps_per_epoch"))
    notes = [(warm * steps, "warm-up ends")] if warm and steps else []
    losses, student = series(source.steps, "loss/"), series(source.steps, "student/")
    if "kl" in student:
        student["kl"] = loss_terms.from_zero(student["kl"], section(source.config.get("method")))
    agreement = {"student agrees with teacher": student.pop("agreement")} if "agreement" in student else {}
    accuracy = {"teacher names the class asked for, in training": series(source.steps, "teacher/accuracy").get("", [])}
    blocks: list[Block] = [*loss_terms.legend({**losses, **student}, loss_terms.GENERATOR | loss_terms.STUDENT)]
    blocks += curves(
        losses,
        title="Losses of the generator",
        y_label="weighted loss",
        caption="Terms of the generator's loss, weighted as they are summed.",
        notes=notes,
    )
    blocks += shares(
        {**accuracy, **agreement},
        title="Teacher and student",
        notes=notes,
        caption="Share of a training batch's images that the teacher names as the class asked for, and on which teacher and in-loop student name the same class.",
    )
    blocks += curves(
        student,
        title="Losses of the in-loop student",
        y_label="loss",
        caption="What the in-loop student minimises.",
    )
    blocks += curves(
        series(source.steps, "gradient/"),
        title="Gradient norms",
        y_label="gradient norm",
        caption="Norm of each term's gradient at the generator's output: a term far below the others has no say.",
        notes=notes,
    )
    blocks += curves(
        series(source.steps, "centroids/"),
        title="Drift of class centroids",
        y_label="drift",
        caption="How far a step's class statistics lie from the class centroids, root mean square over channels, mean over layers and classes: it should fall, and stay above zero while images vary.",
    )
    blocks += _drift_by_layer(source, [x for x, _ in notes])
    return blocks + curves(
        {"learning rate": series(source.steps, "lr").get("", [])},
        title="Learning rate",
        y_label="learning rate",
        caption="Of the generator.",
    )


def _drift_by_layer(source: RunData, notes: list[float]) -> list[Block]:
    """Return a figure of the centroids' drift by layer; empty for runs without centroids or without this record."""
    layers = series(source.steps, "drift/")
    if not layers:
        return []
    numbered = Layers.of(source)
    layers = {numbered.label(name): points for name, points in layers.items()}
    title = "Drift of class centroids by layer"
    drawn, axes = small_multiples_of_lines(layers, title=title, notes=notes)
    caption = "The same in each semantic layer, in its running stds, so that layers compare; over steps. A layer that stays far above the others is "
    return [Figure(title, drawn, f"{caption}where classes do not settle. {axes}", wide=True)]


def _bank_losses(source: RunData) -> list[Block]:
    losses = series(source.steps, "loss/")
    blocks: list[Block] = [*loss_terms.legend(losses, loss_terms.GENERATOR)]
    for name, last in losses.items():
        first = series(source.steps, "first/").get(name, [])
        both = {f"{name}, first step": first, f"{name}, last step": last}
        blocks += curves(
            both,
            title=f"{name} of each batch",
            x_label="batch",
            y_label="weighted loss",
            caption=f"The term {name} before and after each batch of images was optimised.",
        )
    return blocks


def _emission(source: RunData) -> list[Block]:
    manifest = source.manifest
    if manifest is None or manifest.generation is None:
        return []
    made, counts = manifest.generation, manifest.splits["train"].per_class
    given = manifest.class_names
    names = [class_label(label, given[label] if given else None) for label in range(len(counts))]
    held = manifest.splits["heldout"].per_class if "heldout" in manifest.splits else [0] * len(counts)
    kept = [a + b for a, b in zip(counts, held, strict=True)]
    rejected = [100 * lost / (lost + got) if lost + got else None for lost, got in zip(made.rejected, kept, strict=True)]
    order = (
        sorted(range(len(counts)), key=lambda n: -(rejected[n] or 0.0))[:MOST_CLASSES]
        if len(counts) > MOST_CLASSES
        else range(len(counts))
    )
    drawn = bar_chart(
        [Bars(names[n], [rejected[n]]) for n in order],
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
    caption += f" The {MOST_CLASSES} most rejected classes." if len(counts) > MOST_CLASSES else ""
    return [Figure("Candidates rejected by class", drawn, caption)]


def _remarks(source: RunData, *, bank: bool) -> list[Remark]:
    notes = []
    manifest, total = source.manifest, _total_steps(source)
    steps = source.steps_done
    if manifest is None:
        where = f"{steps:,} of {total:,} steps" if total and not bank else count(steps, "record")
        notes.append(
            Remark(
                "warning",
                f"The run is not finished: {where} are on record, and there is no complete set of shards. {setting_name('resume')} goes on.",
            )
        )
    notes += loss_terms.not_finite(series(source.steps, "loss/"))
    seen = _late(series(source.steps, "teacher/accuracy").get("", []))
    if seen is not None and not bank:
        level: Level = "warning" if seen < 100 * FEW_AGREE else "good"
        notes.append(
            Remark(level, f"At the end of training the teacher names {seen:.1f} % of a batch's images as the class asked for.")
        )
    if manifest is not None:
        counts = manifest.splits["train"].per_class
        empty = [label for label, count in enumerate(counts) if not count]
        if empty:
            notes.append(
                Remark(
                    "warning",
                    f"{count(len(empty), 'class has', 'classes have')} no training image: {', '.join(map(str, empty[:10]))}.",
                )
            )
        elif min(counts) < max(counts):
            notes.append(Remark("plain", f"Classes have {min(counts):,} to {max(counts):,} training images."))
        else:
            notes.append(Remark("good", f"Every class has {count(counts[0], 'training image')}."))
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
