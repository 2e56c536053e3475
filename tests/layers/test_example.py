"""The worked example of docs/layers.md: it is a layer, and a package that metad finds."""

import importlib
import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from metad import layers
from metad.config.parse import parse
from metad.errors import ConfigError
from metad.layers.testing import Conformance

EXAMPLE = Path(__file__).parents[2] / "examples" / "layer"


def load_example():
    spec = importlib.util.spec_from_file_location("metad_files", EXAMPLE / "metad_files.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules["metad_files"] = module
    spec.loader.exec_module(module)
    return module


class TestFiles(Conformance):
    layer = load_example().FilesLayer


def install(target: Path) -> None:
    """The example installed by pip, without fetching its build backend from a registry."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    (target / "metad_files.py").write_bytes((EXAMPLE / "metad_files.py").read_bytes())
    info = target / "metad_files-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in members.items())
        for group, members in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    layers.find.cache_clear()
    yield tmp_path
    layers.find.cache_clear()
    sys.modules.pop("metad_files", None)


def config_of(tmp_path, text):
    return parse(text, None, tmp_path / "data", {})


def test_an_installed_layer_is_found_by_its_entry_point(installed, tmp_path):
    config = config_of(tmp_path, '[store]\nlayer = "files"\n')
    assert layers.check(config) == {"root": str(tmp_path / "data" / "files")}
    assert layers.find("files").__module__ == "metad_files"
    assert "files" in layers.names()
    assert layers.directories(config) == []


def test_its_settings_are_its_own_to_check(installed, tmp_path):
    config = config_of(tmp_path, '[store]\nlayer = "files"\n[layer]\nroot = "here"\n')
    with pytest.raises(ConfigError, match="layer: root: must be an absolute path"):
        layers.check(config)


def test_a_directory_elsewhere_is_made_and_named_to_the_hub(installed, tmp_path):
    there = tmp_path / "else" / "where"
    text = f'[store]\nlayer = "files"\n[layer]\nroot = {json.dumps(str(there))}\n'
    assert layers.directories(config_of(tmp_path, text)) == [there]
    assert there.is_dir()


@pytest.mark.parametrize(
    ("value", "reason"),
    [("metad_files:Nothing", "cannot be loaded"), ("no_such_module:X", "cannot be loaded"),
     ("json:dumps", "is not a metad.layers.base.Layer"), ("broken:X", "ZeroDivisionError")],
)  # fmt: skip
def test_a_layer_that_cannot_be_loaded_is_one_line(installed, tmp_path, value, reason):
    (installed / "broken.py").write_text("1 / 0\n")
    points = installed / "metad_files-1.0.dist-info" / "entry_points.txt"
    points.write_text(f"[metad.layers]\nbad = {value}\n")
    with pytest.raises(ConfigError, match=reason) as caught:
        layers.check(config_of(tmp_path, '[store]\nlayer = "bad"\n'))
    assert "\n" not in str(caught.value)


def test_a_layer_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(ConfigError, match=r"no layer fils; here are .*log, null, sort"):
        layers.check(config_of(tmp_path, '[store]\nlayer = "fils"\n'))


def test_ours_cannot_be_replaced(installed, tmp_path):
    points = installed / "metad_files-1.0.dist-info" / "entry_points.txt"
    points.write_text("[metad.layers]\nlog = metad_files:FilesLayer\n")
    assert layers.find("log").__module__ == "metad.layers.logs"


@pytest.mark.parametrize("name", ["log", "null"])
def test_a_layer_without_settings_takes_none(tmp_path, name):
    with pytest.raises(ConfigError, match=r"layer: .*knows no setting root"):
        layers.check(config_of(tmp_path, f'[store]\nlayer = "{name}"\n[layer]\nroot = "/x"\n'))


@pytest.mark.slow
def test_the_example_imports_nothing_private():
    source = (EXAMPLE / "metad_files.py").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(EXAMPLE / "metad_files.py")],
        capture_output=True, text=True, check=False, cwd=EXAMPLE.parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "._" not in source.replace("self._", "")
