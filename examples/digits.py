"""Digits with labels: train a flow to images of each class, sample it, guide it, and measure what came out.

    python examples/digits.py [PICTURE.png]

The data are scikit-learn's 1797 digits of 8x8 pixels. Labels are conditions: the network learns the flow of each class,
and by hiding one label in ten also that of all together, which guidance goes away from (arXiv 2207.12598). With the
default number of steps it takes about two minutes on two CPU cores.
"""

import sys
from pathlib import Path

import torch

from flowgen import (
    FlowMatching,
    Guided,
    IndependentPairs,
    Model,
    State,
    batches,
    data,
    euler,
    fit,
    grids,
    heun,
    metrics,
    nn,
    optim,
    sample,
    times,
    with_null_labels,
)

CLASSES, BATCH = 10, 64


def main(steps: int = 2500, num: int = 500, picture: Path | None = None) -> dict[str, float]:
    """For each way to sample, the Fréchet distance of the pixels to digits that training did not see, over that of the
    digits it saw, and the share of samples that a classifier of real digits labels as they were asked for."""
    digits = data.read_images("digits")
    rows = data.TensorDataset(digits.pixels, digits.labels)
    seen, unseen = (rows.take(index) for index in data.split(rows.x, 0.1, seed=0))
    scaling, noise = data.Scaling.of_range(0, 1), data.Gaussian(rows.shape)  # model units go from -1 to 1

    # Each image is seen once in an epoch, with its label, one in ten of which is replaced by "no label".
    pairs = batches(IndependentPairs(noise, data.Scaled(seen, scaling)), BATCH, seed=0)
    pairs = with_null_labels(pairs, 0.1, null=CLASSES, size=BATCH, seed=0)
    net = nn.UNet(rows.shape, CLASSES, **nn.UNET_SIZES["tiny"], dropout=0.1)
    state = State(Model(net, scaling=scaling), ema=0.07)
    rate = optim.CosineRate(2e-3, steps, warmup=steps // 20)
    for loss in fit(state, pairs, FlowMatching(times.Stratified()), steps, seed=0, rate=rate):
        if state.step % 100 == 0:
            print(f"step {state.step}, loss {loss:.3f}")

    # One Euler step draws the mean of each class: the classifier likes it, and the distance tells.
    labels = torch.arange(num) % CLASSES
    guided = Guided(state.ema.velocity, null=CLASSES, weight=2.0)
    ways = {
        "20 Heun steps": (grids.uniform(20), heun, None),
        "20 Heun steps, guided": (grids.uniform(20), heun, guided),
        "1 Euler step": (grids.uniform(1), euler, None),
    }
    judge = nn.Classifier(rows.shape, CLASSES)
    nn.fit_classifier(judge, seen.values, seen.labels, steps=min(1000, 4 * steps), seed=0)
    floor = metrics.frechet_distance(seen.values.flatten(1), unseen.values.flatten(1))
    numbers = {}
    for name, (grid, solver, field) in ways.items():
        x = sample(state.ema, noise, num, grid, solver, field=field, cond=labels)
        distance = metrics.frechet_distance(x.flatten(1), unseen.values.flatten(1)) / floor
        right = (judge(x).argmax(1) == labels).float().mean().item()
        print(f"{name:22} Fréchet distance {distance:.2f} of real digits', labels right {right:.1%}")
        numbers |= {f"{name}, distance": distance, f"{name}, labels": right}
        if picture and name == "20 Heun steps":
            data.write_grid(picture, x[:80], columns=CLASSES)
    return numbers


if __name__ == "__main__":
    main(picture=Path(sys.argv[1]) if len(sys.argv) > 1 else None)
