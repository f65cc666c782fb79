"""Page of a `clusterq-finetune` run: the low-bit student, its training and its accuracy."""

from collections.abc import Mapping

from clusterq_common.quantities import count, number, percent, size
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.spec import shown_arch
from clusterq_report.charts.svg import usable
from clusterq_report.html.blocks import Block, Paragraph
from clusterq_report.html.gallery import stored_images
from clusterq_report.html.page import Level, Remark, Report, Section
from clusterq_report.pages import accuracy, chosen_bits, deployment, loss_terms, provenance
from clusterq_report.pages import network_sections as inside
from clusterq_report.pages.curves import curves, series, shares
from clusterq_report.pages.layers import Layers
from clusterq_report.run_data import Points, RunData, pair, real, reals, rows, section, word

# Thresholds for warnings, in points: half-width of an interval, loss of a student or a class, gap between synthetic and real
# images, and decrease of the agreement.
WIDE_INTERVAL, LARGE_LOSS, LARGE_GAP, FELL_BACK = 2.0, 10.0, 5.0, 1.0
MUCH_BEYOND = 0.05


def finetuning_report(source: RunData) -> Report:
    """Return the page of a fine-tuning, made from its folder.

    Raises:
        ClusterqError: a file in the folder was not written by a run.
    """
    arch = shown_arch(word(section(source.config.get("teacher")).get("arch"), "a teacher"))
    bits = chosen_bits.in_words(source)
    gone = f"The shards that it learned from do not lie in {source.shards} (any more), or are others now."
    sections = [
        Section("accuracy", "Accuracy on real images", accuracy.overall(source), opened=True),
        Section("classes", "Classes", [*accuracy.by_class(source), *accuracy.confusion(source)]),
        Section("learning", "Learning", _learning(source)),
        Section("speed", "The exported file", deployment.exported_file(source)),
        Section("bits", "Choice of bits", chosen_bits.choice_of_bits(source)),
        Section("reconstruction", "Reconstruction", inside.reconstruction(source)),
        Section("layers", "Layer by layer: costs and errors", inside.quantization(source)),
        Section("images", "Images it learned from", stored_images(source, gone)),
        Section("features", "Those images inside the teacher", inside.features(source)),
        Section("again", "Run it again", provenance.rerun_commands(source)),
        Section("settings", "Settings", provenance.settings(source)),
        Section("origins", "Origins", provenance.origins(source)),
    ]
    headline = [*accuracy.drop(source), *provenance.next_step(source)]
    return Report(f"{arch} at {bits}", _lead(source, arch, bits), _tiles(source), _remarks(source), sections, headline)


def _apart(source: RunData) -> str:
    """Return the difference from the teacher with its interval in words, such as `, 0.50 points below it`; empty if not known."""
    apart = accuracy.below_teacher(source)
    if apart is None:
        return ""

    def side(value: float) -> str:
        return f"{abs(value):.2f} {'below' if value >= 0 else 'above'}"

    return f": {abs(apart.mean):.2f} points {'below' if apart.mean >= 0 else 'above'} it (95 % interval: {side(apart.low)} to {side(apart.high)})"


def _tiles(source: RunData) -> dict[str, str]:
    result, recipe = source.result, section(source.config.get("recipe"))
    tiles = chosen_bits.tile(source)
    before, after = accuracy.top1(source, "teacher"), accuracy.top1(source, "student")
    if after is not None:
        apart = accuracy.below_teacher(source)
        below = number(None if before is None else before - after)
        if apart is not None:
            below = f"{apart.mean:.2f} ({apart.low:.2f} to {apart.high:.2f})"
        tiles["Below the float teacher, points"] = below
        tiles["Student's top-1"] = accuracy.with_interval(source, "student")
        tiles["Teacher's top-1"] = accuracy.with_interval(source, "teacher")
        tiles["Real images"] = number(real(section(result.get("student")).get("images")))
    stored = Layers.of(source).stored_bytes()
    if stored is not None:
        tiles["Weights of the layers"] = f"{size(stored[0])}, in float32 {size(stored[1])}"
    tiles |= _exported(source)
    tiles["Training images"] = number(real(section(result.get("shards")).get("training_images")))
    agreement = real(section(result.get("student")).get("heldout/agreement"))
    if agreement is not None:
        tiles["Agrees on held-out images, last epoch"] = percent(100 * agreement)
    tiles["Recipe"] = f"{word(recipe.get('recipe'))}, {count(real(recipe.get('epochs')), 'epoch')}"
    return tiles | {"Seed": provenance.seed(source)}


def _exported(source: RunData) -> dict[str, str]:
    """Return size and speed of the exported file, where a benchmark measured them: the time of the first batch size."""
    found, tiles = source.benchmark, {}
    stored = real(section(found.get("bytes")).get("file"))
    if stored is not None:
        tiles["Exported file"] = size(stored)
    row = next(iter(rows(found.get("latency"))), {})
    times, ratio = reals(section(row.get("milliseconds")).get("file")), reals(row.get("ratio"))
    if times and times[0] is not None:
        beside = f", {ratio[0]:.2f} of float's" if ratio and ratio[0] is not None else ""
        tiles[f"Time of a batch of {number(real(row.get('batch')))}"] = f"{times[0]:.2f} ms{beside}, {deployment.timed(found)}"
    return tiles


def _lead(source: RunData, arch: str, bits: str) -> str:
    before, after = accuracy.top1(source, "teacher"), accuracy.top1(source, "student")
    shards = section(source.result.get("shards"))
    if not source.result:
        return f"{arch} at {bits}: not finished, {count(source.steps_done, 'step is', 'steps are')} on record."
    images = count(real(shards.get("training_images")), "synthetic image")
    learned = f"from {images} ({word(shards.get('method'), 'unknown method')})"
    if after is None or before is None:
        return f"{arch} was brought to {bits} {learned}; no real image was looked at, so its accuracy is unknown."
    images = count(real(section(source.result.get("student")).get("images")), "real image")
    return f"{arch} was brought to {bits} {learned}: top-1 {after:.2f} % where the teacher has {before:.2f} %, on {images}{_apart(source)}."


def _learning(source: RunData) -> list[Block]:
    if not source.metrics:
        return [Paragraph("No step is on record: nothing was trained, or not yet.")]
    losses = _losses(source)
    blocks: list[Block] = [
        *curves(
            losses,
            title="Losses",
            y_label="weighted loss",
            caption="Terms of the loss, weighted as they are summed.",
        )
    ]
    training = _recorded(source.steps, "student/agreement", "student/accuracy", "teacher/accuracy")
    blocks += shares(
        training,
        title="Teacher and student on training images",
        caption=f"Shares of a batch's synthetic images: {', '.join(training)}.",
    )
    unseen = _recorded(source.epochs, "heldout/agreement", "heldout/student_accuracy", "heldout/teacher_accuracy")
    blocks += shares(
        unseen,
        title="Teacher and student on held-out images",
        x_label="epoch",
        caption=f"Shares of the synthetic images that training never saw, after each epoch: {', '.join(unseen)}. Falling while the losses fall too: "
        "overfitting. Real images are looked at once, when training is over.",
    )
    blocks += curves(
        {"kl": _heldout_kl(source)},
        title="KL on held-out images",
        x_label="epoch",
        y_label="T² KL",
        caption="T² KL(teacher || student) on the held-out images.",
    )
    blocks += curves(
        {"learning rate": series(source.steps, "lr").get("", [])},
        title="Learning rate",
        y_label="learning rate",
        caption="Of the student's weights.",
    )
    return [*blocks, *loss_terms.legend(losses, loss_terms.STUDENT)]


def _losses(source: RunData) -> dict[str, Points]:
    losses = series(source.steps, "loss/")
    return {
        name: loss_terms.from_zero(points, section(source.config.get("recipe"))) if name == "kl" else points
        for name, points in losses.items()
    }


def _heldout_kl(source: RunData) -> Points:
    return loss_terms.from_zero(source.epochs.get("heldout/kl", []), section(source.config.get("recipe")), weighted=False)


def _recorded(columns: Mapping[str, Points], *keys: str) -> dict[str, Points]:
    """Return the recorded series of agreement, student accuracy and teacher accuracy; older runs may lack some."""
    names = ("student agrees with teacher", "student names the stored label", "teacher names the stored label")
    return {name: columns[key] for name, key in zip(names, keys, strict=True) if key in columns}


def _remarks(source: RunData) -> list[Remark]:
    remarks = []
    if not source.result:
        remarks.append(
            Remark(
                "warning",
                f"The run is not finished: {count(source.steps_done, 'step is', 'steps are')} on record. {setting_name('resume')} goes on.",
            )
        )
    elif accuracy.top1(source, "student") is None:
        remarks.append(
            Remark(
                "warning",
                f"No real image was looked at: how good the student is, is unknown. `clusterq-finetune evaluate {setting_name('val')}` tells.",
            )
        )
    remarks += loss_terms.not_finite(series(source.steps, "loss/"))
    remarks += loss_terms.negative(_losses(source).get("kl", []), _heldout_kl(source))
    remarks += [*_about_accuracy(source), *_about_synthetic(source), *_about_layers(source)]
    if accuracy.top1(source, "student") is not None:
        remarks.append(
            Remark("plain", "One run of one seed: intervals are over images, another seed would give another figure.")
        )
    epoch = real(section(source.result.get("student")).get("epoch"))
    if epoch is not None and epoch < 0 and source.steps_done:
        sentence = f"On held-out images training made the student worse: the one that it began with was kept. A smaller {setting_name('lr')} may do better."
        remarks.append(Remark("warning", sentence))
    elif epoch is not None and section(source.config.get("recipe")).get("select") == "heldout":
        remarks.append(Remark("plain", f"Epoch {epoch:.0f} was chosen on held-out synthetic images; no real image had a say."))
    return remarks


def _about_accuracy(source: RunData) -> list[Remark]:
    student = section(source.result.get("student"))
    ends, apart = pair(student.get("top1_interval")), accuracy.below_teacher(source)
    remarks = []
    if apart is not None and apart.low <= 0 <= apart.high:
        remarks.append(
            Remark("good", f"On these images no difference from the teacher is shown: {apart} points, 95 % interval.")
        )
    elif apart is not None:
        side = "below" if apart.mean > 0 else "above"
        near, far = sorted((abs(apart.low), abs(apart.high)))
        sentence = (
            f"The student lies {abs(apart.mean):.2f} points {side} its teacher ({near:.2f} to {far:.2f}), on the same images."
        )
        remarks.append(Remark("warning" if apart.mean > LARGE_LOSS else "plain", sentence))
    if ends is not None:
        half = (ends[1] - ends[0]) / 2
        level: Level = "warning" if half > WIDE_INTERVAL else "good"
        remarks.append(
            Remark(
                level,
                f"{count(real(student.get('images')), 'real image settles', 'real images settle')} top-1 to about ± {half:.1f} points.",
            )
        )
    lost = accuracy.losses(source)
    if lost and lost[0].points > 0:
        worst = lost[0]
        name = accuracy.class_names(source, len(reals(student.get("per_class"))))[worst.label]
        sentence = f"Class {name} lost most: {worst.teacher:.1f} to {worst.student:.1f} %"
        sentence += f" of its {count(worst.images, 'image')}." if worst.images else "."
        remarks.append(Remark("warning" if worst.clear and worst.points > LARGE_LOSS else "plain", sentence))
    unreadable = student.get("unreadable")
    if isinstance(unreadable, list) and unreadable:
        remarks.append(
            Remark("warning", f"{count(len(unreadable), 'real image')} could not be read and left out of the figures.")
        )
    return remarks


def _about_synthetic(source: RunData) -> list[Remark]:
    student, remarks = section(source.result.get("student")), []
    synthetic, on_real = real(student.get("heldout/agreement")), real(student.get("agreement"))
    if synthetic is not None and on_real is not None:
        gap = 100 * synthetic - on_real
        level: Level = "warning" if gap > LARGE_GAP else "plain"
        sentence = f"Student and teacher agree on {100 * synthetic:.1f} % of the held-out synthetic images and on {on_real:.1f} % of the real ones"
        remarks.append(
            Remark(level, sentence + (": the synthetic ones are easier, their figures flatter." if gap > LARGE_GAP else "."))
        )
    points = series(source.epochs, "heldout/").get("agreement", [])
    values = usable(y for _, y in points)
    if values and 100 * (max(values) - values[-1]) > FELL_BACK:
        best = max((y, x) for x, y in points if y is not None)[1]
        remarks.append(
            Remark(
                "warning",
                f"Held-out agreement was {100 * max(values):.1f} % after epoch {best:.0f} and fell to {100 * values[-1]:.1f} %.",
            )
        )
    return remarks


def _about_layers(source: RunData) -> list[Remark]:
    layers, remarks = Layers.of(source), []
    beyond = [(real(row.get("clipped")) or 0.0, word(row.get("site"))) for row in layers.rows("activations")]
    if beyond and max(beyond)[0] > MUCH_BEYOND:
        share, site = max(beyond)
        remarks.append(
            Remark("warning", f"{100 * share:.1f} % of what flows into layer {layers.label(site)} lies beyond its grid.")
        )
    noise = [(value, word(row.get("layer"))) for row in layers.rows("outputs") if (value := real(row.get("sqnr"))) is not None]
    if noise and min(noise)[0] < 0:
        worst, name = min(noise)
        remarks.append(Remark("warning", f"In layer {layers.label(name)} there is more noise than signal ({worst:.1f} dB)."))
    return remarks
