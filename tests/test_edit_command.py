"""`flowgen edit`, as a person and a script meet it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowgen import runs
from flowgen.config import resolve_config
from flowgen.core import generator
from flowgen.data.images.pictures import GAP
from flowgen.data.tables import read_table
from flowgen.guidance import Downsampled, Mask
from flowgen.runs import Run
from flowgen.samplers.ode import AdaptiveSolver, heun
from flowgen.sampling import sample

pytestmark = pytest.mark.journey

NET = {"name": "resmlp", "width": 16, "depth": 1}
TRAIN = {"steps": 25, "batch_size": 32, "lr": 1e-2, "preview_every": 0}
KINDS = {
    "flow": {},
    "diffusion": {"schedule": {"name": "vp"}, "prediction": "noise"},
    "coupled": {"coupling": {"name": "exact"}, "train": {**TRAIN, "steps": 2}},
    "no-dropout": {"train": {**TRAIN, "steps": 2, "label_dropout": 0.0}},
    "jumps": {"objective": {"name": "consistency"}, "train": {**TRAIN, "steps": 2}},
    "table": {"data": "moons", "net": {"name": "mlp"}, "train": {"steps": 2}},
    "rows": {"data": "rows.csv", "net": {"name": "mlp"}, "coupling": {"name": "independent"}, "train": {"steps": 600}},
    "colour": {"data": "colour.npy", "train": {**TRAIN, "steps": 2}},
}


def noise(*shape):
    return torch.randint(256, shape, generator=generator(0, "pictures"), dtype=torch.uint8).numpy()


def correlated(rows):
    """A table in which b is 100 + 10 a, almost, and c is nothing to both."""
    x = torch.randn(rows, 3, generator=generator(0, "rows"), dtype=torch.float64).numpy()
    x[:, 1] = 100 + 10 * x[:, 0] + x[:, 1]
    return x


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A quick run of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    np.save(folder / "colour.npy", noise(30, 8, 8, 3))
    np.savetxt(folder / "rows.csv", correlated(800), delimiter=",", header="a,b,c", comments="")
    for kind, tree in KINDS.items():
        # the exactness that is asked for below is that of the nets of this split
        tree = {"data": "digits", "net": NET, "train": TRAIN, "split": {"stratify": False}, **tree}
        data = str(folder / tree["data"]) if "." in tree["data"] else tree["data"]
        for _ in runs.train(Run.create(folder / kind, resolve_config({**tree, "data": data}), "flowgen train")):
            pass
    return folder


@pytest.fixture
def files(kinds, tmp_path, monkeypatch):
    """A folder of runs and of images to edit."""
    monkeypatch.chdir(tmp_path)
    for kind in KINDS:
        shutil.copytree(kinds / kind, kind)
    write("x.png", noise(8, 8))
    write("y.png", 255 - noise(8, 8))
    write("small.png", noise(4, 4))
    write("wide.png", noise(4, 6))
    write("large.png", noise(16, 24))
    write("colour.png", noise(8, 8, 3))
    half = np.zeros((8, 8), np.uint8)
    half[:, 3:] = 255
    write("mask.png", half)
    write("black.png", 0 * half)
    write("large-mask.png", np.repeat(np.repeat(np.pad(half, ((0, 0), (2, 2))), 2, 0), 2, 1))
    Path("broken.png").write_bytes(b"spoilt")
    Path("cells.csv").write_text("a,b,c\n" + 20 * "1.5,,0.25\n,90,\n0.1,101.00001,\n,,\n")
    Path("whole.csv").write_text("a,b,c\n1,2,3\n")
    Path("others.csv").write_text("b,a,d\n1,,3\n")
    return half == 255


def write(name, pixels):
    Image.fromarray(pixels).save(name)


def pixels(name):
    return np.asarray(Image.open(name))


def good(flowgen, *arguments):
    code, out, err = flowgen("edit", *arguments)
    assert code == 0, err
    return out


def cell(name, place, scale=8):
    """One image of a grid of 8x8 pixels in one row."""
    left = place * (8 + GAP) * scale
    return pixels(name)[: 8 * scale : scale, left : left + 8 * scale : scale]


@pytest.mark.parametrize("solver", ["heun", "ab2", "ddim", "ddpm", "dopri5"])
@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_what_is_black_in_the_mask_is_kept_to_the_last_bit(flowgen, files, kind, solver):
    out = good(flowgen, kind, "x.png", "--mask", "mask.png", "--steps", 6, "--out", "e.png", "--solver", solver)
    assert f"e.png: 1 image in 6 steps of {solver}" in out
    made, before = pixels("e.png"), pixels("x.png")
    assert made.shape == (8, 8)
    assert np.array_equal(made[~files], before[~files])
    assert (made != before)[files].mean() > 0.8


def test_a_colour_mask_run_and_image_agree_in_channels(flowgen, files):
    good(flowgen, "colour", "colour.png", "--mask", "mask.png", "--steps", 3, "--out", "e.png")
    assert np.array_equal(pixels("e.png")[~files], pixels("colour.png")[~files])
    good(flowgen, "colour", "x.png", "--mask", "mask.png", "--steps", 3, "--out", "e.png")  # grey to colour
    assert np.array_equal(pixels("e.png")[~files], np.repeat(pixels("x.png")[..., None], 3, 2)[~files])
    good(flowgen, "flow", "colour.png", "--mask", "mask.png", "--steps", 3, "--out", "e.png")  # and back
    grey = np.asarray(Image.open("colour.png").convert("L"))
    assert np.array_equal(pixels("e.png")[~files], grey[~files])


def test_several_fillings_stand_after_image_and_mask(flowgen, files):
    arguments = ("flow", "x.png", "--mask", "mask.png", "--steps", 4)
    good(flowgen, *arguments, "--num", 2, "--out", "e.png")
    good(flowgen, *arguments, "--num", 2, "--out", "folder")
    top = pixels("e.png")
    assert top.shape == ((2 * 8 + GAP) * 8,) * 2
    assert np.array_equal(cell("e.png", 0), pixels("x.png"))
    assert np.array_equal(cell("e.png", 1), pixels("mask.png"))
    made = [pixels(f"folder/{number:06d}.png") for number in range(2)]
    write("below.png", top[(8 + GAP) * 8 :])
    assert np.array_equal([cell("below.png", place) for place in range(2)], made)
    assert not np.array_equal(*made)
    good(flowgen, *arguments, "--out", "one.png")  # the first, whatever their number is
    assert np.abs(pixels("one.png").astype(int) - made[0]).max() <= 1
    good(flowgen, *arguments, "--out", "other.png", "--seed", 1)
    assert np.abs(pixels("other.png").astype(int) - made[0]).max() > 20


def test_other_sizes_are_cropped_and_resized_with_their_mask(flowgen, files):
    good(flowgen, "flow", "large.png", "--mask", "large-mask.png", "--steps", 3, "--out", "e.png")
    middle = Image.open("large.png").crop((4, 0, 20, 16)).resize((8, 8), Image.Resampling.BICUBIC)
    kept = np.s_[:, :2]  # one column beside the edge of the mask, where resizing blends, is left out
    assert np.array_equal(pixels("e.png")[kept], np.asarray(middle)[kept])


def test_what_is_painted_around_stays_in_the_middle(flowgen, files):
    good(flowgen, "flow", "wide.png", "--outpaint", "--steps", 4, "--resample", 2, "--out", "e.png")
    assert np.array_equal(pixels("e.png")[2:6, 1:7], pixels("wide.png"))


def test_what_is_enlarged_has_the_means_of_what_it_was(flowgen, files):
    out = good(flowgen, "flow", "small.png", "--upscale", 2, "--steps", 4, "--out", "e.png", "--json")
    assert json.loads(out)["evaluations"] == 8
    assert pixels("e.png").shape == (8, 8)


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_redrawing_goes_from_the_image_to_a_sample(flowgen, files, kind):
    arguments = (kind, "x.png", "--steps", 5, "--label", 3, "--num", 3)
    good(flowgen, *arguments, "--strength", 0, "--out", "none")
    assert all(np.array_equal(pixels(f"none/{number:06d}.png"), pixels("x.png")) for number in range(3))
    good(flowgen, *arguments, "--strength", 1, "--out", "all")
    assert flowgen("sample", kind, "--steps", 5, "--label", 3, "--num", 3, "--out", "drawn")[0] == 0
    for number in range(3):
        made, drawn = (pixels(f"{folder}/{number:06d}.png").astype(int) for folder in ("all", "drawn"))
        assert np.abs(made - drawn).max() <= 1
    far = []
    for strength in (0.1, 0.5, 0.9):
        good(flowgen, *arguments, "--strength", strength, "--out", "e.png")
        far.append(np.abs(cell("e.png", 1).astype(int) - pixels("x.png")).mean())
    assert far[0] < far[1] < far[2]


@pytest.mark.parametrize("kind", ["flow", "diffusion", "coupled"])
def test_the_way_to_another_image_begins_and_ends_with_both(flowgen, files, kind):
    out = good(
        flowgen,
        kind,
        "x.png",
        "--toward",
        "y.png",
        "--frames",
        3,
        "--solver",
        "dopri5",
        "--steps",
        2,
        "--out",
        "way.png",
    )
    assert "3 frames" in out
    assert pixels("way.png").shape == (64, 3 * 64 + 2 * 8 * GAP)
    for place, name in ((0, "x.png"), (2, "y.png")):
        assert np.abs(cell("way.png", place).astype(int) - pixels(name)).max() <= 5
    assert np.abs(cell("way.png", 1).astype(int) - pixels("x.png")).max() > 20


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_the_noise_of_an_image_leads_back_to_it(flowgen, files, kind):
    facts = [
        json.loads(good(flowgen, kind, "x.png", "--invert", "--steps", steps, "--json", "--out", "n.npy"))
        for steps in (10, 40)
    ]
    assert facts[1]["error"] < facts[0]["error"] / 8  # Heun's method is of order 2
    assert facts[1]["job"] == "invert"
    trained = runs.load(Path(kind))
    x0 = torch.from_numpy(np.load("n.npy"))
    assert x0.shape == (1, 1, 8, 8)
    editor = runs.Editor(
        trained, trained.model.velocity, runs.sampler(trained.config, trained.model, trained.source, heun, 40)
    )
    back = (editor.back(trained.model.start(x0)) + 1) / 2 * 255
    error = (back[0, 0] - torch.tensor(pixels("x.png"))).square().mean().sqrt().item()
    assert error == pytest.approx(facts[1]["error"], rel=1e-2)


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m"])
def test_inversion_begins_where_the_velocity_is_finite(flowgen, files, solver):
    arguments = ("diffusion", "x.png", "--invert", "--json", "--solver", solver, "--out", "n.npy")
    few, many = (json.loads(good(flowgen, *arguments, "--steps", steps))["error"] for steps in (10, 80))
    assert many < few / 4
    assert np.isfinite(np.load("n.npy")).all()


def test_edits_keep_what_was_measured(files):
    trained = runs.load(Path("flow"))
    model = trained.model
    for solver in (heun, AdaptiveSolver("bosh3", rtol=0.03, atol=0.03)):  # so rough that rows would see each other
        walked = runs.sampler(trained.config, model, trained.source, solver, 5)
        editor = runs.Editor(trained, model.velocity, walked, 3, seed=5)
        y = torch.rand(1, 1, 4, 4, generator=generator(0, "y"))
        made = editor.fill(Downsampled(2), y, num=4)
        torch.testing.assert_close(Downsampled(2).apply(made), y.expand(4, -1, -1, -1))
        torch.testing.assert_close(editor.fill(Downsampled(2), y, num=2), made[:2], rtol=1e-5, atol=1e-5)
        x = torch.rand(1, 1, 8, 8, generator=generator(0, "x"))
        torch.testing.assert_close(editor.redraw(x, 0.6, 2), editor.redraw(x, 0.6, 4)[:2], rtol=1e-5, atol=1e-5)
    # where nothing is known, it is a sample
    free = editor._replace(sampler=runs.sampler(trained.config, model, trained.source, heun, 5))
    nothing = Mask(torch.zeros(8, 8, dtype=torch.bool))
    drawn = sample(model, trained.source, 3, free.sampler.grid, heun, seed=5, cond=torch.full((3,), 3))
    torch.testing.assert_close(free.fill(nothing, 0 * x, 3), model.scaling.apply_to(drawn), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["heun", "ddpm"])
def test_empty_cells_are_filled_in_by_what_stands_in_their_row(flowgen, files, solver):
    out = good(flowgen, "rows", "cells.csv", "--steps", 10, "--solver", solver, "--json")
    assert json.loads(out)["cells"] == 20 * 7
    before, made = (read_table(name, missing=True) for name in ("cells.csv", "rows/filled.csv"))
    assert made.columns == ("a", "b", "c")
    known = ~before.x.isnan()
    assert torch.equal(made.x[known], before.x[known])
    assert made.x.isfinite().all()
    quarters = made.x.reshape(20, 4, 3)
    assert quarters[:, 0, 1].mean().item() == pytest.approx(115, abs=3)  # of a = 1.5
    assert quarters[:, 1, 0].mean().item() == pytest.approx(-1, abs=0.3)  # of b = 90
    assert quarters[:, 3].std(0).min() > 0.4  # of nothing
    good(flowgen, "rows", "cells.csv", "--steps", 10, "--solver", solver, "--out", "again.npy")
    np.testing.assert_allclose(np.load("again.npy"), made.x.numpy(), rtol=1e-6)


def test_rows_that_would_share_a_step_are_filled_in_alone(flowgen, files):
    for name, text in (("one.csv", "a,b,c\n1.5,,0.25\n"), ("two.csv", "a,b,c\n1.5,,0.25\n,90,\n")):
        Path(name).write_text(text)
        good(flowgen, "rows", name, "--steps", 3, "--solver", "bosh3", "--out", f"made-{name}")
    one, two = (read_table(f"made-{name}.csv").x for name in ("one", "two"))
    assert torch.equal(one, two[:1])


def test_labels_and_guidance_are_heard(flowgen, files):
    arguments = ("flow", "x.png", "--mask", "mask.png", "--steps", 4)
    made = []
    for extra in ([], ["--label", 3], ["--label", 8], ["--label", 8, "--guidance", 4]):
        out = good(flowgen, *arguments, *extra, "--out", "e.png")
        made.append(pixels("e.png").astype(int))
        assert f"{16 if '--guidance' in extra else 8} evaluations" in out
    for place, one in enumerate(made):
        assert all(np.abs(one - other).max() > 0 for other in made[:place])


def test_the_edited_image_is_kept_with_the_run(flowgen, files):
    good(flowgen, "flow", "x.png", "--strength", 0.5, "--steps", 2)
    good(flowgen, "flow", "x.png", "--invert", "--steps", 2)
    assert Path("flow/edited.png").exists()
    assert Path("flow/noise.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["flow", "x.png"], "an edit is one of --mask, --outpaint"),
        (["flow", "x.png", "--invert", "--strength", 0.5], "not 2"),
        (["flow", "x.png", "--mask", "black.png"], "nothing white"),
        (["flow", "x.png", "--mask", "large.png"], "x.png is 8x8, and large.png 24x16: the mask must have the size"),
        (["flow", "x.png", "--mask", "none.png"], "none.png cannot be read (No such file or directory)"),
        (["flow", "broken.png", "--invert"], "broken.png cannot be read (not an image"),
        (["flow", "x.png", "--outpaint"], "fills the 8x8 pixels"),
        (["flow", "large.png", "--outpaint"], "does not fit"),
        (["flow", "x.png", "--upscale", 2], "2 times that is not the 8x8"),
        (["flow", "small.png", "--upscale", 1], "from 2 on"),
        (["flow", "x.png", "--strength", 1.5], "from 0 to 1"),
        (["flow", "x.png", "--strength", 0.5, "--num", 0], "--num must be at least 1"),
        (["flow", "x.png", "--mask", "mask.png", "--resample", 0], "--resample must be at least 1"),
        (["flow", "x.png", "--strength", 0.5, "--resample", 2], "--resample is of"),
        (["flow", "x.png", "--strength", 0.5, "--frames", 2], "--frames is of --toward"),
        (["flow", "x.png", "--toward", "y.png", "--frames", 1], "--frames must be at least 2"),
        (["flow", "x.png", "--toward", "y.png", "--num", 2], "--num is of"),
        (["flow", "x.png", "--invert", "--out", "e.png"], "FILE.npy"),
        (["flow", "x.png", "--strength", 0.5, "--out", "e.jpg"], "FILE.png or a folder"),
        (["flow", "x.png", "--strength", 0.5, "--out", "none/e.png"], "there is no folder none"),
        (["flow", "x.png", "--strength", 0.5, "--label", 10], "there is no label '10'"),
        (["flow", "x.png", "--strength", 0.5, "--solver", "jump"], "cannot jump"),
        (["flow", "x.png", "--strength", 0.5, "--solver", "magic"], "magic"),
        (["flow", "x.png", "--strength", 0.5, "--steps", 0], "at least one step"),
        (["diffusion", "x.png", "--invert", "--solver", "ddpm"], "noise cannot be taken back"),
        (["coupled", "x.png", "--mask", "mask.png"], "independent pairs"),
        (["coupled", "x.png", "--strength", 0.5], "independent pairs"),
        (["colour", "x.png", "--strength", 0.5, "--label", 0], "knows no labels"),
        (["no-dropout", "x.png", "--strength", 0.5], "choose one with --label"),
        (["flow", "x.png", "--strength", 0.5, "--guidance", 2], "choose one"),
        (["jumps", "x.png", "--strength", 0.5], "has no velocity"),
        (["table", "x.png", "--strength", 0.5], "--strength is of images"),
        (["flow", "cells.csv"], "makes images"),
        (["rows", "cells.csv", "--strength", 0.5], "cells.csv is a table"),
        (["rows", "cells.csv", "--num", 2], "another --seed"),
        (["rows", "cells.csv", "--out", "x.png"], "a table is written to"),
        (["rows", "whole.csv"], "no empty cell"),
        (["rows", "others.csv"], "lacks c and has also d"),
        (["table", "cells.csv"], "has 3 columns, and needs 2"),
        (["none", "x.png", "--strength", 0.5], "not a run folder"),
    ],
    ids=lambda value: "-".join(map(str, value)).replace("--", "") if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_write_nothing(flowgen, files, arguments, told):
    before = sorted(Path().rglob("*"))
    code, out, err = flowgen("edit", *arguments, *([] if "--steps" in arguments else ["--steps", 2]))
    assert (code, out) == (2, "")
    assert told in err
    assert len(err.splitlines()) == 1
    assert sorted(Path().rglob("*")) == before


def test_known_cells_keep_all_their_digits(flowgen, files):
    Path("digits.csv").write_text("a,b,c\n1.23456789012345,100000123,\n-0.1,,3e-17\n")
    good(flowgen, "rows", "digits.csv", "--steps", 5, "--out", "made.csv")
    first, second = Path("made.csv").read_text().splitlines()[1:]
    assert first.startswith("1.23456789012345,100000123,")
    assert second.startswith("-0.1,")
    assert second.endswith(",3e-17")


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["rows", "cells.csv", "--out", "cells.csv"], "cells.csv"),
        (["flow", "x.png", "--mask", "mask.png", "--out", "x.png"], "x.png"),
        (["flow", "x.png", "--mask", "mask.png", "--out", "./mask.png"], "mask.png"),
        (["flow", "x.png", "--toward", "y.png", "--out", "y.png"], "y.png"),
    ],
)
def test_what_is_read_is_not_written_over(flowgen, files, arguments, kept):
    before = Path(kept).read_bytes()
    code, _, err = flowgen("edit", *arguments)
    assert code == 2
    assert "choose another place" in err
    assert Path(kept).read_bytes() == before
