"""The examples do what they say, in few steps."""

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.journey

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> Callable[..., dict[str, float]]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.mark.slow
def test_moons(tmp_path: Path) -> None:
    picture = tmp_path / "moons.png"
    numbers = example("moons")(steps=400, points=500, picture=picture)
    # 400 steps are few: the flow is most of the way to the data, and reflow makes it straighter at once
    assert numbers["OT flow, 100 steps"] < numbers["source"] / 2
    assert numbers["reflowed, 1 step"] < numbers["OT flow, 1 step"]
    assert numbers["reflowed, straightness"] < numbers["OT flow, straightness"] / 3
    assert picture.stat().st_size > 10_000


@pytest.mark.slow
def test_moons_to_8gaussians(tmp_path: Path) -> None:
    picture = tmp_path / "flow.png"
    numbers = example("moons_to_8gaussians")(steps=400, points=500, picture=picture)
    least = numbers["W2^2(source, data)"]
    assert numbers["ExactOT, path energy"] == pytest.approx(least, rel=0.2)
    assert numbers["Independent, path energy"] > 1.2 * least
    assert numbers["ExactOT, W2 in 2 steps"] < numbers["Independent, W2 in 2 steps"]
    assert numbers["ExactOT, W2 in 100 steps"] < least**0.5 / 2
    assert picture.stat().st_size > 10_000


@pytest.mark.slow
def test_ddpm(tmp_path: Path) -> None:
    picture = tmp_path / "ddpm.png"
    numbers = example("ddpm")(steps=600, points=500, picture=picture)
    assert picture.stat().st_size > 10_000
    floor = numbers.pop("noise floor")
    assert numbers["Euler, 20, straight path"] == pytest.approx(numbers["DDIM, 20"], rel=1e-3)
    assert max(numbers.values()) < floor + 0.4  # 600 steps are few; samples of no training at all are 2 away


@pytest.mark.slow
def test_likelihood() -> None:
    numbers = example("likelihood")(steps=1000, points=500)
    for name in ("flow", "diffusion"):
        assert 0 < numbers[f"{name}: KL(data | model)"] < 0.5
        assert numbers[f"{name}: the same, by one probe"] == pytest.approx(
            numbers[f"{name}: KL(data | model)"], abs=0.15
        )
        assert numbers[f"{name}: mass"] == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_guidance(tmp_path: Path) -> None:
    picture = tmp_path / "guided.png"
    numbers = example("guidance")(steps=800, points=300, picture=picture)
    assert numbers["no label"] < 0.4
    assert numbers["label"] > 0.6
    assert numbers["classifier-free, 3"] > numbers["label"]
    assert numbers["classifier, 3"] > numbers["classifier, 1"] > 0.6
    assert picture.stat().st_size > 10_000


@pytest.mark.slow
def test_table(tmp_path: Path) -> None:
    numbers = example("table")(steps=300, picture=tmp_path / "columns.png")
    assert numbers["mean"] < 0.2
    assert numbers["deviation"] < 0.2
    assert numbers["correlation"] < 0.2
    assert (tmp_path / "columns.png").stat().st_size > 10_000


def test_table_of_ones_own(tmp_path: Path) -> None:
    table = tmp_path / "two.csv"
    table.write_text("height,weight\n" + "".join(f"{150 + i},{50 + 2 * i}\n" for i in range(50)))
    assert example("table")(steps=300, table=table)["correlation"] < 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["two.csv"]


@pytest.mark.slow
def test_digits(tmp_path: Path) -> None:
    numbers = example("digits")(steps=100, num=160, picture=tmp_path / "digits.png")
    # 100 steps are few: the labels are learned before the images are
    assert numbers["20 Heun steps, labels"] > 0.6
    assert numbers["20 Heun steps, guided, labels"] > numbers["20 Heun steps, labels"]
    assert numbers["1 Euler step, distance"] > 2
    assert (tmp_path / "digits.png").stat().st_size > 5000


@pytest.mark.slow
def test_images(tmp_path: Path) -> None:
    numbers = example("images")(steps=20, picture=tmp_path / "grid.png")
    assert abs(numbers["mean of samples"] - numbers["mean"]) < 0.15
    assert (tmp_path / "grid.png").stat().st_size > 5000


@pytest.mark.slow
def test_one_step(tmp_path: Path) -> None:
    numbers = example("one_step")(steps=300, points=1000, picture=tmp_path / "one.png")
    assert numbers["shortcut, 1"] < numbers["flow, 1"] / 2
    assert numbers["taught meanflow, 1"] < numbers["flow, 1"] / 2
    assert (tmp_path / "one.png").stat().st_size > 10_000


@pytest.mark.slow
def test_inpainting(tmp_path: Path) -> None:
    numbers = example("inpainting")(steps=150, num=8, picture=tmp_path / "filled.png")
    # 150 steps are few: what is known of all pixels tells more than the flow does
    assert numbers["enlarged, both"] < numbers["enlarged, guided"] < numbers["enlarged, unknowing"]
    assert numbers["enlarged, replaced"] < numbers["enlarged, unknowing"]
    assert (tmp_path / "filled.png").stat().st_size > 3000
