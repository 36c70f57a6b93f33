"""All parts that have a name: plain data, from which help, choices, messages and tests are made.

A new part is one class or function, and its line here. Nothing is imported before its object is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, final

__all__ = ["KINDS", "Entry", "Objects", "names"]

T = TypeVar("T")


class Entry(NamedTuple):
    """A part with a name.

    target: the module and the object in it: a class that is made with parameters, or an object.
    help: what it is, in one line: how its docstring begins, where it has one.
    options: what only parts of its kind have; `group`, which of them it belongs to.
    """

    target: str
    help: str
    options: Mapping[str, Any] = MappingProxyType({})

    def load(self) -> Any:
        """Import the object."""
        module, _, name = self.target.partition(":")
        return getattr(import_module(module), name)


_ADAPTIVE, _JUMP = {"group": "adaptive"}, {"group": "jump"}
_DDPM = {"group": "ddpm"}  # a grid of the steps of that path
_MAP, _TAUGHT = {"group": "map"}, {"group": "taught"}  # objectives of flow maps, of data or of another run alone
_DRAWN = {"group": "drawn"}  # couplings that may take a data row twice, or never
_RUN = {"group": "run"}  # a coupling that needs all rows of a run first

KINDS: dict[str, dict[str, Entry]] = {
    "toy": {
        "moons": Entry("flowgen.data:moons", "Two half circles"),
        "circles": Entry("flowgen.data:circles", "Two circles"),
        "8gaussians": Entry("flowgen.data:eight_gaussians", "Eight Gaussians on a circle"),
        "25gaussians": Entry("flowgen.data:gaussian_grid", "Side x side Gaussians on a square grid around the origin"),
        "checkerboard": Entry("flowgen.data:Checkerboard", "Uniform on the eight dark squares of a 4 x 4 board"),
        "spirals": Entry("flowgen.data:spirals", "Two arms of an Archimedean spiral"),
        "pinwheel": Entry("flowgen.data:Pinwheel", "Gaussian arms, each bent by an angle that grows with the radius"),
        "swissroll": Entry(
            "flowgen.data:swissroll", "The first and last coordinate of scikit-learn's `make_swiss_roll`"
        ),
        "s-curve": Entry("flowgen.data:s_curve", "The first and last coordinate of scikit-learn's `make_s_curve`"),
        "rings": Entry("flowgen.data:rings", "Concentric circles, equally likely"),
        "gaussian": Entry("flowgen.data:Gaussian", "The standard normal distribution"),
    },
    "schedule": {
        "linear": Entry("flowgen.schedules:Linear", "The straight path"),
        "cosine": Entry("flowgen.schedules:Cosine", "A quarter turn"),
        "vp": Entry("flowgen.schedules:VP", "The variance-preserving diffusion with linear beta"),
        "ddpm": Entry("flowgen.schedules:DDPM", "The diffusion of DDPM in its own steps"),
        "offset-cosine": Entry("flowgen.schedules:OffsetCosine", "The cosine schedule of improved DDPM"),
        "ve": Entry("flowgen.schedules:VE", "The variance-exploding diffusion"),
    },
    "bridge": {
        "constant": Entry("flowgen.paths.bridge:ConstantBridge", "gamma = sigma at all times"),
        "brownian": Entry("flowgen.paths.bridge:BrownianBridge", "gamma = sigma sqrt(t (1 - t)), a Brownian bridge"),
    },
    "prediction": {
        "velocity": Entry("flowgen.predictions:velocity", "y = dx_t/dt"),
        "data": Entry("flowgen.predictions:data", "y = x1"),
        "noise": Entry("flowgen.predictions:noise", "y = x0"),
        "v": Entry("flowgen.predictions:v", "y = alpha x0 - sigma x1"),
        "score": Entry("flowgen.predictions:score", "y = grad log p(x_t | x1) = -x0 / sigma"),
        "edm": Entry("flowgen.predictions:EDM", "EDM's network F, never singular"),
    },
    "coupling": {
        "independent": Entry("flowgen.couplings:Independent", "The pairs unchanged"),
        "multiscale": Entry("flowgen.couplings:MultiscaleOT", "Optimal transport for the squared distance"),
        "exact": Entry("flowgen.couplings:ExactOT", "Exact minibatch optimal transport for the squared distance"),
        "sinkhorn": Entry("flowgen.couplings:Sinkhorn", "Entropic optimal transport coupling"),
        "semidiscrete": Entry(
            "flowgen.config.semidiscrete:SemidiscreteConfig", "The potentials of all training rows", _RUN
        ),
        "unbalanced": Entry(
            "flowgen.couplings:Unbalanced",
            "Entropic optimal transport that holds the source and relaxes the data",
            _DRAWN,
        ),
        "partial": Entry("flowgen.couplings:Partial", "Exact partial optimal transport", _DRAWN),
        "bridge": Entry("flowgen.couplings:SchroedingerBridge", "The ends of the Schroedinger bridge"),
    },
    "objective": {
        "flow-matching": Entry("flowgen.config.objectives:FlowMatchingConfig", "A velocity"),
        "meanflow": Entry("flowgen.config.objectives:MeanFlowConfig", "A flow map by its derivative", _MAP),
        "shortcut": Entry("flowgen.config.objectives:ShortcutConfig", "A flow map by its halves", _MAP),
        "alpha-flow": Entry("flowgen.config.objectives:AlphaFlowConfig", "A flow map by a first share", _MAP),
        "consistency": Entry("flowgen.config.objectives:ConsistencyConfig", "A flow map to the data alone", _MAP),
        "endpoint": Entry("flowgen.config.objectives:EndPointConfig", "The ends of the pairs of a reflow", _TAUGHT),
        "progressive": Entry("flowgen.config.objectives:ProgressiveConfig", "Jumps along an even grid", _TAUGHT),
    },
    "time distribution": {
        "uniform": Entry("flowgen.times:Uniform", "t ~ U[0, 1]"),
        "stratified": Entry("flowgen.times:Stratified", "One uniform time in each of n equal strata"),
        "discrete": Entry("flowgen.times:Discrete", "One of `steps` even times"),
        "logit-normal": Entry("flowgen.times:LogitNormal", "t = sigmoid(mean + std z), z ~ N(0, 1)"),
        "log-normal": Entry("flowgen.times:LogNormal", "Times at which log(sigma / alpha) ~ N(mean, std^2)"),
        "u-shaped": Entry("flowgen.times:UShaped", "p(t) proportional to exp(a t) + exp(a (1 - t))"),
    },
    "loss": {
        "squared": Entry("flowgen.losses:Squared", "The mean of e^2 over the values"),
        "pseudo-huber": Entry("flowgen.losses:PseudoHuber", "sqrt(|e|^2 + d^2) - d with d = c sqrt(dim)"),
        "adaptive": Entry("flowgen.losses:AdaptiveLoss", "The mean of e^2 over (mean + c)^power"),
    },
    "weight": {
        "unweighted": Entry("flowgen.weightings:Unweighted", "1: the squared error of the prediction as it is"),
        "simple": Entry("flowgen.weightings:Simple", "1 for noise, SNR = alpha^2 / sigma^2 for data"),
        "snr": Entry("flowgen.weightings:TruncatedSNR", "max(SNR, least) for data"),
        "min-snr": Entry("flowgen.weightings:MinSNR", "min(SNR, gamma) for data"),
        "sigmoid": Entry("flowgen.weightings:Sigmoid", "sigmoid(bias - log SNR) d log SNR / dt / 2 for noise"),
        "edm": Entry("flowgen.weightings:EDMWeight", "(s^2 + sigma_data^2) / (s sigma_data)^2 for data"),
        "likelihood": Entry("flowgen.weightings:Likelihood", "d log SNR / dt / 2 for noise"),
    },
    "net": {
        "mlp": Entry("flowgen.config.nets:MLPConfig", "A perceptron for rows"),
        "resmlp": Entry("flowgen.config.nets:ResMLPConfig", "A residual perceptron"),
        "unet": Entry("flowgen.config.nets:UNetConfig", "The U-Net"),
        "dit": Entry("flowgen.config.nets:DiTConfig", "The diffusion transformer"),
    },
    "lr_schedule": {
        "constant": Entry("flowgen.training.optim:constant", "The rate lr after the warm-up"),
        "cosine": Entry("flowgen.training.optim:cosine", "Half a cosine from lr down to 0 after the warm-up"),
    },
    "solver": {
        "euler": Entry("flowgen.samplers.ode:euler", "Euler's method, of order 1"),
        "midpoint": Entry("flowgen.samplers.ode:midpoint", "The midpoint method, of order 2"),
        "heun": Entry("flowgen.samplers.ode:heun", "Heun's method, of order 2"),
        "rk4": Entry("flowgen.samplers.ode:rk4", "The classical Runge-Kutta method, of order 4"),
        "ab2": Entry("flowgen.samplers.ode:ab2", "The two-step Adams-Bashforth method, of order 2"),
        "dopri5": Entry("flowgen.samplers.ode:dopri5", "Dormand and Prince's method of order 5", _ADAPTIVE),
        "dopri8": Entry("flowgen.samplers.ode:dopri8", "Dormand and Prince's method of order 8", _ADAPTIVE),
        "bosh3": Entry("flowgen.samplers.ode:bosh3", "Bogacki and Shampine's method of order 3", _ADAPTIVE),
        "adaptive-heun": Entry("flowgen.samplers.ode:adaptive_heun", "Heun's method with steps of its own", _ADAPTIVE),
        "jump": Entry("flowgen.samplers.flow_map:jump", "A flow map's own step", _JUMP),
    },
    "sampler": {
        "ddim": Entry("flowgen.config.samplers:ddim", "Denoising diffusion implicit models"),
        "ddpm": Entry("flowgen.config.samplers:ddpm", "DDPM's sampler, with the least variance"),
        "ddpm-large": Entry("flowgen.config.samplers:ddpm_large", "DDPM's sampler, with the greatest variance"),
        "dpm++2m": Entry("flowgen.config.samplers:dpmpp_2m", "DPM-Solver++ of order 2, multistep"),
        "dpm++3m": Entry("flowgen.config.samplers:dpmpp_3m", "DPM-Solver++ of order 3, multistep"),
        "unipc": Entry("flowgen.config.samplers:unipc", "UniPC of order 2"),
        "edm": Entry("flowgen.config.samplers:edm", "EDM's stochastic sampler"),
        "sde": Entry("flowgen.config.samplers:sde", "The Euler-Maruyama method for the reverse diffusion"),
        "pc": Entry("flowgen.config.samplers:pc", "Predictor and corrector"),
        "langevin": Entry("flowgen.config.samplers:langevin", "Annealed Langevin dynamics"),
    },
    "grid": {
        "uniform": Entry("flowgen.sampling:even", "`grids.uniform`, on any path"),
        "log-snr": Entry(
            "flowgen.samplers.grids:log_snr", "Steps + 1 times from lo to hi, evenly spaced in log(alpha^2 / sigma^2)"
        ),
        "karras": Entry(
            "flowgen.samplers.grids:karras", "Steps + 1 times from lo to hi, evenly spaced in (sigma / alpha)^(1 / rho)"
        ),
        "quadratic": Entry("flowgen.config.samplers:quadratic", "`grids.quadratic`, on any path"),
        "shifted": Entry("flowgen.config.samplers:shifted", "`grids.shifted` by 3, on any path"),
        "trailing": Entry(
            "flowgen.config.samplers:trailing", "Steps of the path from its first, T, every T / steps of them", _DDPM
        ),
        "leading": Entry("flowgen.config.samplers:leading", "Steps of the path counted from the data", _DDPM),
        "linspaced": Entry(
            "flowgen.config.samplers:linspaced",
            "Steps of the path evenly from its first to its last, and then the data",
            _DDPM,
        ),
    },
}
"""The parts of each kind, by what the kind is called in messages."""


def names(kind: str, *groups: str) -> list[str]:
    """Return the names of the parts of a kind, or of some of its groups; the group of most is ''."""
    return [name for name, entry in KINDS[kind].items() if not groups or entry.options.get("group", "") in groups]


@final
class Objects(Mapping[str, T]):
    """The objects of a kind, or of some of its groups, by name; each is imported when it is asked for."""

    def __init__(self, kind: str, *groups: str) -> None:
        self.entries = {name: KINDS[kind][name] for name in names(kind, *groups)}

    def __getitem__(self, name: str) -> T:
        found: T = self.entries[name].load()
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
