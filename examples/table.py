"""A table from a file: train on its rows, draw new ones, and compare the two column by column.

    python examples/table.py [TABLE.csv [PICTURE.png]]

Without a table it takes the wine data of scikit-learn: 178 rows of 13 measurements, in units from tenths to thousands.
Columns are standardised for training, and samples come back in the units of the file; both belong to the run folder,
which is the one that `flowgen train TABLE.csv` makes.
"""

import sys
import tempfile
from pathlib import Path

import torch

from flowgen import data, grids, heun, plots, runs, sampling
from flowgen.config import resolve_config


def main(steps: int = 4000, table: Path | None = None, picture: Path | None = None) -> dict[str, float]:
    """The largest differences of means, standard deviations (both in those of the data) and correlations."""
    with tempfile.TemporaryDirectory() as folder:
        table = table or write_wine(Path(folder, "wine.csv"))
        real, columns, *_ = data.read_table(table)

        # A run folder is made from a configuration: names and numbers, as in TOML or on the command line.
        settings = {"data": str(table), "net": {"width": 128}, "train": {"steps": steps, "batch_size": 256}}
        run = runs.Run.create(Path(folder, "run"), resolve_config(settings), "examples/table.py")
        for progress in runs.train(run):
            if progress.step % 1000 == 0:
                print(f"step {progress.step}, loss {progress.loss:.3f}")

        # Everything that sampling needs is in the folder: weights, scaling and source.
        model, source, *_ = runs.load(run.folder)
        samples = sampling.sample(model, source, 5000, grids.uniform(50), heun)

    print(f"\n{'column':30} {'mean':>9} {'of samples':>11} {'deviation':>10} {'of samples':>11}")
    for index in range(real.shape[1]):
        name = columns[index] if columns else f"x{index}"
        x, y = real[:, index], samples[:, index]
        print(f"{name:30} {x.mean():9.4g} {y.mean():11.4g} {x.std():10.4g} {y.std():11.4g}")
    numbers = {
        "mean": worst((samples.mean(0) - real.mean(0)) / real.std(0)),
        "deviation": worst(samples.std(0) / real.std(0) - 1),
        "correlation": worst(torch.corrcoef(samples.T) - torch.corrcoef(real.T)),
    }
    print("\nlargest differences:", ", ".join(f"{name} {number:.3f}" for name, number in numbers.items()))
    if picture:
        plots.samples(picture, samples, real, columns)
    return numbers


def worst(difference: torch.Tensor) -> float:
    """The largest absolute value."""
    return difference.abs().max().item()


def write_wine(path: Path) -> Path:
    """Writes the wine data as a CSV with a header."""
    from sklearn.datasets import load_wine

    wine = load_wine()
    lines = [wine.feature_names, *wine.data.tolist()]
    path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    return path


if __name__ == "__main__":
    main(**dict(zip(("table", "picture"), map(Path, sys.argv[1:]), strict=False)))
