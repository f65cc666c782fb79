"""Interpretation of a leakage report, one plain sentence a result, with what it does not show. Free of torch."""

from collections.abc import Iterator

from clusterq_common.quantities import number, percent
from clusterq_common.setting_names import setting_name
from clusterq_report.html.page import Remark
from clusterq_report.leakage.findings import LEVEL, TEACHER, Attack, BesideControl, Leakage, SpaceFigures

MOST_NAMED = 5


def verdicts(leakage: Leakage) -> list[Remark]:
    """Return the remarks, in the order of the page."""
    remarks = [
        Remark(
            "warning",
            "This result shows and names real images. Do not share it. Whether to share the set is your decision.",
        )
    ]
    remarks += _about_real(leakage)
    for space in leakage.spaces:
        remarks += [*_exact(leakage, space), *_copies(leakage, space), *_nearness(leakage, space), *_means(space)]
    remarks += _membership(leakage)
    remarks.append(Remark("plain", _summary(leakage)))
    return remarks


def leaks(leakage: Leakage) -> list[str]:
    """Return the names of the tests that found leakage of the set, such as `near-copies in pixels`; empty if none did."""
    named = []
    for space in leakage.spaces:
        named += [f"exact copies in {space.shown}"] if space.copies.exact else []
        named += [f"near-copies in {space.shown}"] if space.copies.found else []
        named += [f"nearness in {space.shown}"] if space.nearness_found else []
        named += [f"class means in {space.shown}"] if space.means_found else []
    return named


def _summary(leakage: Leakage) -> str:
    alarms = leaks(leakage)
    summary = (
        f"Found: {', '.join(alarms)}."
        if alarms
        else "No test found that the set lies nearer to the training images than to held-out ones."
    )
    return (
        f"{summary} That is no guarantee: details that these distances do not see, attacks by someone who knows more, and images that were "
        "not compared are not covered."
    )


def _about_real(leakage: Leakage) -> Iterator[Remark]:
    for what, real in (("training", leakage.train), ("held-out", leakage.held)):
        if real.unreadable:
            yield Remark("warning", f"{real.unreadable} {what} images could not be read and do not count.")
        for remark in real.remarks:
            yield Remark("plain", f"{what.capitalize()} images: {remark}")
        if real.compared + real.unreadable < real.images:
            missing = " A copy of another one is not seen." if what == "training" else ""
            yield Remark("plain", f"{real.compared:,} of {real.images:,} {what} images were compared, drawn by class.{missing}")
    if leakage.images < leakage.of_images:
        yield Remark(
            "plain",
            f"{leakage.images:,} of the set's {leakage.of_images:,} images were compared; a larger {setting_name('images')} compares more.",
        )
    if leakage.in_both:
        yield Remark(
            "warning",
            f"{leakage.in_both:,} held-out images are training images, too; they hide leakage. Take held-out images that are not.",
        )
    if leakage.alone:
        yield Remark(
            "warning",
            f"{leakage.alone} classes have only training or only held-out images: nearness and class means leave them out, near-copies do not.",
        )
    pixels = leakage.spaces[0].nearness
    if not pixels.neutral:
        yield Remark(
            "warning",
            f"Held-out images lie nearer to {'training' if pixels.control > 0.5 else 'other held-out'} images in pixels ({_shares(pixels, control=True)}): "
            "the two kinds differ by more than training, perhaps in source or storage. The figures below cannot be trusted much.",
        )


def _exact(leakage: Leakage, space: SpaceFigures) -> Iterator[Remark]:
    if space.copies.exact:
        yield Remark("warning", f"{space.copies.exact:,} of {leakage.images:,} images equal a training image in {space.shown}.")


def _copies(leakage: Leakage, space: SpaceFigures) -> Iterator[Remark]:
    copies = space.copies
    low, high = copies.rate_interval
    of = f" of {copies.originals:,} training images" if copies.count else " of training images"
    sentence = (
        f"In {space.shown}, {copies.count:,} of {leakage.images:,} images are near-copies{of}; about {number(copies.expected, 2)} false alarms are expected "
        f"({percent(100 * copies.rate, 2)} [{percent(100 * low, 2)}, {percent(100 * high, 2)}] of held-out images), and {copies.of_held:,} are near-copies of "
        f"held-out images by the same rule (p = {number(copies.corrected, 2)}, corrected)"
    )
    if copies.found:
        yield Remark("warning", f"{sentence}: more than chance explains. Look at the pairs.")
    elif copies.count:
        yield Remark("plain", f"{sentence}: no more than chance explains, but look at the pairs: a single copy is no excess.")
    else:
        yield Remark("good", f"{sentence}. A copy that is changed more than this distance sees does not show.")


def _nearness(leakage: Leakage, space: SpaceFigures) -> Iterator[Remark]:
    nearness = space.nearness
    sentence = (
        f"In {space.shown}, the nearest real image is a training image for {_shares(nearness)} of the set, and for {_shares(nearness, control=True)} of "
        f"held-out images in the set's place; 50 % would be chance (p = {number(nearness.corrected, 2)}, corrected)"
    )
    if space.nearness_found:
        yield Remark("warning", f"{sentence}: the set lies nearer to the training images than chance explains.")
    elif nearness.corrected < LEVEL or not nearness.neutral:
        yield Remark("plain", f"{sentence}: {_not_the_set(space)}")
    elif nearness.interval[1] < 0.5:
        yield Remark("plain", f"{sentence}: the set lies nearer to held-out images, which is no sign of leakage.")
    else:
        yield Remark("plain", f"{sentence}: no difference was found. This sees a shift of many images, not one copy.")
    # Corrected for classes so far, not for spaces.
    level = LEVEL / len(leakage.spaces)
    few = sorted((row for row in space.by_class if row.auc_corrected < level), key=lambda row: row.auc_corrected)
    if few and nearness.neutral:
        yield Remark(
            "warning", f"Classes nearer to training images in {space.shown}: {_classes(leakage, [row.label for row in few])}."
        )


def _means(space: SpaceFigures) -> Iterator[Remark]:
    means = space.means
    if means is None:
        return
    low, high = means.interval
    sentence = (
        f"In {space.shown}, the training mean is the nearer one for {space.mean_towards} of {space.mean_classes} class means, by {number(means.value, 2)} "
        f"[{number(low, 2)}, {number(high, 2)}] standard deviations on average; of held-out images {number(means.control, 2)} (p = {number(means.corrected, 2)}, "
        "corrected)"
    )
    if space.means_found:
        yield Remark("warning", f"{sentence}: class averages of the training images show.")
    elif means.corrected < LEVEL or not means.neutral:
        yield Remark("plain", f"{sentence}: {_not_the_set(space)}")
    elif means.interval[1] < 0:
        yield Remark("plain", f"{sentence}: held-out means are nearer, which is no sign of leakage.")
    else:
        yield Remark("plain", f"{sentence}: no difference was found. It says nothing of single images.")


def _not_the_set(space: SpaceFigures) -> str:
    if space.name == TEACHER:
        return "held-out images differ from chance, too: the teacher places its training images apart, so this says little about the set."
    return "held-out images differ from chance, too, so this says little about the set."


def _membership(leakage: Leakage) -> Iterator[Remark]:
    for attack in leakage.membership.attacks:
        yield Remark("plain", _attacked(attack))
    for difference in leakage.membership.differences:
        low, high = difference.interval
        how = (
            "better than the teacher"
            if low > 0
            else "less well than the teacher"
            if high < 0
            else "as well as the teacher, within chance"
        )
        sentence = f"By {difference.score}, the student tells training from held-out images {how}"
        yield Remark(
            "plain", f"{sentence}: its AUC is {difference.difference:+.3f} [{low:+.3f}, {high:+.3f}] against the teacher's."
        )
    yield Remark(
        "plain",
        "These attacks are weak ones. A stronger one with shadow models may find more; one that finds nothing proves nothing.",
    )


def _attacked(attack: Attack) -> str:
    if attack.auc is None:
        return f"The {attack.model}'s {attack.score} could not be compared: one kind of images is missing."
    interval = "" if attack.auc_interval is None else f" [{attack.auc_interval[0]:.3f}, {attack.auc_interval[1]:.3f}]"
    caught = "; ".join(
        f"{percent(100 * share, 1)} [{percent(100 * low, 1)}, {percent(100 * high, 1)}] of training images at {rate} % false alarms"
        for rate, (share, low, high) in attack.caught.items()
    )
    sentence = f"The {attack.model}'s {attack.score} tells training from held-out images with AUC {attack.auc:.3f}{interval} (0.5: not at all)"
    return f"{sentence}, and finds {caught}." if caught else f"{sentence}."


def _shares(compared: BesideControl, *, control: bool = False) -> str:
    value, (low, high) = (compared.control, compared.control_interval) if control else (compared.value, compared.interval)
    return f"{percent(100 * value, 1)} [{100 * low:.1f}, {100 * high:.1f}]"


def _classes(leakage: Leakage, labels: list[int]) -> str:
    named = ", ".join(leakage.class_name(label) for label in labels[:MOST_NAMED])
    return named + (f" and {len(labels) - MOST_NAMED} more" if len(labels) > MOST_NAMED else "")
