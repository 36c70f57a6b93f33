"""Columns whose digits are beyond float32: standardised, drawn, written and measured without losing them."""

import numpy as np
import pytest
import torch

from flowgen import evaluation, runs
from flowgen.config import resolve_config
from flowgen.core import InputError
from flowgen.data import Scaled, Scaling, TensorDataset, read_table
from flowgen.evaluation.measure import Settings, real_vs_real
from flowgen.interop import graphs as exporting
from flowgen.likelihood import log_likelihood
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.runs import Run
from flowgen.samplers.grids import uniform
from flowgen.samplers.ode import euler

pytestmark = pytest.mark.journey

N = 2000
RNG = np.random.default_rng(0)
COLUMNS = {
    "julian": 2459000.5 + 0.2 * RNG.random(N),
    "epoch": 1.7e9 + 3600 * RNG.random(N),
    "northing": 5_412_345.25 + 6 * RNG.random(N),
    "plain": RNG.normal(size=N),
    "huge": 1e50 * RNG.normal(size=N),
}
SETTINGS = {"net": {"width": 8}, "train": {"steps": 2, "batch_size": 16}, "coupling": "independent"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder with a table of such columns, and a run of it."""
    folder = tmp_path_factory.mktemp("digits")
    rows = np.stack(list(COLUMNS.values()), axis=1)
    np.savetxt(folder / "t.csv", rows, delimiter=",", header=",".join(COLUMNS), comments="", fmt="%.17g")
    run = Run.create(folder / "run", resolve_config({"data": str(folder / "t.csv"), **SETTINGS}), "")
    for _ in runs.train(run):
        pass
    return folder


@pytest.fixture(scope="module")
def trained(store):
    return runs.load(store / "run")


@pytest.fixture(scope="module")
def table(store):
    return read_table(store / "t.csv").x


def test_no_row_is_lost_when_a_table_is_standardised(store, trained):
    data = trained.config.load_data()
    ends = trained.config.ends(data, torch.device("cpu"))
    (z, _) = next(iter(ends.data.chunks(1800, seed=0)))
    assert z.dtype == torch.float32
    assert [len(column.unique()) > 1790 for column in z.T] == [True] * 5
    torch.testing.assert_close(z.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(5), atol=1e-3, rtol=0)


def test_standardising_comes_back_to_the_last_digits(table):
    scaling = Scaling.standardising(table)
    back = scaling.undo(scaling.in_model_units(table))
    assert ((back - table).abs() <= 1e-6 * table.std(0)).all()


@pytest.mark.parametrize("change", [torch.nn.Module.half, torch.nn.Module.float, lambda m: m.to(torch.bfloat16)])
def test_a_model_of_another_type_keeps_the_digits(table, change):
    model = change(Model(MLP(5, 8, 1), scaling=Scaling.standardising(table)))
    torch.testing.assert_close(model.scaling.undo(torch.zeros(1, 5)), table.mean(0, keepdim=True), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz", "s.npy", "s.npz"])
def test_samples_are_written_with_their_digits(store, flowgen, table, name):
    assert flowgen("sample", store / "run", "--num", 500, "--steps", 2, "--out", name)[0] == 0
    made = read_table(name).x
    assert [len(column.unique()) > 490 for column in made.T] == [True] * 5
    assert ((made.mean(0) - table.mean(0)).abs() < 2 * table.std(0)).all()
    assert (made.std(0) < 5 * table.std(0)).all()


def test_a_csv_has_no_more_digits_than_a_column_needs(store, flowgen):
    assert flowgen("sample", store / "run", "--num", 50, "--steps", 2, "--out", "s.csv")[0] == 0
    with open("s.csv") as file:
        rows = [line.strip().split(",") for line in file][1:]
    digits = [max(len(row[at].partition("e")[0].strip("-").replace(".", "")) for row in rows) for at in range(5)]
    assert digits[0] >= 16  # 2459000.5 with a spread of 0.06, of which float32 holds seven digits
    assert digits[3] <= 14  # nine that count, and zeros before them


def test_rows_without_large_numbers_have_nine_digits():
    assert Scaling.standardising(torch.randn(99, 2, dtype=torch.float64)).digits() == [9, 9]
    assert Scaling.of_range(0, 1).digits() is None


def test_edits_keep_the_digits_of_known_cells(store, flowgen, table):
    with open("gaps.csv", "w") as file:
        file.write(",".join(COLUMNS) + "\n2459000.6123456789,,5412345.123456789,0.1,1e50\n")
    assert flowgen("edit", store / "run", "gaps.csv", "--steps", 2, "--out", "filled.csv")[0] == 0
    made = read_table("filled.csv").x[0]
    assert made[[0, 2, 3, 4]].tolist() == [2459000.6123456789, 5412345.123456789, 0.1, 1e50]
    assert abs(made[1] - 1.7e9) < 3600 * 10


def test_measures_are_of_standardised_rows(store):
    subject = evaluation.load_subject(store / "run")
    found = real_vs_real(subject, Settings(num=100, repeats=2))
    assert 0.1 < found["w2"].mean < 5
    assert found["precision"].mean > 0.5


def test_likelihoods_see_the_digits(trained, table):
    model, x = trained.model, table[:2].clone()
    x[1] = x[0]
    x[1, 0] += 0.2
    grid = torch.linspace(0, 1, 5, dtype=torch.float64)
    found = log_likelihood(model, trained.source, x, grid, euler)
    assert (found[0] - found[1]).abs() > 0.01
    shifted = Model(model.net, scaling=Scaling(model.scaling.shift, 2 * model.scaling.scale))
    z = model.scaling.apply_to(x)
    other = log_likelihood(shifted, trained.source, shifted.scaling.undo(z), grid, euler)
    torch.testing.assert_close(other, found - 5 * np.log(2), atol=1e-5, rtol=0)


def test_a_column_is_constant_only_where_its_values_are_equal():
    x = torch.full((1000, 3), 2459000.5, dtype=torch.float64)
    x[::2, 1] += 1e-6
    x[0, 2] = torch.nextafter(x[0, 2], x[0, 2] + 1)
    assert (Scaling.standardising(x).scale == 0).tolist() == [True, False, False]


def test_a_spread_that_no_number_holds_is_refused():
    with pytest.raises(InputError, match="column 2 has a spread"):
        Scaling.standardising(torch.tensor([[0, 0.0], [1, 5e-324]], dtype=torch.float64))


def test_rows_of_a_table_come_standardised_in_the_library(table):
    law = Scaled(TensorDataset(table), Scaling.standardising(table))
    x = law.sample(1000, torch.Generator().manual_seed(0))
    assert x.dtype == torch.float32
    assert all(len(column.unique()) > 700 for column in x.T)


def test_an_exported_sampler_keeps_the_digits(trained, table):
    sampler = exporting.sampler(trained, uniform(2), euler).module
    made = sampler(torch.randn(500, 5, generator=torch.Generator().manual_seed(0)))
    assert [len(column.unique()) > 490 for column in made.T] == [True] * 5
    assert ((made.mean(0) - table.mean(0)).abs() < 2 * table.std(0)).all()


def test_data_that_were_read_with_other_columns_are_refused(trained):
    data = trained.config.load_data()
    with pytest.raises(InputError, match=r"read as rows of shape \(4,\), and the run has learned \(5,\)"):
        trained.check_data(data._replace(distribution=TensorDataset(data.distribution.x[:, 1:])))
