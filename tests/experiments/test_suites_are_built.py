"""Every run of every suite is built, of images and classes as those of its data; weights are on the meta device."""

import io
import re
import shlex
from contextlib import redirect_stderr

import pytest
from helpers import SUITES, Builder, name_of, variants
from published import deviations, rows_of, settings

from experiments.suite import Run, read_suite

SEED_OR_REAL = re.compile(r"(--seed_everything=).*|(--[^=]+=)\d*\.\d+(e-\d+)?")


def built_alike(runs: list[Run]) -> list[Run]:
    """One of the runs that differ in their seed, or in real numbers (rates, weights, shares): they build the same."""
    kinds = {(run.config, *(SEED_OR_REAL.sub(r"\1\2", option) for option in run.options)): run for run in runs}
    return list(kinds.values())


def faults_of(run: Run, further: list[str], name: str, builder: Builder) -> str | list[str]:
    """Why a run cannot be built, or what of it is not as published; nothing, as it should be."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            builder.build(run.config, *run.options, *further)
    except SystemExit:
        return said.getvalue()
    except Exception as fault:
        return repr(fault)
    return deviations(name, settings(builder)) if rows_of(name) else []


@pytest.mark.usefixtures("cifar10_folders")
@pytest.mark.parametrize("suite", SUITES, ids=name_of)
def test_every_run_of_a_suite_is_built_and_no_two_alike(suite, builder):
    faults, names = {}, {}
    for run in built_alike(read_suite(suite)):
        if found := faults_of(run, [], f"{name_of(suite)}/{run.name}", builder):
            faults[run.name] = found
            continue
        del builder.options["seed_everything"], builder.options["data.init_args.seed"]
        if (twin := names.setdefault(str(builder.options), run.name)) != run.name:
            faults[run.name] = f"is {twin} by another name"
    assert not faults, f"runs of {suite.name}: {faults}"


@pytest.mark.parametrize(
    ("suite", "options"), [(suite, options) for suite in SUITES for options in variants(suite)[1:]]
)
def test_a_suite_is_built_with_the_options_at_its_head(suite, options, builder):
    one_of_each_config = {run.config: run for run in read_suite(suite)}
    for run in one_of_each_config.values():
        assert not faults_of(run, shlex.split(options), f"{run.name} {options}", builder)
