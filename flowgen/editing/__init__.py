"""Editing with a trained flow: known parts of the data stay, and the flow generates the rest.

A measurement y = A x1 says what is known. `PiGDM` guides a field there, `RePaint` sets it after every step,
and `project` makes it exact in the end. `noised` goes a part of the way to noise, for the flow to come back; `inverted`
goes all of it, and `slerp` goes between two such ends.
"""

from flowgen.editing.guiding import PiGDM, Spread, unit_variance
from flowgen.editing.inversion import from_time, inverted, noised, slerp
from flowgen.editing.measurements import Downsampled, Grey, Mask, Measurement, framed, project
from flowgen.editing.repaint import RePaint, resampled

__all__ = [
    "Downsampled",
    "Grey",
    "Mask",
    "Measurement",
    "PiGDM",
    "RePaint",
    "Spread",
    "framed",
    "from_time",
    "inverted",
    "noised",
    "project",
    "resampled",
    "slerp",
    "unit_variance",
]
