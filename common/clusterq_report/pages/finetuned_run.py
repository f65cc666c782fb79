"""Page of a `clusterq-finetune` run: the low-bit student, its training and its accuracy."""

from collections.abc import Mapping

from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.spec import shown_arch
from clusterq_report.charts.scale import usable
from clusterq_report.charts.series import curves, series, shares
from clusterq_report.html.gallery import stored_images
from clusterq_report.html.page import Level, Remark, Report, Section, paragraph
from clusterq_report.html.text import number, percent
from clusterq_report.pages import accuracy, provenance
from clusterq_report.pages import network_sections as inside
from clusterq_report.run_data import Points, Source, pair, real, reals, rows, section, word

# Thresholds for warnings, in points: half-width of an interval, loss of a student or a class, gap between synthetic and real
# images, and decrease of the agreement.
WIDE_INTERVAL, LARGE_LOSS, LARGE_GAP, FELL_BACK = 2.0, 10.0, 5.0, 1.0
MUCH_BEYOND = 0.05


def finetuning_report(source: Source) -> Report:
    """Return the page of a fine-tuning, made from its folder.

    Raises:
        ClusterqError: a file in the folder was not written by a run.
    """
    config, result = source.config, source.result
    arch = shown_arch(word(section(config.get("teacher")).get("arch"), "a teacher"))
    bits = word(section(config.get("quant")).get("bits"))
    recipe = section(config.get("recipe"))
    tiles = {"Teacher": arch, "Bits": bits, "Recipe": f"{word(recipe.get('recipe'))}, {word(recipe.get('epochs'))} epochs"}
    before, after = accuracy.top1(source, "teacher"), accuracy.top1(source, "student")
    if after is not None:
        for name, model in (
            ("Teacher's top-1", "teacher"),
            ("After calibration", "calibrated"),
            ("Student's top-1", "student"),
        ):
            tiles[name] = accuracy.with_interval(source, model)
        apart = accuracy.below_teacher(source)
        tiles["Below the teacher, points"] = str(apart) if apart else number(None if before is None else before - after)
        tiles["Real images"] = number(real(section(result.get("student")).get("images")))
    tiles |= _synthetic(source)
    tiles["Seed"] = provenance.seed(source)
    gone = f"The shards that it learned from do not lie in {source.shards} (any more), or are others now."
    sections = [
        Section("accuracy", "Accuracy on real images", accuracy.overall(source)),
        Section("classes", "Classes", accuracy.by_class(source) + accuracy.confusion(source)),
        Section("learning", "Learning", _learning(source)),
        Section("reconstruction", "Reconstruction", inside.reconstruction(source)),
        Section("layers", "Layer by layer", inside.quantization(source)),
        Section("images", "Images it learned from", stored_images(source, gone)),
        Section("features", "Those images inside the teacher", inside.features(source)),
        Section("again", "Run it again", provenance.again(source)),
        Section("settings", "Settings", provenance.settings(source)),
        Section("origins", "Origins", provenance.origins(source)),
    ]
    return Report(f"{arch} at {bits}", _lead(source, arch, bits), tiles, _remarks(source), sections)


def _lead(source: Source, arch: str, bits: str) -> str:
    before, after = accuracy.top1(source, "teacher"), accuracy.top1(source, "student")
    shards = section(source.result.get("shards"))
    if not source.result:
        return f"{arch} at {bits}: not finished, {source.steps_done} steps are on record."
    learned = (
        f"from {number(real(shards.get('training_images')))} synthetic images ({word(shards.get('method'), 'unknown method')})"
    )
    if after is None or before is None:
        return f"{arch} was brought to {bits} {learned}; no real image was looked at, so its accuracy is unknown."
    count = number(real(section(source.result.get("student")).get("images")))
    return f"{arch} was brought to {bits} {learned}: top-1 {after:.2f} % where the teacher has {before:.2f} %, on {count} real images."


def _synthetic(source: Source) -> dict[str, str]:
    tiles = {"Training images": number(real(section(source.result.get("shards")).get("training_images")))}
    agreement = real(section(source.result.get("student")).get("heldout/agreement"))
    if agreement is not None:
        tiles["Agrees on held-out images, last epoch"] = percent(100 * agreement)
    return tiles


def _learning(source: Source) -> str:
    if not source.metrics:
        return paragraph("No step is on record: nothing was trained, or not yet.")
    markup = curves(
        series(source.steps, "loss/"),
        title="Losses",
        x_label="step",
        y_label="weighted loss",
        caption="Terms of the loss, weighted as they are summed.",
    )
    training = _recorded(source.steps, "student/agreement", "student/accuracy", "teacher/accuracy")
    markup += shares(
        training,
        title="Teacher and student on training images",
        x_label="step",
        caption=f"Shares of a batch's synthetic images: {', '.join(training)}.",
    )
    unseen = _recorded(source.epochs, "heldout/agreement", "heldout/student_accuracy", "heldout/teacher_accuracy")
    markup += shares(
        unseen,
        title="Teacher and student on held-out images",
        x_label="epoch",
        caption=f"Shares of the synthetic images that training never saw, after each epoch: {', '.join(unseen)}. Falling while the losses fall too: "
        "overfitting. Real images are looked at once, when training is over.",
    )
    heldout = {"kl": source.epochs.get("heldout/kl", [])}
    markup += curves(
        heldout,
        title="KL on held-out images",
        x_label="epoch",
        y_label="T² KL",
        caption="T² KL(teacher || student) on the held-out images.",
    )
    return markup + curves(
        {"learning rate": series(source.steps, "lr").get("", [])},
        title="Learning rate",
        x_label="step",
        y_label="learning rate",
        caption="Learning rate.",
    )


def _recorded(columns: Mapping[str, Points], *keys: str) -> dict[str, Points]:
    """Return the recorded series of agreement, student accuracy and teacher accuracy; older runs may lack some."""
    names = ("student agrees with teacher", "student names the label", "teacher names the label")
    return {name: columns[key] for name, key in zip(names, keys, strict=True) if key in columns}


def _remarks(source: Source) -> list[Remark]:
    remarks = []
    if not source.result:
        remarks.append(
            Remark(
                "warning",
                f"The run is not finished: {source.steps_done} steps are on record. {setting_name('resume')} goes on.",
            )
        )
    elif accuracy.top1(source, "student") is None:
        remarks.append(
            Remark(
                "warning",
                f"No real image was looked at: how good the student is, is unknown. `clusterq-finetune evaluate {setting_name('val')}` tells.",
            )
        )
    missing = sum(y is None for points in series(source.steps, "loss/").values() for _, y in points)
    if missing:
        remarks.append(
            Remark(
                "warning",
                f"{missing} loss values are not finite: the training went astray; try a smaller {setting_name('lr')}.",
            )
        )
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


def _about_accuracy(source: Source) -> list[Remark]:
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
            Remark(level, f"{number(real(student.get('images')))} real images settle top-1 to about ± {half:.1f} points.")
        )
    lost = accuracy.losses(source)
    if lost and lost[0].points > 0:
        worst = lost[0]
        name = accuracy.class_names(source, len(reals(student.get("per_class"))))[worst.label]
        sentence = f"Class {name} lost most: {worst.teacher:.1f} to {worst.student:.1f} %"
        sentence += f" of its {worst.images:,} images." if worst.images else "."
        remarks.append(Remark("warning" if worst.clear and worst.points > LARGE_LOSS else "plain", sentence))
    unreadable = student.get("unreadable")
    if isinstance(unreadable, list) and unreadable:
        remarks.append(Remark("warning", f"{len(unreadable)} real images could not be read and do not count."))
    return remarks


def _about_synthetic(source: Source) -> list[Remark]:
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


def _about_layers(source: Source) -> list[Remark]:
    analysis, remarks = inside.analysis_of(source), []
    beyond = [(real(row.get("clipped")) or 0.0, word(row.get("site"))) for row in rows(analysis.get("activations"))]
    if beyond and max(beyond)[0] > MUCH_BEYOND:
        share, site = max(beyond)
        remarks.append(Remark("warning", f"{100 * share:.1f} % of what flows into {site} lies beyond its grid."))
    noise = [
        (value, word(row.get("layer"))) for row in rows(analysis.get("outputs")) if (value := real(row.get("sqnr"))) is not None
    ]
    if noise and min(noise)[0] < 0:
        remarks.append(Remark("warning", f"In {min(noise)[1]} there is more noise than signal ({min(noise)[0]:.1f} dB)."))
    return remarks
