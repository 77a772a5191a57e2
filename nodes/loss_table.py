"""Reads and writes the losses of trainings as CSV tables."""

from __future__ import annotations

import csv
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from typing import Mapping

from ..trainer.atomic_write import write_atomically
from ..trainer.history import History, smooth

COLUMNS = ["run", "step", "loss", "smoothed loss", "learning rate"]
SKIPPED = "skipped"  # one more column, if any step was skipped
VALIDATION = "validation loss"  # one more column, if it was measured after any step

Runs = Mapping[str, History]  # by name


def write_table(path: Path, runs: Runs, window: int) -> None:
    """Save runs as a table, atomically: run, step, loss, its mean over `window` steps, learning rate, and skipped
    and validation loss if any step has them.

    Raises OSError if the file cannot be written.
    """
    text = StringIO(newline="")
    writer = csv.writer(text)
    some_skipped, some_validated = (
        any(getattr(run, part) for run in runs.values()) for part in ("skipped", "validation")
    )
    writer.writerow([*COLUMNS, *[SKIPPED] * some_skipped, *[VALIDATION] * some_validated])
    for name, run in runs.items():
        skipped = set(run.skipped)
        marks = ["yes" if step in skipped else "" for step in range(1, len(run) + 1)]
        columns = run.losses, smooth(run.losses, window).tolist(), run.learning_rates or [""] * len(run)
        columns += (marks,) * some_skipped
        columns += ([run.validation.get(step, "") for step in range(1, len(run) + 1)],) * some_validated
        for step, row in enumerate(zip_longest(*columns, fillvalue=""), 1):
            writer.writerow([name, step, *row])
    with write_atomically(path) as part:
        part.write_text(text.getvalue(), encoding="utf-8", newline="")


def read_table(path: Path) -> dict[str, History]:
    """Read the runs of a table. A table of another program only needs a column of losses.

    Raises OSError, or ValueError if the file is not such a table.
    """
    runs: dict[str, History] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                row = {(name or "").strip().lower().replace("_", " "): value for name, value in row.items()}
                run = runs.setdefault(row.get("run") or path.stem, History())
                run.losses.append(float(row["loss"]))
                rate = row.get("learning rate") or row.get("lr")
                if rate:
                    run.learning_rates.append(float(rate))
                if row.get(SKIPPED):
                    run.skipped.append(len(run))
                if row.get(VALIDATION):
                    run.validation[len(run)] = float(row[VALIDATION])
    except (KeyError, TypeError, ValueError, csv.Error) as error:  # ValueError: also bytes that are not text
        raise ValueError(f"{path.name} is not a loss table: it needs a column of numbers named loss.") from error
    if not runs:
        raise ValueError(f"{path.name} has no rows, so there is nothing to draw: choose another table.")
    return runs
