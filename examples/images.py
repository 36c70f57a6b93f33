"""A folder of images: train on it, watch the images form, and draw new ones of each class.

    python examples/images.py [FOLDER [PICTURE.png]]

Folders within the folder are classes. Without one it writes scikit-learn's 8x8 digits as files, a folder for each
digit, and trains on those. The run folder, which is temporary here, is like the one that `flowgen train FOLDER` makes.
"""

import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

from flowgen import data, grids, heun, runs, sampling
from flowgen.config import resolve_config


def main(steps: int = 2000, folder: Path | None = None, picture: Path | None = None) -> dict[str, float]:
    """The mean and the standard deviation of all pixels, of the images and of samples, between 0 and 1."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = folder or write_digits(Path(temporary, "digits"))
        images = data.open_folder(folder)
        print(f"{len(images)} images of shape {images.shape}, classes: {', '.join(images.classes) or 'none'}")

        # The recipe of images is a U-Net and labels; what is named here wins over it.
        settings = {"data": str(folder), "net": {"size": "tiny"}, "train": {"steps": steps, "preview_every": 500}}
        run = runs.Run.create(Path(temporary, "run"), resolve_config(settings), "examples/images.py")
        for progress in runs.train(run):
            if progress.step % 100 == 0:
                print(f"step {progress.step}, loss {progress.loss:.3f}")

        # Eight of each class, or 64 where there are none: sample i is a function of its seed, of i and of its label.
        trained = runs.load(run.folder)
        labels = torch.arange(len(trained.classes)).repeat_interleave(8) if trained.classes else None
        num, grid = 64 if labels is None else len(labels), grids.uniform(20, *trained.model.span)
        samples = sampling.sample(trained.model, trained.source, num, grid, heun, cond=labels)
        real = data.TensorDataset(images.load().pixels).values
    if picture:
        data.write_grid(picture, samples, columns=8)

    numbers = {"mean": real.mean(), "deviation": real.std(), "mean of samples": samples.mean()}
    numbers |= {"deviation of samples": samples.std()}
    for name, number in numbers.items():
        print(f"{name:22} {number:.3f}")
    return {name: number.item() for name, number in numbers.items()}


def write_digits(folder: Path) -> Path:
    """Writes the digits as files 0/0000.png, ..., as an image folder has them."""
    digits = data.read_images("digits")
    for index, (image, label) in enumerate(zip(digits.pixels, digits.labels, strict=True)):
        place = folder / digits.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).byte().numpy()).save(place / f"{index:04d}.png")
    return folder


if __name__ == "__main__":
    main(**dict(zip(("folder", "picture"), map(Path, sys.argv[1:]), strict=False)))
