"""The losses of trainings as a CSV table."""

from __future__ import annotations

import csv
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from typing import Mapping

from ..trainer.history import History, smooth
from ..trainer.writing import whole_file

COLUMNS = ["run", "step", "loss", "smoothed loss", "learning rate"]

Runs = Mapping[str, History]  # by name


def write_table(path: Path, runs: Runs, window: int) -> None:
    """Write runs as a table: run, step, loss, its mean over a window of steps, learning rate. Whole or not at all."""
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for name, run in runs.items():
        columns = run.losses, smooth(run.losses, window).tolist(), run.learning_rates
        for step, row in enumerate(zip_longest(*columns, fillvalue=""), 1):
            writer.writerow([name, step, *row])
    with whole_file(path) as part:
        part.write_text(text.getvalue(), encoding="utf-8", newline="")


def read_table(path: Path) -> dict[str, History]:
    """Read the runs of a table; one of another program may have no more than a column of losses.

    Raises OSError or ValueError for a file that is none.
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
    except (KeyError, TypeError, ValueError, csv.Error) as error:  # bytes that are no text are a ValueError
        raise ValueError(f"{path.name} is no table of losses: it needs a column named loss, of numbers.") from error
    if not runs:
        raise ValueError(f"{path.name} is a table without rows: there is nothing to draw.")
    return runs
