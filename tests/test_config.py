"""Names become objects in one place, and every mistake is told in one line."""

import re
from typing import Any, get_type_hints

import flowgen_cli
import pytest
import typer

from flowgen import InputError, predictions, schedules
from flowgen.config import (
    COUPLINGS,
    GRIDS,
    PREDICTIONS,
    SAMPLERS,
    SCHEDULES,
    SOLVERS,
    TIMES,
    WEIGHTS,
    Config,
    make_config,
    sampling_by,
)
from flowgen.config.fields import Section
from flowgen.couplings import ExactOT, Independent, MultiscaleOT
from flowgen.data import TOYS
from flowgen.pairs import Pool
from flowgen.paths import bridge
from flowgen.settings import dump_toml, override, parse_setting, read_toml


def singular(schedule: str, prediction: str) -> bool:
    return schedule in ("linear", "cosine", "offset-cosine") and prediction in ("noise", "score")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_prediction_singular_at_the_start_is_refused(schedule, prediction):
    tree = {"data": "moons", "schedule": schedule, "prediction": prediction}
    if singular(schedule, prediction):
        with pytest.raises(InputError, match=f"prediction {prediction} is singular at t = 0 of the path {schedule},"):
            make_config(tree)
    else:
        assert make_config(tree).prediction == (predictions.EDM() if prediction == "edm" else PREDICTIONS[prediction])


@pytest.mark.parametrize("section", [Config, *Section.__subclasses__()], ids=lambda section: section.__name__)
def test_every_setting_has_a_type(section):
    # tests/typed.py holds that mypy sees it
    assert Any not in get_type_hints(section).values()


@pytest.mark.parametrize(
    "change",
    [
        *({"schedule": name} for name in SCHEDULES),
        *({"coupling": name} for name in COUPLINGS),
        *({"times": name} for name in TIMES),
        *({"schedule": "vp", "weight": name} for name in WEIGHTS),
        {"schedule": {"name": "ddpm", "steps": 100, "beta_min": 0.001, "beta_max": 0.2}},
        {
            "schedule": "ve",
            "prediction": {"name": "edm", "sigma_data": 1.0},
            "times": {"name": "log-normal", "mean": 0.0},
        },
        *({"schedule": "vp", "prediction": name} for name in PREDICTIONS),
        {"schedule": {"name": "vp", "beta_min": 0.2, "beta_max": 15.5}},
        {"coupling": {"name": "exact", "group": 100}},
        {"source": 'a "quoted" \\ näme 😀', "seed": 7, "train": {"lr": 1e-05, "steps": 10**9}},
        {"reflow": {"parent": "/runs/a b", "parent_hash": "00ff", "solver": "rk4"}},
    ],
    ids=str,
)
def test_a_configuration_survives_its_file(change, tmp_path):
    config = make_config({"data": "moons", **change})
    file = tmp_path / "config.toml"
    file.write_text(dump_toml(config.model_dump()))
    again = make_config(read_toml(file))
    assert again == config


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"dta": "moons"}, r"unknown configuration key dta \(did you mean data\?\)"),
        ({"train": {"step": 3}}, r"unknown configuration key train.step \(did you mean steps\?\)"),
        ({"net": {"widht": 3}}, r"net mlp 'widht' \(did you mean width\?\)"),
        ({"reflow": {"parent": "a", "parent_hash": "b", "pair": 3}}, r"reflow.pair \(did you mean pairs\?\)"),
        ({"schedule": "liner"}, r"unknown schedule 'liner' \(did you mean linear\?\)"),
        ({"coupling": "exat"}, r"unknown coupling 'exat' \(did you mean exact\?\)"),
        ({"times": "u-shape"}, r"unknown time distribution 'u-shape' \(did you mean u-shaped\?\)"),
        ({"prediction": "velocty"}, r"unknown prediction 'velocty' \(did you mean velocity\?\)"),
        (
            {"schedule": {"name": "vp", "beta": 3}},
            r"unknown parameter of schedule vp 'beta' \(did you mean beta_m..\?\)",
        ),
        ({"schedule": {"name": "vp", "beta_min": -1}}, "0 < beta_min <= beta_max"),
        ({"schedule": {"name": "vp", "beta_min": "low"}}, "schedule vp: beta_min: .*valid number"),
        ({"schedule": 3}, "schedule needs a name"),
        ({"prediction": 3}, "prediction needs a name"),
        ({"prediction": {"name": "noise", "sigma_data": 1.0}}, "prediction noise has no parameters, and no sigma_data"),
        ({"prediction": {"name": "edm", "sigma": 1.0}}, "sigma_data"),
        ({"weight": {"name": "unweighted", "gamma": 3.0}}, "weight unweighted has no parameters, and no gamma"),
        ({"objective": {"name": "flow-matching", "guidance": 2.0}}, "flow-matching has no parameters, and no guidance"),
        ({"prediction": {"name": "edm", "sigma_data": -1.0}}, "positive sigma_data"),
        ({"weight": "min_snr"}, "did you mean min-snr"),
        ({"weight": {"name": "min-snr", "gamma": 0}}, "positive gamma"),
        ({"weight": "likelihood"}, "infinite at the data"),
        ({"objective": "meanflow", "weight": "edm"}, "weighs all times alike"),
        ({"objective": "meanflow", "times": "log-normal"}, "choose logit-normal"),
        ({"pool": 3}, "pool is a table of batches, reuse"),
        ({"pool": {"reuse": 0}}, "at least one batch and one use"),
        ({"train": 3}, "train: .*not 3"),
        ({"train": {"steps": 0}}, "train.steps: .*greater than or equal to 1, not 0"),
        ({"train": {"lr": float("nan")}}, "train.lr: .*finite"),
        ({"train": {"lr": 0}}, "train.lr: .*greater than 0"),
        ({"seed": -1}, "seed: .*not -1"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_key(tree, message):
    with pytest.raises(InputError) as raised:
        make_config({"data": "moons", **tree})
    assert re.search(message, str(raised.value))
    assert "\n" not in str(raised.value)


def test_every_mistake_is_told_at_once():
    with pytest.raises(InputError, match=r"net mlp: depth.*; train.steps"):
        make_config({"data": "moons", "train": {"steps": 0}, "net": {"depth": 0}})


@pytest.mark.parametrize("schedule", ["vp", "ve"])
def test_a_diffusion_path_alone_means_a_diffusion(schedule):
    config = make_config({"data": "moons", "schedule": schedule})
    assert (config.prediction, config.coupling) == (predictions.noise, Independent())


def test_a_coupling_that_solves_something_shares_its_work():
    assert make_config({"data": "moons", "coupling": "exact"}).pool == Pool(100, 10)
    assert make_config({"data": "moons", "coupling": "independent"}).pool.reuse == 1


@pytest.mark.parametrize(
    ("settings", "pool"),
    [
        ({"pool": {"reuse": 3}}, Pool(100, 3)),
        ({"coupling": {"name": "exact", "group": 8000}, "train": {"batch_size": 50}}, Pool(160, 10)),
        ({"coupling": {"name": "exact", "group": 8000}, "pool": {"batches": 2}}, Pool(2, 10)),
        ({"data": "digits", "coupling": {"name": "exact", "group": 1000}}, Pool(16, 1)),
    ],
)
def test_a_pool_holds_the_group_unless_its_size_is_given(settings, pool):
    assert make_config({"data": "moons", **settings}).pool == pool


def test_the_bridge_coupling_has_the_noise_of_its_path():
    assert make_config({"data": "moons", "coupling": "bridge"}).bridge == bridge.BrownianBridge(1.0)
    config = make_config({"data": "moons", "coupling": {"name": "bridge", "sigma": 0.3}})
    assert (config.bridge, config.make_objective().bridge) == (
        bridge.BrownianBridge(0.3),
        bridge.BrownianBridge(0.3),
    )
    still = make_config({"data": "moons", "coupling": "bridge", "bridge": {"sigma": 0.0}})
    assert still.make_objective().bridge is None


def test_noise_on_the_path_wants_the_velocity():
    with pytest.raises(InputError, match="prediction velocity"):
        make_config({"data": "moons", "prediction": "data", "bridge": {"sigma": 0.1}})


def test_settings_reach_into_names_and_tables():
    tree = override({"data": "moons", "schedule": "vp"}, "schedule.beta_max", 15.0)
    assert make_config(tree).schedule == schedules.VP(beta_max=15.0)
    tree = override({"data": "moons"}, "coupling.group", 64)
    assert make_config(tree).coupling == MultiscaleOT(64)
    # naming again what is there keeps its parameters; naming another starts from that one's defaults
    tree = {"data": "moons", "coupling": {"name": "exact", "group": 7}}
    assert make_config(override(tree, "coupling", "exact")).coupling == ExactOT(7)
    assert make_config(override(tree, "coupling", "independent")).coupling == Independent()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("a=1", 1), ("a=1e-3", 1e-3), ("a=true", True), ("a=vp", "vp"), ('a="1"', "1"), ("a=x=y", "x=y"), ("a=", "")],
)
def test_a_setting_is_read_as_toml_or_else_as_text(setting, value):
    assert parse_setting(setting) == ("a", value)


@pytest.mark.parametrize("setting", ["a", "=1", ""])
def test_a_setting_needs_key_and_value(setting):
    with pytest.raises(InputError, match="expected key=value"):
        parse_setting(setting)


@pytest.mark.parametrize(
    ("option", "table"),
    [
        ("data", TOYS),
        ("--coupling", COUPLINGS),
        ("--path", SCHEDULES),
        ("--target", PREDICTIONS),
        ("--solver", SOLVERS),
        ("--weight", WEIGHTS),
        ("--times", TIMES),
        ("--grid", GRIDS),
    ],
)
def test_the_help_of_the_commands_names_all_there_is(option, table):
    commands = typer.main.get_command(flowgen_cli.app).commands
    taking_some = {"--solver": {"likelihood", "edit"}}.get(option, set())
    parameters = [p for name, command in commands.items() if name not in taking_some for p in command.params]
    helps = [p.help for p in parameters if option in p.opts]
    assert helps
    for text in helps:
        assert [name for name in table if not re.search(rf"\b{re.escape(name)}\b", text)] == []


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_the_help_of_what_samples_names_all_samplers(command):
    (text,) = (p.help for p in typer.main.get_command(flowgen_cli.app).commands[command].params if "--solver" in p.opts)
    assert [name for name in SAMPLERS if f" {name}" not in text] == []


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_made_for_the_path_and_by_the_seed(name):
    chosen, _ = sampling_by(name, schedules.VP(), seed=5)
    assert chosen.schedule == schedules.VP()
    assert getattr(chosen, "seed", 5) == 5


@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_of_any_name_goes_from_one_time_to_another(grid):
    schedule = schedules.DDPM(steps=70)
    _, spacing = sampling_by(None, schedule, grid=grid)
    times = spacing(schedule, 7, 0.0, 1.0)
    assert (len(times), times[-1].item()) == (8, 1.0)
    assert times[0].item() == pytest.approx(0.129 if grid == "leading" else 0, abs=1e-3)


@pytest.mark.parametrize(("schedule", "hi"), [(schedules.VP(), 1.0), (schedules.DDPM(), 0.999)])
@pytest.mark.parametrize("grid", ["trailing", "leading", "linspaced"])
def test_a_grid_of_steps_needs_a_schedule_that_has_them(grid, schedule, hi):
    _, spacing = sampling_by(None, schedule, grid=grid)
    with pytest.raises(InputError, match=f"the grid {grid} is of the steps of the path ddpm"):
        spacing(schedule, 5, 0.0, hi)


def test_noise_is_that_of_the_sampler():
    assert sampling_by("ddim", schedules.VP(), noise=0.3).solver.eta == 0.3
    assert sampling_by("sde", schedules.VP(), noise=0.0).solver.stochastic is False
    assert sampling_by("sde", schedules.VP()).solver.level == 1


@pytest.mark.parametrize(
    ("solver", "noise", "grid", "words"),
    [
        ("heun", 0.5, None, "only some solvers can be given more or less noise: ddim"),
        ("ddpm", 0.5, None, "only some solvers"),
        (None, 0.5, None, "only some solvers"),
        ("unipx", None, None, "did you mean unipc"),
        ("ddim", None, "karas", "did you mean karras"),
        ("ddim", 2.0, None, "0 <= eta <= 1"),
    ],
)
def test_a_way_of_sampling_that_there_is_not_is_refused(solver, noise, grid, words):
    with pytest.raises(InputError, match=words):
        sampling_by(solver, schedules.VP(), noise, grid)


@pytest.mark.parametrize("name", ["exact", "sinkhorn", "partial", "bridge"])
def test_matrices_beyond_memory_are_refused(name):
    with pytest.raises(InputError, match="at most 8192 rows together, not 51200"):
        make_config({"data": "moons", "coupling": {"name": name, "group": 0}})
    assert make_config({"data": "moons", "coupling": {"name": name, "group": 0}, "pool": {"batches": 16}})
    assert make_config({"data": "moons", "coupling": {"name": "multiscale", "group": 0}})
