"""What mypy refuses, since settings have types: `make check` fails on an ignored error that is none."""

from flowgen.config import Config


def misspelled(config: Config) -> None:
    config.schedule.no_such_method()  # type: ignore[attr-defined]
    config.prediction.no_such_method()  # type: ignore[attr-defined]
    config.coupling.no_such_method()  # type: ignore[union-attr]
    config.pool.no_such_method()  # type: ignore[attr-defined]
    config.bridge.no_such_method()  # type: ignore[union-attr]
    config.objective.no_such_method()  # type: ignore[attr-defined]
    config.times.no_such_method()  # type: ignore[attr-defined]
    config.loss.no_such_method()  # type: ignore[attr-defined]
    config.weight.no_such_method()  # type: ignore[attr-defined]
    config.net.no_such_method()  # type: ignore[attr-defined]
    config.train.lr_schedule.no_such_method()  # type: ignore[attr-defined]
