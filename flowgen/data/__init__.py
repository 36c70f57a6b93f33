"""Data: distributions to sample from, tables to read, and the units of data and model."""

from flowgen.data.distributions import (
    TOYS,
    Blurred,
    Categorical,
    Checkerboard,
    Distribution,
    Gaussian,
    Pinwheel,
    circles,
    eight_gaussians,
    gaussian_grid,
    moons,
    rings,
    s_curve,
    spirals,
    swissroll,
)
from flowgen.data.images.arrays import Images
from flowgen.data.images.folder import ImageFolder, open_folder
from flowgen.data.images.pictures import write_grid
from flowgen.data.images.reading import read_images
from flowgen.data.scaling import Scaling
from flowgen.data.splitting import split
from flowgen.data.streams import FiniteDataset, Flipped, Scaled, TensorDataset, as_distribution, chunks
from flowgen.data.tables import Table, read_table

__all__ = [
    "TOYS",
    "Blurred",
    "Categorical",
    "Checkerboard",
    "Distribution",
    "FiniteDataset",
    "Flipped",
    "Gaussian",
    "ImageFolder",
    "Images",
    "Pinwheel",
    "Scaled",
    "Scaling",
    "Table",
    "TensorDataset",
    "as_distribution",
    "chunks",
    "circles",
    "eight_gaussians",
    "gaussian_grid",
    "moons",
    "open_folder",
    "read_images",
    "read_table",
    "rings",
    "s_curve",
    "spirals",
    "split",
    "swissroll",
    "write_grid",
]
