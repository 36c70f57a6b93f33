"""The groups of options that the help of a command shows, in their order."""

from __future__ import annotations

__all__ = ["GROUPS", "RUN", "group_of", "groups"]

RUN = "Run"
"""The last group: where results go, and what is the same whatever is computed. It has all that no other group lists."""

GROUPS: dict[str, dict[str, str]] = {
    "train": {
        "Data": "source header label-column image-size flip strict",
        "Pairs": "coupling ot-batch",
        "Model": "objective path prediction guidance net size",
        "Training": "steps batch-size accumulate lr weight times precision compile preview-every",
    },
    "reflow": {
        "Pairs": "pairs inverted guidance",
        "Training": "rounds steps stall",
    },
    "distill": {
        "Student": "method steps",
        "Pairs": "pairs guidance",
        "Training": "train-steps",
    },
    "train-classifier": {
        "Training": "steps batch-size",
    },
    "sample": {
        "Samples": "num trajectories",
        "Solver": "solver grid noise path steps ema",
        "Labels": "label labels per-label",
        "Guidance": "guidance guidance-interval guidance-rescale weak classifier-guidance",
    },
    "edit": {
        "Edit": "mask outpaint upscale strength toward invert num frames resample header",
        "Solver": "solver steps ema",
        "Labels": "label guidance",
    },
    "evaluate": {
        "Comparison": "num repeats against header features weights neighbours",
        "Solver": "solver grid noise steps guidance",
    },
    "likelihood": {
        "Rows": "num header label",
        "Solver": "solver steps hutchinson ema",
    },
    "couplings": {
        "Data": "source header",
        "Pairs": "coupling ot-batch batch-size batches",
    },
}
"""Options by command and group; a command that is not here has them in one list."""


def groups(command: str) -> list[str]:
    """Return the names of a command's groups; none of a command whose options are one list."""
    return [*GROUPS[command], RUN] if command in GROUPS else []


def group_of(command: str, option: str) -> str:
    """Return the group of an option such as `--steps`."""
    named = option.removeprefix("--")
    return next((group for group, names in GROUPS[command].items() if named in names.split()), RUN)
