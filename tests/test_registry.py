"""The registry is the list of all parts that have a name, and what it says of them is so."""

import inspect
import subprocess
import sys

import pytest

from flowgen import config, couplings, data, losses, predictions, schedules, times, weightings
from flowgen.core import InputError
from flowgen.paths import bridge
from flowgen.registry import KINDS, Entry, Objects, names
from flowgen.samplers import ode

EVERY = [(kind, name) for kind, entries in KINDS.items() for name in entries]
TABLES = {
    "toy": data.TOYS,
    "schedule": schedules.SCHEDULES,
    "bridge": bridge.BRIDGES,
    "prediction": predictions.PREDICTIONS,
    "coupling": config.COUPLINGS,
    "objective": config.OBJECTIVES,
    "time distribution": times.TIMES,
    "loss": losses.LOSSES,
    "weight": weightings.WEIGHTS,
    "net": config.NETS,
    "lr_schedule": config.LR_SCHEDULES,
    "solver": ode.SOLVERS,
    "sampler": config.SAMPLERS,
    "grid": config.GRIDS,
}


@pytest.fixture(params=EVERY, ids=": ".join)
def entry(request) -> Entry:
    kind, name = request.param
    return KINDS[kind][name]


def test_help_is_how_the_docstring_begins(entry):
    made = entry.load()
    assert entry.help
    assert entry.help.splitlines() == [entry.help.rstrip(". ")]
    if inspect.isclass(made) or inspect.isfunction(made):
        text = " ".join((made.__doc__ or "").split()).removeprefix("Return ")
        assert text.casefold().startswith(entry.help.casefold())


def test_each_kind_has_its_table():
    assert TABLES.keys() == KINDS.keys()
    for kind, table in TABLES.items():
        assert list(table) == names(kind)
        assert list(table.values()) == [entry.load() for entry in KINDS[kind].values()]


@pytest.mark.parametrize("kind", KINDS)
def test_no_object_has_two_names(kind):
    targets = [entry.target for entry in KINDS[kind].values()]
    assert len(set(targets)) == len(targets)


@pytest.mark.parametrize(
    ("kind", "module", "base"),
    [
        ("schedule", schedules, schedules.Schedule),
        ("bridge", bridge, bridge._Noise),
        ("time distribution", times, times.TimeDistribution),
        ("solver", ode, ode.Solver),
        ("objective", config.objectives, config.objectives.ObjectiveConfig),
    ],
)
def test_what_a_module_defines_of_a_kind_has_a_name(kind, module, base):
    made = {obj if inspect.isclass(obj) else type(obj) for obj in Objects(kind).values()}
    defined = {
        thing
        for thing in vars(module).values()
        if inspect.isclass(thing) and issubclass(thing, base) and thing.__module__ == module.__name__
    }
    assert {thing for thing in defined if thing is not base and not thing.__name__.startswith("_")} <= made


@pytest.mark.parametrize(("kind", "module"), [("loss", losses), ("weight", weightings)], ids=["loss", "weight"])
def test_every_loss_and_weight_has_a_name(kind, module):
    public = [getattr(module, name) for name in module.__all__ if name not in ("Loss", "Weight")]
    assert {thing for thing in public if inspect.isclass(thing)} == set(Objects(kind).values())


def test_groups_are_parts_of_a_kind():
    assert names("solver", "", "adaptive") == [name for name in names("solver") if name != "jump"]
    assert [name for name, made in config.OBJECTIVES.items() if made.maps] == names("objective", "map", "taught")
    assert [name for name, made in config.OBJECTIVES.items() if made.taught or made.pairs] == names(
        "objective", "taught"
    )
    assert [name for name, made in config.SOLVERS.items() if isinstance(made, ode.AdaptiveSolver)] == names(
        "solver", "adaptive"
    )
    assert "semidiscrete" not in couplings.COUPLINGS


def test_a_name_that_is_near_is_proposed():
    with pytest.raises(InputError, match=r"unknown schedule 'linaer' \(did you mean linear\?\): choose from linear, "):
        schedules.SCHEDULES("linaer")


@pytest.mark.costly
def test_nothing_is_imported_before_it_is_asked_for():
    script = (
        "import sys; from flowgen.registry import Objects; made = Objects('schedule'); assert {'vp'} < {*made};"
        "assert not {'torch', 'numpy', 'flowgen.schedules'} & {*sys.modules};"
        "made['vp']; assert 'flowgen.schedules' in sys.modules and 'flowgen.couplings' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
