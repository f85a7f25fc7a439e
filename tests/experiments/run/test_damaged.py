"""Checkpoints, summaries and configurations with parts missing or strange: one sentence, whatever reads them."""

import copy
import json
import random

import pytest
import torch
import yaml
from helpers import DIGITS, SMALL, fault, fit

from experiments.cli import main
from experiments.run.errors import RunError
from experiments.run.reading import read_config, read_summary
from losses.errors import UsageError
from models.method import Method
from models.saved import is_count, read_checkpoint

STRANGE = (None, [], "text", -5, {"a": {}}, [1, "a"], 10**30)
QUICK = ("--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1")


@pytest.fixture(scope="module")
def saved(finished):
    """What ``last.ckpt`` holds."""
    return torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("part", ["state_dict", "epoch", "global_step", "loops"])
def test_a_checkpoint_without_a_part_is_refused(part, saved, tmp_path):
    torch.save({name: value for name, value in saved.items() if name != part}, tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match=f"it has no {part}"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_a_count_is_a_whole_number_from_0_on():
    assert [value for value in (0, 7, -1, 2**63, 1.0, True, "1", None) if is_count(value)] == [0, 7]


@pytest.mark.parametrize("where", ["state", "param_groups"])
def test_an_optimizer_that_remembers_words_is_refused(where, saved, tmp_path):
    damaged = copy.deepcopy(saved)
    one = damaged["optimizer_states"][0][where]
    one[0] = one[0] | {"lr": "text"}
    torch.save(damaged, tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match="its optimizer_states is none: "):
        read_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize("part", ["state_dict", "epoch", "global_step", "loops", "metrics", "learned", "image_shape"])
@pytest.mark.parametrize("strange", ["text", None, -5, {"a": "b"}, [1, "a"]], ids=repr)
def test_a_checkpoint_with_a_strange_part_is_refused(part, strange, saved, tmp_path):
    torch.save(saved | {part: strange}, tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match=f"its {part} is none: "):
        read_checkpoint(tmp_path / "last.ckpt")


def test_nothing_that_a_checkpoint_names_is_called(saved, tmp_path):
    torch.save(saved | {"arguments": saved["arguments"] | {"_instantiator": "builtins.print"}}, tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match="its arguments is none"):
        Method.load_from_checkpoint(tmp_path / "last.ckpt")


def test_of_a_script_too_every_byte_of_a_checkpoint_is_checked(copied):
    last = copied / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    with pytest.raises(UsageError, match="is damaged or not one of ours"):
        Method.load_from_checkpoint(last)


def with_other_momenta(saved):
    """A checkpoint whose optimizers remember gradients of another shape than the weights."""
    damaged = copy.deepcopy(saved)
    for weight in damaged["optimizer_states"][0]["state"].values():
        weight["momentum_buffer"] = torch.zeros(2, 3, 5, 7)
    return damaged


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: {name: value for name, value in saved.items() if name != "optimizer_states"},
        lambda saved: {name: value for name, value in saved.items() if name != "lr_schedulers"},
        lambda saved: saved | {"Digits": [1]},
        lambda saved: saved | {"pytorch-lightning_version": [1]},
        with_other_momenta,
    ],
)
def test_what_a_run_cannot_go_on_from_is_told(damage, saved, copied, tmp_path, capsys):
    last = copied / "checkpoints" / "last.ckpt"
    torch.save(damage(saved), last)
    line = ("fit", f"--config={copied / 'config.yaml'}", f"--runs={tmp_path}", "--name=run", "--ckpt_path=last")
    said = fault(capsys, *line, "--trainer.max_epochs=3", *QUICK)
    assert f"The checkpoint {last} cannot be gone on from (" in said
    assert f"go on from it with --ckpt_path {last.with_name('previous.ckpt')}" in said


def test_a_run_folder_stands_for_its_last_checkpoint(copied, capsys):
    main(["test", f"--config={copied / 'config.yaml'}", f"--ckpt_path={copied}", *QUICK])
    assert "test/top1" in capsys.readouterr().out
    said = fault(capsys, "test", f"--config={copied / 'config.yaml'}", f"--ckpt_path={copied.parent}")
    assert said.startswith(f"error: There is no checkpoint {copied.parent}/checkpoints/last.ckpt.")


@pytest.mark.parametrize(("name", "read"), [("summary.json", read_summary), ("config.yaml", read_config)])
def test_a_summary_or_configuration_is_read_or_refused(name, read, finished, tmp_path):
    whole, file, chance = (finished / name).read_text(), tmp_path / name, random.Random(0)
    tree = json.loads(whole) if name.endswith("json") else yaml.safe_load(whole)
    dump = json.dumps if name.endswith("json") else yaml.safe_dump
    texts = [whole[: len(whole) * tenth // 10] for tenth in range(10)] + ["[" * 5000, "3", "\0", "null"]
    texts += [dump({key: value for key, value in tree.items() if key != one}) for one in tree]
    texts += [dump(tree | {one: chance.choice(STRANGE)}) for one in tree for _ in range(3)]
    said = [_fault(read, file, text.encode()) for text in texts]
    assert 10 < sum(map(bool, said)) < len(texts)
    assert all(not fault or f"{file} is damaged (" in fault for fault in said)
    assert _fault(read, file, b"\xff\xfe")


@pytest.mark.parametrize(
    ("name", "read", "strange"),
    [
        ("summary.json", read_summary, {"callbacks": [{"init_args": {}}]}),
        ("config.yaml", read_config, {"trainer": {"callbacks": [3]}}),
    ],
)
def test_callbacks_without_a_class_are_refused(name, read, strange, finished, tmp_path):
    tree = yaml.safe_load((finished / name).read_text())
    said = _fault(read, tmp_path / name, json.dumps(tree | strange).encode())
    assert f"its {next(iter(strange))} is none: " in said


def _fault(read, file, content):
    """What is said of a file with this content, if it is refused."""
    file.write_bytes(content)
    try:
        assert isinstance(read(file), dict)
    except RunError as fault:
        return str(fault)
    return ""


def test_a_resume_beside_a_damaged_configuration_is_told_what_to_do(copied, tmp_path, capsys):
    (copied / "config.yaml").write_text("- 3")
    line = [*SMALL, *QUICK, "--ckpt_path=last", "--trainer.max_epochs=3"]
    with pytest.raises(SystemExit):
        fit(tmp_path, *line)
    assert f"{copied}/config.yaml is damaged (it is list, not a mapping). Mend or remove it" in capsys.readouterr().err
    (copied / "config.yaml").unlink()
    assert yaml.safe_load((fit(tmp_path, *line) / "config.yaml").read_text())["trainer"]["max_epochs"] == 3


@pytest.mark.parametrize(("step", "refused"), [(2, True), (3, False)])
def test_an_epoch_that_would_have_no_end_is_not_gone_on_from(step, refused, tmp_path, capsys):
    """Saved behind the second batch of two, before schedules step; behind the first of the second epoch."""
    command = ("fit", f"--config={DIGITS}", *SMALL, f"--runs={tmp_path}", "--trainer.max_epochs=2", *QUICK[1:])
    command += ("--trainer.limit_train_batches=2", "--trainer.callbacks+=Entropy")
    saving = (
        "ModelCheckpoint",
        f"dirpath={tmp_path}",
        f"every_n_train_steps={step}",
        "save_top_k=-1",
        "save_weights_only=false",
    )
    kept = [f"--trainer.callbacks{'.' if '=' in option else '+='}{option}" for option in saving]
    main([*command, "--name=one", *kept])
    [file] = tmp_path.glob(f"*step={step}.ckpt")
    again = (*command, "--name=other", f"--ckpt_path={file}")
    if refused:
        assert f"{file} was saved behind the last batch of an epoch and before its end" in fault(capsys, *again)
    else:
        main([*again])
