"""The example jobs of the docs: commands that the command line takes."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.strategies import StrategyRegistry

from experiments.cli import with_config_files

JOBS = sorted((Path(__file__).parents[2] / "docs" / "jobs").iterdir())
SKYPILOT = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NODE_RANK": "0"}


def script(job):
    """What a job has a shell do."""
    return yaml.safe_load(job.read_text())["run"] if job.suffix == ".yaml" else job.read_text()


def options_of(job):
    """Those of its command, as a shell hands them on."""
    (options,) = re.findall(r" fit ([^#]+?)\n", script(job).replace("\\\n", " "))
    shell = ["sh", "-c", f"strategy=block_parallel; printf '%s\\n' {options}"]
    said = subprocess.check_output(shell, text=True, env=SKYPILOT | {"SLURM_JOB_ID": "1", "PATH": os.environ["PATH"]})
    return list(with_config_files(said.splitlines()))


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_a_job_is_a_valid_script_with_a_command_that_starts_and_restarts(job, builder):
    subprocess.run(["bash", "-n"], input=script(job), text=True, check=True)
    _, config, *others = options_of(job)
    options = builder.parse(config, *others)
    assert options.trainer.strategy in StrategyRegistry.available_strategies()
    assert options.ckpt_path == "auto"
    assert options.name


def test_slurm_has_a_task_for_each_device(builder):
    (job,) = [job for job in JOBS if job.suffix == ".sbatch"]
    asked = dict(re.findall(r"^#SBATCH --(\S+) (\S+)$", job.read_text(), re.MULTILINE))
    _, config, *others = options_of(job)
    options = builder.parse(config, *others).trainer
    assert [asked["ntasks-per-node"], asked["nodes"]] == [str(options.devices), str(options.num_nodes)]
