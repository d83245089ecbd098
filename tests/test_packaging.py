"""pyproject.toml and constraints.txt, as text: nothing is installed here."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(text) for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts]
OTHERS = [requirement for requirement in REQUIREMENTS if requirement.name != PROJECT["name"]]
"""Those of the base and of all extras on other projects than this one."""
PACKAGES = [pattern.rstrip("*") for pattern in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]


def read_constraints() -> dict[str, str]:
    """Name → version; every line but comments is `name==version`."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


PINS = read_constraints()


def test_every_dependency_has_its_tested_version_in_constraints_within_its_range() -> None:
    missing = [requirement.name for requirement in OTHERS if canonicalize_name(requirement.name) not in PINS]
    assert missing == []
    outside = [str(each) for each in OTHERS if not each.specifier.contains(PINS[canonicalize_name(each.name)])]
    assert outside == []


def test_constraints_pin_each_project_once_and_to_no_single_build() -> None:
    """A build such as 2.13.0+cpu would decide for the user whether there is a GPU."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    names = [canonicalize_name(name) for name in re.findall(r"^([^#\s]+)==", text, re.MULTILINE)]
    assert len(names) == len(set(names))
    assert [version for version in PINS.values() if "+" in version] == []


def test_torch_is_a_range_in_the_package_and_pinned_in_constraints_alone() -> None:
    text, gpu = ({each.name: each for each in map(Requirement, EXTRAS[extra])}["torch"] for extra in ("text", "gpu"))
    assert [specifier.operator for specifier in text.specifier] == [">="]
    assert str(gpu.specifier) == f"!={PINS['torch']}+cpu", "[gpu] refuses the CPU build of the tested version"


def test_no_dependency_is_pinned_in_the_package() -> None:
    """A library that pins what it needs cannot be installed next to others."""
    assert [str(each) for each in OTHERS if any(specifier.operator == "==" for specifier in each.specifier)] == []


def test_extras_name_only_extras_that_exist() -> None:
    named = {
        extra for requirement in REQUIREMENTS if requirement.name == PROJECT["name"] for extra in requirement.extras
    }
    assert named <= EXTRAS.keys()


def test_no_extra_is_needed_to_read_releases() -> None:
    """Torch and Ray come with extras only; `tests/release/test_base_install.py` shows that the rest works without."""
    base = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert base.isdisjoint({"torch", "transformers", "tokenizers", "safetensors", "ray"})


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_says_that_it_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
    assert PYPROJECT["tool"]["setuptools"]["package-data"]["*"] == ["py.typed"]


def test_the_index_page_links_to_what_a_user_looks_for_and_to_files_that_are_there() -> None:
    urls: dict[str, str] = PROJECT["urls"]
    assert urls.keys() >= {"Repository", "Documentation", "Changelog", "Issues"}
    paths = [url.partition("/main/")[2] for url in urls.values() if "/main/" in url]
    assert paths and all((ROOT / path).exists() for path in paths)
    assert (ROOT / PROJECT["readme"]).is_file() and all((ROOT / path).is_file() for path in PROJECT["license-files"])


def test_classifiers_say_what_the_rest_of_the_file_says() -> None:
    classifiers: list[str] = PROJECT["classifiers"]
    assert classifiers == sorted(classifiers), "in the order of their names"
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {oldest}" in classifiers
    assert "Typing :: Typed" in classifiers
    assert not [each for each in classifiers if each.startswith("License ::")], "`license` says it; both are an error"
