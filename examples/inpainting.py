"""Inpainting: what a trained flow makes of half a digit, and of a digit of a quarter of the pixels.

    python examples/inpainting.py [PICTURE.png]

A flow of digits is trained without labels or masks; what is known of an image comes in when it is walked. Three ways:
the known pixels are set after every step, the field is guided to them (pseudo-inverse guidance), and both at once, with
every few steps gone over again. With the default number of steps it takes about two minutes on two CPU cores.
"""

import sys
from pathlib import Path

import torch

from flowgen import (
    FlowMatching,
    IndependentPairs,
    Model,
    State,
    batches,
    data,
    euler,
    fit,
    grids,
    guidance,
    nn,
    optim,
    sampling,
    times,
)
from flowgen.data import streams

BATCH = 64


def main(steps: int = 2500, num: int = 16, picture: Path | None = None) -> dict[str, float]:
    """For each way to fill in the lower half, and to enlarge, the root mean square distance to the true pixels."""
    digits = data.read_images("digits")
    rows = data.TensorDataset(digits.pixels)
    seen, unseen = (rows.take(index) for index in data.split(rows.x, 0.1, seed=0))
    scaling, noise = data.Scaling.of_range(0, 1), data.Gaussian(rows.shape)  # model units go from -1 to 1

    pairs = batches(IndependentPairs(noise, data.Scaled(seen, scaling)), BATCH, seed=0)
    state = State(Model(nn.UNet(rows.shape, **nn.UNET_SIZES["tiny"]), scaling=scaling), ema=0.07)
    rate = optim.CosineRate(2e-3, steps, warmup=steps // 20)
    for loss in fit(state, pairs, FlowMatching(times.Stratified()), steps, seed=0, rate=rate):
        if state.step % 100 == 0:
            print(f"step {state.step}, loss {loss:.3f}")

    model, truth = state.ema.requires_grad_(False), scaling.apply_to(unseen.values[:num])
    upper = torch.arange(8).unsqueeze(1).expand(8, 8) < 4
    known = {"lower half": guidance.Mask(upper), "enlarged": guidance.Downsampled(2)}
    numbers, shown = {}, [truth]
    for task, measurement in known.items():
        y = measurement.apply(truth)
        shown.append(measurement.inverse(y))
        for way, x in ways(model, noise, measurement, y).items():
            x = guidance.project(measurement, x, y)  # what is known, exactly
            numbers[f"{task}, {way}"] = (x - truth).square().mean().sqrt().item()
            print(f"{task}, {way:10} {numbers[f'{task}, {way}']:.3f}")
            shown.append(x)
    if picture:
        data.write_grid(picture, (torch.cat(shown) + 1) / 2, columns=num)
    return numbers


def ways(
    model: Model, noise: data.Gaussian, measurement: guidance.Measurement, y: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What is drawn from the same noise, not knowing y and by three ways to know it."""
    schedule, grid = model.schedule, grids.uniform(30, *model.span)
    guided = guidance.PiGDM(model.velocity, schedule, measurement, y, since=0.2)
    replaced = guidance.RePaint(euler, schedule, measurement, y, noise)
    again = guidance.resampled(grid, times=5, jump=5)
    x = model.start(streams.source_rows(noise, 0, len(y), seed=0))
    with torch.no_grad():
        return {
            "unknowing": sampling.solve(model.velocity, x, grid, euler),
            "replaced": sampling.solve(model.velocity, x, grid, replaced),
            "guided": sampling.solve(guided, x, grid, euler),
            "both": sampling.solve(guided, x, again, replaced),
        }


if __name__ == "__main__":
    main(picture=Path(sys.argv[1]) if len(sys.argv) > 1 else None)
