"""`sample` returns every row that was asked for, in one tensor; `sample_chunks` yields the same rows, bit for bit."""

import re
from pathlib import Path

import pytest
import torch

from flowgen import Model, data, grids, heun, nn, sample, sample_chunks
from flowgen.sampling import chunk_rows

SOURCE = data.Gaussian()


@pytest.fixture
def model():
    scaling = data.Scaling(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5]))
    return Model(nn.MLP(dim=2, width=8, depth=1), scaling=scaling)


def test_all_rows_come_in_one_tensor(model):
    x = sample(model, SOURCE, 20_000, grids.uniform(1), heun)
    assert x.shape == (20_000, 2)
    assert x.device.type == "cpu"
    assert chunk_rows(SOURCE.shape) < 20_000


@pytest.mark.parametrize("chunk", [None, 64, 100])
def test_chunks_are_the_rows_of_the_whole(model, chunk):
    given = (Model(Shifted(), scaling=model.scaling), SOURCE, 9000, grids.uniform(2), heun)
    cond = torch.arange(9000)
    whole = sample(*given, seed=3, cond=cond)
    chunks = list(sample_chunks(*given, seed=3, cond=cond, chunk=chunk))
    assert len(chunks) > 1
    assert torch.equal(torch.cat(chunks), whole)
    assert torch.equal(sample(*given, seed=3, cond=cond, chunk=chunk), whole)


class Shifted(torch.nn.Module):
    """A net that reads the condition of each row."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x, t, s, cond=None):
        return torch.sin(self.weight * x.flip(1) + cond.reshape(-1, *[1] * (x.ndim - 1)))


def test_whole_images_come_in_one_tensor():
    source = data.Gaussian((1, 32, 32))
    x = sample(Model(Shifted()), source, 300, grids.uniform(1), heun, cond=torch.zeros(300))
    assert x.shape == (300, 1, 32, 32)
    assert chunk_rows(source.shape) < 300


def test_the_python_of_a_model_card_runs(trained, table, tmp_path, monkeypatch):
    monkeypatch.chdir(trained(table, tmp_path / "run").folder)
    (code,) = re.findall(r"^```python\n(.*?)^```$", Path("README.md").read_text(), re.M | re.S)
    namespace = {}
    exec(code, namespace)
    assert namespace["x"].shape == (64, 3)
