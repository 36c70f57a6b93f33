"""The help of options that take a name, made of the registry."""

from __future__ import annotations

from collections.abc import Sequence

from flowgen.registry import names


def _listed(kind: str, *groups: str) -> str:
    return ", ".join(names(kind, *groups))


def _either(choices: Sequence[str]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


DATA_HELP = (
    f"{_listed('toy')}; a table: FILE.npy, .npz, .csv, .parquet; or images: digits, a folder, an idx file, an array in "
    ".npy or .npz, hub:NAME."
)
COUPLING_HELP = _either(names("coupling"))
OBJECTIVE_HELP = f"{_listed('objective', '')}; one step: {_listed('objective', 'map')}."
METHOD_HELP = f"{_either([*names('objective', 'taught'), *names('objective', 'map')])}."
PATH_HELP = f"{_either(names('schedule'))}."
PREDICTION_HELP = f"{_either(names('prediction'))}."
WEIGHT_HELP = f"Of the times in the loss: {_listed('weight')}."
TIMES_HELP = f"{_either(names('time distribution'))}."
NET_HELP = f"{_either(names('net'))}."
SOLVER_HELP = f"{_listed('solver', '')}; {_listed('solver', 'adaptive')}; {_listed('solver', 'jump')}."
ODE_HELP = f"{_listed('solver', '')}; {names('solver', 'adaptive')[0]} and other adaptives."
SAMPLER_HELP = f"{SOLVER_HELP[:-1]}; {_listed('sampler')}."
GRID_HELP = f"Where the solver steps: {_listed('grid', '')}; on ddpm {_listed('grid', 'ddpm')}."
NOISE_HELP = "How much the solver draws: ddim's eta, edm's churn, the level of sde, the step size of pc and langevin."
HEADER_HELP = "Whether the first line of a .csv holds names: yes or no."
