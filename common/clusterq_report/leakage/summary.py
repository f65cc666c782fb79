"""Text version of a leakage report: tables of the spaces and of the attacks. Free of torch."""

from collections.abc import Sequence

from clusterq_common.quantities import number, percent
from clusterq_report.leakage.findings import BesideControl, Leakage
from clusterq_report.leakage.verdicts import verdicts
from clusterq_report.quality.summary import MARKS

SPACES = [
    "compared in",
    "exact",
    "near-copies",
    "expected",
    "of held-out",
    "nearest is training",
    "held-out in its place",
    "class means",
    "p, corrected",
]
ATTACKS = ["attack", "AUC", "AUC, 95 %", "found at 1 % false", "at 1 %, 95 %", "at 0.1 %", "at 0.1 %, 95 %"]


def space_rows(leakage: Leakage) -> list[list[str]]:
    """Return a row for each space; the last cell has the corrected p-values of near-copies, nearness and class means."""
    rows = []
    for space in leakage.spaces:
        copies, near, means = space.copies, space.nearness, space.means
        chances = [copies.corrected, near.corrected, *([] if means is None else [means.corrected])]
        rows.append(
            [
                space.shown,
                f"{copies.exact:,}",
                f"{copies.count:,}",
                number(copies.expected, 2),
                f"{copies.of_held:,}",
                _share(near.value, near.interval),
                _share(near.control, near.control_interval),
                "–" if means is None else _shift(means),
                ", ".join(number(chance, 2) for chance in chances),
            ]
        )
    return rows


def attack_rows(leakage: Leakage) -> list[list[str]]:
    """Return a row for each attack."""
    rows = []
    for attack in leakage.membership.attacks:
        interval = "–" if attack.auc_interval is None else f"{attack.auc_interval[0]:.3f} to {attack.auc_interval[1]:.3f}"
        row = [f"{attack.model}, {attack.score}", "–" if attack.auc is None else f"{attack.auc:.3f}", interval]
        for rate in ("1", "0.1"):
            caught = attack.caught.get(rate)
            row += (
                ["–", "–"]
                if caught is None
                else [percent(100 * caught[0], 1), f"{100 * caught[1]:.1f} to {100 * caught[2]:.1f}"]
            )
        rows.append(row)
    return rows


def summary_lines(leakage: Leakage) -> list[str]:
    """Return the tables and the verdicts, one line each."""
    lines = [*_table(SPACES, space_rows(leakage)), "", *_table(ATTACKS, attack_rows(leakage)), ""]
    return lines + [f"{MARKS[remark.level]} {remark.sentence}" for remark in verdicts(leakage)]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in [heads, *rows]) for place in range(len(heads))]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [heads, *rows]
    ]


def _share(value: float, interval: tuple[float, float]) -> str:
    return f"{percent(100 * value, 1)} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _shift(compared: BesideControl) -> str:
    return f"{compared.value:+.3f} [{compared.interval[0]:+.3f}, {compared.interval[1]:+.3f}]"
