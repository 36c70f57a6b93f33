"""torchvision and diffusers beside flowgen: they can be imported, or one line says what to install."""

import re
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest

from flowgen.core import InputError
from flowgen.data import Scaling
from flowgen.evaluation import views
from flowgen.extras import torchvision_error, torchvision_fault

ROOT = Path(__file__).parent.parent
BROKEN = "raise RuntimeError('operator torchvision::nms\\ndoes not exist')"
INDEX = "--index-url https://download.pytorch.org/whl"
CASES = {
    ("2.13.0+cpu", "0.28.0"): f"--force-reinstall --no-deps torchvision==0.28.0+cpu {INDEX}/cpu",
    ("2.13.0+cu128", "0.28.0"): f"--force-reinstall --no-deps torchvision==0.28.0+cu128 {INDEX}/cu128",
    ("2.13.0", "0.28.0+cpu"): "--force-reinstall --no-deps torchvision==0.28.0",
    ("2.12.0", "0.28.0"): "torch==2.13.0 torchvision==0.28.0",
    ("2.12.0+cpu", "0.28.0"): f"torch==2.13.0+cpu torchvision==0.28.0+cpu {INDEX}/cpu",
}
"""Versions of torch and of torchvision, and what pip is to install."""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a torchvision with this code in place of the one that there is, beside torch of a version."""

    def put(code: str, torch: str = "2.13.0+cpu", torchvision: str = "0.28.0") -> None:
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision/__init__.py").write_text(code)
        for name, version, needs in (("torch", torch, "numpy"), ("torchvision", torchvision, "torch (==2.13.0)")):
            (tmp_path / f"{name}-{version}.dist-info").mkdir()
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: {needs}\n"
            (tmp_path / f"{name}-{version}.dist-info/METADATA").write_text(text)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(tmp_path)

    yield put
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]


@pytest.mark.parametrize("versions", CASES, ids=" ".join)
def test_one_line_says_which_torchvision_fits(installed: Any, versions: tuple[str, str]) -> None:
    installed(BROKEN, *versions)
    torch, torchvision = versions
    why = f"torchvision {torchvision} does not fit torch {torch} (operator torchvision::nms does not exist)"
    assert torchvision_fault() == f"{why}: pip install {CASES[versions]}"
    assert not [name for name in sys.modules if name.split(".")[0] == "torchvision"]


def test_a_torchvision_that_fits_has_no_fault(installed: Any) -> None:
    installed("")
    assert torchvision_error() is None
    assert torchvision_fault() is None


def test_without_torchvision_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert isinstance(torchvision_error(), ModuleNotFoundError)
    assert torchvision_fault() is None


def test_inception_says_what_torchvision_to_install(installed: Any, tmp_path: Path) -> None:
    installed(BROKEN)
    (tmp_path / "torch_fidelity").mkdir()
    (tmp_path / "torch_fidelity/__init__.py").write_text("import torchvision")
    with pytest.raises(InputError, match=r"torchvision==0\.28\.0\+cpu --index-url") as error:
        views.inception(Scaling(), None)
    assert "\n" not in str(error.value)


def test_the_pinned_torchvision_is_made_for_the_pinned_torch() -> None:
    pinned = dict(re.findall(r"^(torch|torchvision)==(.*)$", (ROOT / "constraints.txt").read_text(), re.M))
    told = re.findall(r"torch==(\S+) torchvision==(\S+) --index-url", (ROOT / "README.md").read_text())
    assert told == [(pinned["torch"], pinned["torchvision"])]
    if metadata.version("torchvision").partition("+")[0] != pinned["torchvision"]:
        pytest.skip("another torchvision is installed than the pinned one")
    (needed,) = (need for need in metadata.requires("torchvision") or () if re.match(r"torch\b", need))
    assert re.findall(r"==([\d.]+)", needed) == [pinned["torch"]]


def test_diffusers_and_torchvision_can_be_imported() -> None:
    import_module("diffusers")
    if fault := torchvision_fault():
        assert re.search(r": pip install .*torchvision==[\w.]+\+\w+ --index-url ", fault), fault
        pytest.skip(fault)
    assert hasattr(import_module("diffusers").UNet2DModel, "from_pretrained")
