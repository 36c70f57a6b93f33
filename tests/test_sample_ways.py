"""Ways of sampling by name, on the command line: solvers, grids, noise and other paths."""

import json

import numpy as np
import pytest

from flowgen.config import GRIDS, SAMPLERS

pytestmark = pytest.mark.journey

TRAIN = ("train", "moons", "--steps", "60", "--set", "net.width=16", "--set", "pool.batches=2")


@pytest.fixture
def runs(called):
    """A diffusion, a flow on pairs of optimal transport, and one with noise between its pairs: only to be read."""
    bridge = ("--coupling", "independent", "--set", "bridge.sigma=0.3")
    kinds = {"vp": ("--path", "vp"), "ot": (), "bridge": bridge}
    return {name: called(*TRAIN, *options, "--out", name) / name for name, options in kinds.items()}


@pytest.fixture
def drawn(flowgen, runs, tmp_path):
    """drawn(name of the run, options): its samples and what was printed."""

    def call(name, *options):
        out = tmp_path / "samples.npy"
        code, told, err = flowgen("sample", runs[name], "--out", out, *options)
        assert code == 0, err
        return np.load(out, allow_pickle=False), told

    return call


@pytest.mark.parametrize("solver", SAMPLERS)
def test_every_sampler_draws_row_i_of_the_seed(drawn, solver):
    few, told = drawn("vp", "--num", 70, "--solver", solver, "--steps", 6)
    many, _ = drawn("vp", "--num", 130, "--solver", solver, "--steps", 6)
    other, _ = drawn("vp", "--num", 70, "--solver", solver, "--steps", 6, "--seed", 1)
    assert np.isfinite(few).all()
    assert f"6 steps of {solver}" in told
    np.testing.assert_array_equal(few, many[:70])
    assert np.abs(few - other).max() > 0.1


@pytest.mark.parametrize("grid", [name for name in GRIDS if name not in ("trailing", "leading", "linspaced")])
def test_a_grid_of_any_name_is_walked(drawn, grid):
    samples, told = drawn("vp", "--num", 64, "--solver", "ddim", "--grid", grid, "--steps", 5)
    assert np.isfinite(samples).all()
    assert "5 steps of ddim, 5 evaluations" in told


def test_noise_says_how_much_is_drawn(drawn):
    none, least, all_of_it = (
        drawn("vp", "--num", 64, "--solver", "ddim", "--noise", noise, "--steps", 8)[0] for noise in (0, 1e-6, 1)
    )
    ancestral, _ = drawn("vp", "--num", 64, "--solver", "ddpm", "--steps", 8)
    np.testing.assert_allclose(none, least, atol=1e-3)
    np.testing.assert_allclose(all_of_it, ancestral, rtol=1e-3, atol=1e-3)
    assert np.abs(none - all_of_it).max() > 0.1


def test_the_same_samples_come_by_another_path(drawn):
    """In steps that are short enough, since it is one probability flow."""
    here, _ = drawn("vp", "--num", 64, "--solver", "rk4", "--steps", 150)
    there, _ = drawn("vp", "--num", 64, "--solver", "rk4", "--steps", 150, "--path", "cosine")
    assert np.abs(here - there).mean() < 0.002 * np.abs(here).mean()


@pytest.mark.parametrize("run", ["ot", "bridge"])
@pytest.mark.parametrize("solver", ["ddpm", "sde", "pc", "langevin"])
def test_noise_without_a_score_is_refused(flowgen, runs, run, solver):
    code, _, err = flowgen("sample", runs[run], "--solver", solver)
    assert code == 2
    assert "independent" in err


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "unipc", "edm"])
def test_samplers_that_draw_none_take_any_flow(drawn, solver):
    """Many steps of any come to where the flow leads."""
    exact, _ = drawn("ot", "--num", 64, "--solver", "rk4", "--steps", 60)
    found, _ = drawn("ot", "--num", 64, "--solver", solver, "--steps", 200, "--grid", "uniform")
    assert np.abs(found - exact).mean() < 0.05


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--solver", "ddmp"), "unknown solver 'ddmp' (did you mean ddpm?)"),
        (("--grid", "logsnr"), "unknown grid 'logsnr' (did you mean log-snr?)"),
        (("--path", "strait"), "unknown path 'strait'"),
        (("--noise", "1"), "only some solvers can be given more or less noise"),
        (("--solver", "ddim", "--noise", "-1"), "0 <= eta <= 1"),
        (("--solver", "ddim", "--steps", "0"), "at least one step"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(flowgen, runs, tmp_path, options, words):
    code, _, err = flowgen("sample", runs["vp"], "--out", tmp_path / "none.npy", *options)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "none.npy").exists()


def test_samplers_are_measured_like_solvers(flowgen, runs, tmp_path):
    measured = {}
    for solver in ("dpm++2m", "ddpm"):
        code, told, err = flowgen(
            *("evaluate", runs["vp"], "--solver", solver, "--steps", "4,8", "--num", 100, "--repeats", 2),
            *("--json", tmp_path / "all.json", "--out", tmp_path / "chart.png"),
        )
        assert code == 0, err
        assert f"vp, {solver}" in told
        (measured[solver],) = json.loads((tmp_path / "all.json").read_text())
        assert measured[solver]["solver"] == solver
        assert [q["nfe"] for q in measured[solver]["quality"]] == [4, 8]
    assert "endpoint_error" in measured["dpm++2m"]["quality"][0]
    assert "endpoint_error" not in measured["ddpm"]["quality"][0]
