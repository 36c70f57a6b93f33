"""Data: laws whose samplers, densities and origins agree; units that come back; tables that are numbers or refused."""

import math
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import chisquare, ks_2samp
from sklearn import datasets

from flowgen.core import InputError, generator
from flowgen.data import (
    Blurred,
    Gaussian,
    Pinwheel,
    Scaled,
    Scaling,
    TensorDataset,
    circles,
    eight_gaussians,
    moons,
    read_table,
    rings,
    s_curve,
    swissroll,
)
from flowgen.data.tables import READERS
from flowgen.data.writing import WRITERS, write_rows

# laws


def test_draws_are_a_function_of_the_generator(toy):
    first, second, other = (toy.sample(50, generator(seed, "toy")) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_draws_are_finite_float32_rows(toy, global_state_untouched):
    x = toy.sample(1000, generator(0, "toy"))
    assert x.dtype == torch.float32
    assert tuple(x.shape) == (1000, *toy.shape)
    assert x.isfinite().all()
    assert len(x.unique(dim=0)) > 990


SAMPLES = 20_000


def finest(law):
    """The length on which the density of a law varies."""
    return law.std if isinstance(law, Blurred) else 1.0 if isinstance(law, Gaussian) else 0.08


def quadrature(law):
    """Nodes and weights of the law on a grid of cells, which is exact to six digits for Gaussian blur: (N, 2), (N,)."""
    reach = 1.05 * float(law.sample(SAMPLES, generator(1, "reach")).abs().max()) + finest(law)
    cells = 2 * math.ceil(reach / finest(law) / 1.25)
    reach = law.size if hasattr(law, "size") else reach  # the board's cells must not cross its squares
    cells = 200 if hasattr(law, "size") else cells
    axis = (torch.arange(cells, dtype=torch.float64) + 0.5) * 2 * reach / cells - reach
    x = torch.cartesian_prod(axis, axis)
    return x, law.log_density(x).exp() * (2 * reach / cells) ** 2


def waves(law):
    """Wave vectors from the scale of the whole law down to its finest detail, (K, 2)."""
    length = torch.logspace(-1, math.log10(1 / finest(law)), 10).repeat_interleave(4)
    angle = 2.4 * torch.arange(40)
    return (length * torch.stack([angle.cos(), angle.sin()])).T.double()


def test_a_density_integrates_to_one_and_is_that_of_the_sampler(toy_with_density):
    """E exp(i w x) under the density is the mean over samples, for waves w of all lengths and directions."""
    x, weight = quadrature(toy_with_density)
    assert weight.sum().item() == pytest.approx(1, abs=2e-4)
    phase, drawn = x @ waves(toy_with_density).T, toy_with_density.sample(SAMPLES, generator(0, "toy")).double()
    seen = drawn @ waves(toy_with_density).T
    for wave in (torch.cos, torch.sin):
        error = wave(seen).mean(0) - weight @ wave(phase)
        assert error.abs().max() < 4 / SAMPLES**0.5


def test_log_density_of_a_float32_point_is_that_of_float64(toy_with_density):
    x = toy_with_density.sample(300, generator(0, "toy"))
    single, double = toy_with_density.log_density(x), toy_with_density.log_density(x.double())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


def sklearn_moons(n, seed):
    return 2 * datasets.make_moons(n, noise=0.05, random_state=seed)[0] - 1


def sklearn_circles(n, seed):
    return 3 * datasets.make_circles(n, noise=0.05, factor=0.5, random_state=seed)[0]


def sklearn_s_curve(n, seed):
    return 1.5 * datasets.make_s_curve(n, noise=0.05, random_state=seed)[0][:, [0, 2]]


def sklearn_swiss_roll(n, seed):
    return 0.3 * datasets.make_swiss_roll(n, noise=0.5, random_state=seed)[0][:, [0, 2]]


@pytest.mark.parametrize(
    ("law", "theirs"),
    [
        (moons(), sklearn_moons),
        (circles(), sklearn_circles),
        (s_curve(), sklearn_s_curve),
        (swissroll(), sklearn_swiss_roll),
    ],
    ids=["moons", "circles", "s-curve", "swissroll"],
)
def test_toys_of_scikit_learn_are_distributed_as_there(law, theirs):
    """Kolmogorov-Smirnov on projections and radii."""
    ours, their = law.sample(SAMPLES, generator(0, "toy")).numpy().astype(float), theirs(SAMPLES, 0)
    angle = np.linspace(0, np.pi, 9)
    for direction in np.stack([np.cos(angle), np.sin(angle)], axis=1):
        assert ks_2samp(ours @ direction, their @ direction).pvalue > 1e-3
    assert ks_2samp(np.hypot(*ours.T), np.hypot(*their.T)).pvalue > 1e-3


def test_eight_gaussians_have_the_moments_of_their_mixture():
    x = eight_gaussians().sample(SAMPLES, generator(0, "toy"))
    assert (x.mean(0).abs() < 4 * 13.5**0.5 / SAMPLES**0.5).all()
    covariance = torch.cov(x.T)
    torch.testing.assert_close(covariance, torch.eye(2) * (1 + 25 / 2), rtol=0.03, atol=0.3)


def test_rings_are_equally_likely():
    radius = rings().sample(SAMPLES, generator(0, "toy")).norm(dim=1)
    counts = radius.round().long().bincount(minlength=5)[1:5]
    assert counts.sum() == SAMPLES
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_a_pinwheel_of_one_straight_arm_is_gaussian():
    law = Pinwheel(arms=1, bend=0.0)
    x = law.sample(SAMPLES, generator(0, "toy")).double()
    exact = torch.tensor([law.scale * law.radial_std, law.scale * law.tangential_std], dtype=torch.float64)
    z = (x - torch.tensor([law.scale, 0.0])) / exact
    whole = torch.distributions.Normal(torch.zeros(2, dtype=torch.float64), 1.0).cdf(z)
    for column in whole.T:
        assert ks_2samp(column.numpy(), np.linspace(0, 1, SAMPLES)).pvalue > 1e-3
    assert abs(torch.corrcoef(z.T)[0, 1]) < 4 / SAMPLES**0.5


def test_a_pinwheel_looks_the_same_from_every_arm():
    law = Pinwheel()
    x = law.sample(SAMPLES, generator(0, "toy")).double()
    turn = 2 * math.pi / law.arms
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    turned = law.sample(SAMPLES, generator(1, "toy")).double() @ rotation.T
    for column in range(2):
        assert ks_2samp(x[:, column].numpy(), turned[:, column].numpy()).pvalue > 1e-3
    square = x.square().sum(1)
    exact = law.scale**2 * (1 + law.radial_std**2 + law.tangential_std**2)
    assert abs(square.mean() - exact) < 4 * square.std() / SAMPLES**0.5


def test_a_pinwheel_bends_its_arms_by_the_radius():
    """Drawn point by point in complex numbers: where in its arm's sector, and how far out, a point lies."""
    law, rng = Pinwheel(), np.random.default_rng(0)
    along = 1 + law.radial_std * rng.normal(size=SAMPLES)
    straight = along + 1j * law.tangential_std * rng.normal(size=SAMPLES)
    theirs = law.scale * straight * np.exp(1j * law.bend * np.exp(along))
    ours = torch.view_as_complex(law.sample(SAMPLES, generator(0, "toy")).double()).numpy()
    for inner, outer in ((0.5, 1.5), (1.5, 2.5), (2.5, 4)):
        angles = [np.angle(z[(abs(z) > inner) & (abs(z) < outer)] ** law.arms) for z in (ours, theirs)]
        assert ks_2samp(*angles).pvalue > 1e-3


def test_a_gaussian_has_the_density_of_independent_normals(normal):
    x = normal("x", 20, 3, 2)
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum((1, 2))
    torch.testing.assert_close(Gaussian((3, 2)).log_density(x), exact)


def test_rows_are_drawn_evenly(normal):
    law = TensorDataset(normal("rows", 12, 3))
    drawn = law.sample(6000, generator(0, "rows"))
    match = (drawn.unsqueeze(1) == law.x).all(2)
    assert match.any(1).all()
    assert chisquare(match.sum(0).numpy()).pvalue > 1e-3
    assert law.shape == (3,)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_refused_and_counted(normal, bad):
    x = normal("rows", 12, 2, 2)
    x[3, 0, 1] = x[3, 1, 1] = x[7, 0, 0] = bad
    with pytest.raises(InputError, match="2 of 12 rows"):
        TensorDataset(x)


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="no rows"):
        TensorDataset(torch.zeros(0, 2))


@pytest.mark.parametrize("std", [0.0, -1.0, math.inf, math.nan])
def test_blur_without_width_is_refused(std):
    with pytest.raises(InputError, match="std"):
        rings(std=std)


# scaling


def test_scaling_comes_back(normal):
    x = normal("x", 50, 4).float() * torch.tensor([1e-6, 1.0, 1e4, 0.0]) + torch.tensor([0.0, -5.0, 3.0, 7.0])
    scaling = Scaling.standardising(x)
    torch.testing.assert_close(scaling.undo(scaling.apply_to(x)), x, rtol=1e-5, atol=1e-6)


def test_standardised_columns_have_mean_0_and_deviation_1(normal):
    x = (normal("x", 500, 3) * torch.tensor([1e-5, 1.0, 1e7]) + torch.tensor([1e-3, -5.0, 3e6])).float()
    z = Scaling.standardising(x).apply_to(x).double().numpy()
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(0), 1, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e-20, 1e8 / 3, 1e30])
def test_a_constant_column_is_only_shifted(value, normal):
    x = torch.full((1001, 1), value)
    scaling = Scaling.standardising(x)
    assert scaling.apply_to(x).abs().max() <= 1e-7 * abs(value)
    assert torch.equal(scaling.apply_to(x + 1), x + 1 - scaling.shift)
    assert torch.equal(scaling.undo(normal("drawn", 3, 1)), x[:3])  # whatever the flow draws


@pytest.mark.parametrize("value", [0.1, 1e8 / 3])
def test_a_column_that_differs_in_its_last_bit_is_not_constant(value):
    x = torch.full((1001, 1), value)
    x[::2] = x[::2].nextafter(torch.tensor(torch.inf))
    assert Scaling.standardising(x).scale.item() == pytest.approx((x[0] - x[1]).item() / 2, rel=1e-3)


def test_no_scaling_changes_nothing(normal):
    x = normal("x", 5, 2, 3)
    assert torch.equal(Scaling().apply_to(x), x)
    assert torch.equal(Scaling().undo(x), x)


def test_a_scaled_law_is_the_law_in_the_units_of_the_model():
    scaling = Scaling(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5]))
    law = Scaled(moons(), scaling)
    back = scaling.undo(law.sample(100, generator(0, "law")))
    torch.testing.assert_close(back, moons().sample(100, generator(0, "law")))
    assert law.shape == (2,)


# tables

X = np.array([[1.5, -2.0], [3.0, 4.25], [-0.125, 1e-3]])


def write_npy(path, x):
    np.save(path, x)


def write_npz(path, x):
    np.savez(path, x=x)


def write_compressed(path, x):
    np.savez_compressed(path, x=x)


def write_csv(path, x):
    np.savetxt(path, x, delimiter=",")


def write_parquet(path, x):
    pq.write_table(pa.table({f"c{index}": column for index, column in enumerate(x.T)}), path)


FORMATS = {
    "npy": ("t.npy", write_npy),
    "npz": ("t.npz", write_npz),
    "npz-compressed": ("t.npz", write_compressed),
    "csv": ("t.csv", write_csv),
    "parquet": ("t.parquet", write_parquet),
}


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def written(request, tmp_path):
    """written(x): the file of a table x, in each format."""
    name, write = request.param

    def make(x):
        write(tmp_path / name, x)
        return tmp_path / name

    return make


def refused(path, match):
    """Reading fails in one line that names the file and says why."""
    with pytest.raises(InputError, match=match) as caught:
        read_table(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_format_gives_its_numbers(written):
    table = read_table(written(X))
    assert torch.equal(table.x, torch.from_numpy(X))


def test_every_format_reads_integers_beyond_float64(written):
    huge = np.array([[2**53 + 1, 1], [2**62, -1]])
    assert torch.equal(read_table(written(huge)).x, torch.from_numpy(huge.astype(np.float64)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_format_counts_rows_that_are_not_finite(written, bad):
    x = np.vstack([X, X])
    x[1, 0] = x[1, 1] = x[4, 1] = bad
    refused(written(x), "2 of 6 rows .* row 2, column (1|c0) is")


def test_every_format_reads_numbers_beyond_float32(written):
    assert torch.equal(read_table(written(1e300 * X)).x, torch.from_numpy(1e300 * X))


def test_every_format_refuses_a_table_without_rows(written):
    refused(written(X[:0]), "no rows|Empty|empty")


def test_every_format_refuses_a_missing_file(written):
    path = written(X)
    path.unlink()
    refused(path, "no such file")


def test_every_format_refuses_an_empty_file(written):
    path = written(X)
    path.write_bytes(b"")
    refused(path, "empty")


def test_every_format_refuses_a_folder(written):
    path = written(X)
    path.unlink()
    path.mkdir()
    refused(path, "not a file")


@pytest.mark.parametrize("share", [0.03, 0.5, 0.97])
@pytest.mark.parametrize("name", ["npy", "npz", "npz-compressed", "parquet"])
def test_binary_formats_refuse_a_truncated_file(tmp_path, name, share):
    path, write = tmp_path / FORMATS[name][0], FORMATS[name][1]
    write(path, np.random.default_rng(0).normal(size=(200, 3)))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "not a readable")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_binary_formats_refuse_the_content_of_another(tmp_path, suffix):
    for name, write in FORMATS.values():
        if not name.endswith(suffix):
            write(tmp_path / name, X)
            (tmp_path / name).rename(tmp_path / f"t{suffix}")
            refused(tmp_path / f"t{suffix}", "not a readable")


def test_a_damaged_archive_is_refused(tmp_path):
    path = tmp_path / "t.npz"
    write_compressed(path, np.random.default_rng(0).normal(size=(300, 2)))
    content = bytearray(path.read_bytes())
    content[100:140] = bytes(255 - byte for byte in content[100:140])
    path.write_bytes(content)
    refused(path, "not a readable")


def test_a_header_that_asks_for_more_than_memory_is_refused(tmp_path):
    with (tmp_path / "t.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**13, 2)}
        np.lib.format.write_array_header_1_0(file, header)
    refused(tmp_path / "t.npy", "not a readable")


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "i1", "u8", "?"])
def test_arrays_of_any_number_type_are_read(tmp_path, dtype):
    x = np.array([[1, 0], [0, 1]]).astype(dtype)
    write_npy(tmp_path / "t.npy", x)
    assert torch.equal(read_table(tmp_path / "t.npy").x, torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("write", [write_npy, write_npz], ids=["npy", "npz"])
@pytest.mark.parametrize(
    ("x", "match"),
    [
        (np.zeros((2, 3, 4)), r"\(2, 3, 4\)"),
        (np.zeros((2, 3, 4, 5)), r"\(2, 3, 4, 5\)"),
        (np.float64(3.0), r"\(\)"),
        (np.zeros((3, 0)), r"\(3, 0\)"),
        (np.array([["a", "b"]]), "<U1"),
        (np.array([["2020-01-01"]], dtype="M8[D]"), "datetime64"),
        (np.array([[1 + 2j]]), "complex128"),
        (np.array([{"a": 1}, None], dtype=object), "not a readable"),
    ],
    ids=["3-D", "4-D", "scalar", "no-columns", "text", "dates", "complex", "pickled"],
)
def test_arrays_that_are_no_table_of_numbers_are_refused(tmp_path, write, x, match):
    path = tmp_path / f"t.{write.__name__.removeprefix('write_')}"
    write(path, x)
    refused(path, match)


def test_pickles_are_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    np.save(tmp_path / "t.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    refused(tmp_path / "t.npy", "not a readable")
    assert not (tmp_path / "sprung").exists()


def test_a_one_dimensional_array_is_one_column(tmp_path):
    write_npy(tmp_path / "t.npy", np.arange(3.0))
    assert torch.equal(read_table(tmp_path / "t.npy").x, torch.arange(3.0, dtype=torch.float64)[:, None])


def test_an_archive_gives_x_or_its_only_array(tmp_path):
    path = tmp_path / "t.npz"
    np.savez(path, other=X)
    assert torch.equal(read_table(path).x, torch.from_numpy(X))
    np.savez(path, other=X + 1, x=X)
    assert torch.equal(read_table(path).x, torch.from_numpy(X))


def test_an_ambiguous_archive_is_refused_with_its_names(tmp_path):
    np.savez(tmp_path / "t.npz", left=X, right=X)
    refused(tmp_path / "t.npz", "named x, found left, right")


def test_an_archive_without_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "t.npz")
    refused(tmp_path / "t.npz", "none")
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        archive.writestr("notes.txt", "not an array")
    refused(tmp_path / "t.npz", "t.npz")


@pytest.mark.parametrize("name", ["t.txt", "t", "t.npy.gz", "t.gz"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path, name):
    (tmp_path / name).write_text("1,2\n")
    refused(tmp_path / name, ", ".join(READERS))


CSVS = {
    "a,b\n1,2\n3,4\n": ("a", "b"),
    "1,2\n3,4\n": (),
    "a,b\r\n1,2\r\n3,4\r\n": ("a", "b"),
    "a,b\n1,2\n3,4": ("a", "b"),
    '"a","b"\n"1","2"\n3,4\n': ("a", "b"),
    "\ufeffa,b\n1,2\n3,4\n": ("a", "b"),
    "\ufeff1,2\n3,4\n": (),
    "1e0,2\n3.0,+4\n": (),
    "height (m),größe\n1,2\n3,4\n": ("height (m)", "größe"),
}


@pytest.mark.parametrize(("text", "columns"), CSVS.items())
def test_a_csv_has_a_header_where_its_first_line_is_not_numbers(tmp_path, text, columns):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8", newline="")
    table = read_table(tmp_path / "t.csv")
    assert table.x.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert table.columns == columns


BAD_CSVS = {
    "text": ("id,name,city\n1,ann,oslo\n2,bob,rome\n", "not numbers: name, city"),
    "one-word": ("a,b\n1,2\nx,4\n", "not numbers: a"),
    "date": ("day,b\n2020-01-01,2\n", "not numbers: day"),
    "missing": ("a,b\n1,\n3,4\n,5\n", "2 of 3 rows"),
    "nan": ("a,b\n1,nan\n3,4\n", "1 of 2 rows"),
    "ragged": ("a,b\n1,2\n3\n", "Expected 2 columns, got 1"),
    "header-only": ("a,b\n", "no rows"),
    "blank": ("\n", "not a readable"),
}


@pytest.mark.parametrize(("text", "match"), BAD_CSVS.values(), ids=BAD_CSVS)
def test_a_csv_that_is_no_table_of_numbers_is_refused(tmp_path, text, match):
    (tmp_path / "t.csv").write_text(text)
    refused(tmp_path / "t.csv", match)


def test_a_csv_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes("a,größe\n1,2\n".encode("latin-1"))
    refused(tmp_path / "t.csv", "not a readable")


def test_a_parquet_gives_its_columns_of_numbers(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [1, 2], "b": [True, False], "c": pa.array([0.5, 1.5], pa.float32())}), path)
    table = read_table(path)
    assert table.x.tolist() == [[1.0, 1.0, 0.5], [2.0, 0.0, 1.5]]
    assert table.columns == ("a", "b", "c")
    pq.write_table(pa.table({"a": [1, 2], "who": ["x", "y"], "when": pa.array([0, 1], pa.timestamp("s"))}), path)
    refused(path, "not numbers: who, when")
    pq.write_table(pa.table({"a": [1, None], "b": pa.nulls(2)}), path)
    refused(path, "2 of 2 rows")


@pytest.fixture(params=list(WRITERS))
def written_rows(request, tmp_path):
    return tmp_path / f"rows{request.param}"


def extreme_rows(n):
    """Numbers of all sizes, among them the ends of float32, both zeros, and numbers that no short decimal gives."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(n, 3)) * 10.0 ** rng.integers(-30, 30, size=(n, 3))).astype(np.float32)
    tiny, huge = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    x[0], x[1], x[2] = (tiny, huge, -huge), (0.0, -0.0, 0.1), (1 / 3, 16777217, np.finfo(np.float32).tiny)
    return torch.from_numpy(x)


@pytest.mark.parametrize("sizes", [[100], [1, 99], [33, 33, 34], [0, 100, 0]], ids=str)
def test_rows_come_back_to_the_last_bit_however_they_were_cut(written_rows, sizes):
    x = extreme_rows(100)
    write_rows(written_rows, iter(x.split(sizes)), x.shape)
    back = read_table(written_rows).x.float()
    assert torch.equal(back.view(torch.int32), x.view(torch.int32))


def test_rows_of_any_memory_layout_come_back(written_rows):
    x = extreme_rows(100)[:, :2].T.contiguous().T
    write_rows(written_rows, [x[::2]], (50, 2))
    assert torch.equal(read_table(written_rows).x.float(), x[::2])


def test_a_csv_keeps_the_names_of_its_columns(tmp_path):
    path = tmp_path / "t.csv"
    write_rows(path, [torch.eye(2)], (2, 2), ["left", "right"])
    assert read_table(path).columns == ("left", "right")
    write_rows(path, [torch.eye(2)], (2, 2))
    assert read_table(path).columns == ("x0", "x1")


def test_events_of_any_shape_are_kept_by_arrays(tmp_path, normal):
    x = normal("images", 4, 3, 2, 2).float()
    for name in ("t.npy", "t.npz"):
        write_rows(tmp_path / name, x.split(3), x.shape)
    assert np.array_equal(np.load(tmp_path / "t.npy"), x.numpy())
    assert np.array_equal(np.load(tmp_path / "t.npz")["x"], x.numpy())


def test_a_writer_that_is_stopped_leaves_what_was_there(written_rows):
    def stopped():
        yield torch.ones(2, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(written_rows, stopped(), (4, 2))
    assert not list(written_rows.parent.iterdir())
    write_rows(written_rows, [torch.eye(2)], (2, 2))
    with pytest.raises(KeyboardInterrupt):
        write_rows(written_rows, stopped(), (4, 2))
    assert torch.equal(read_table(written_rows).x.float(), torch.eye(2))
    assert list(written_rows.parent.iterdir()) == [written_rows]


def test_rows_are_refused_where_they_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"\.csv"):
        write_rows(tmp_path / "t.parquet", [torch.eye(2)], (2, 2))
    with pytest.raises(InputError, match="no folder"):
        write_rows(tmp_path / "missing" / "t.npy", [torch.eye(2)], (2, 2))


@pytest.mark.parametrize("suffix", ["npz", "npy", "csv"])
@pytest.mark.parametrize("shape", [(5, 2), (3, 2), (4, 3)])
def test_rows_that_do_not_make_the_promised_table_leave_no_file(tmp_path, suffix, shape):
    with pytest.raises(InputError):
        write_rows(tmp_path / f"x.{suffix}", iter([torch.zeros(4, 2)]), shape)
    assert list(tmp_path.iterdir()) == []


# labels


@pytest.mark.parametrize("kind", [np.int64, np.uint8, bool, np.int8])
def test_whole_numbers_beside_the_rows_are_labels(tmp_path, kind):
    np.savez(tmp_path / "t.npz", x=X, y=np.arange(len(X)).astype(kind))
    table = read_table(tmp_path / "t.npz")
    assert torch.equal(table.labels, torch.from_numpy(np.arange(len(X)).astype(kind)).long())
    assert torch.equal(table.x, torch.from_numpy(X))


@pytest.mark.parametrize(
    "y",
    [
        np.linspace(0, 1, len(X)),
        np.arange(len(X) - 1),
        np.zeros((len(X), 3), int),
        np.full(len(X), 2**64 - 1, np.uint64),
    ],
    ids=["real", "short", "columns", "huge"],
)
def test_another_array_beside_the_rows_is_left_alone(tmp_path, y):
    np.savez(tmp_path / "t.npz", x=X, y=y)
    table = read_table(tmp_path / "t.npz")
    assert table.labels is None
    assert len(table.x) == len(X)
