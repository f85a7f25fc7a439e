"""Every mistake ends in one sentence that says what was wrong and what to do, with exit code 2."""

import io
import re
import sys
from itertools import pairwise

import pytest
from helpers import CONFIGS, DIGITS, SMALL, fault, fit, summary
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from datamodules.digits import Digits
from datamodules.files import DataError
from experiments.cli import main
from experiments.parser import Parser
from models.methods.decoupled_greedy import DecoupledGreedy

FIT = ("fit", "--config", str(DIGITS), *SMALL, "--trainer.max_epochs=2")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trainer.max_epohcs=3"], ["--trainer.max_epohcs", "Did you mean trainer.max_epochs?"]),
        (["--model.nmu_blocks=3"], ["--model: ", "nmu_blocks", "Did you mean num_blocks?"]),
        (["--model=DecoupledGreedi"], ["--model: ", "DecoupledGreedi", "Did you mean DecoupledGreedy?"]),
        (["--data=datamodules.Digit"], ["--data: ", "no 'Digit'", "Did you mean Digits?"]),
        (["--trainer.callbacks=[InfoBach]"], ["--trainer.callbacks: ", "InfoBach", "Did you mean InfoBatch?"]),
        (["--trainer.callbacks+=InfoBatch", "--trainer.callbacks.ratoi=1"], ["ratoi", "Did you mean ratio?"]),
        (["--trainer.callbacks+=nowhere.Bogus"], ["--trainer.callbacks: ", "No module named 'nowhere'."]),
        (["--model.head=AuxHed"], ["--model.head: ", "AuxHed", "Did you mean AuxHead?"]),
        (["--model.cut.aftre=[conv1]"], ["cut.aftre", "Did you mean cut.after?"]),
        (["--model.scheduler.alpha=1"], ["--model.scheduler: Option 'alpha' is not accepted."]),
        (["--model.output_loss=ExpGB", "--model.output_loss.alpa=1"], ["alpa", "Did you mean alpha?"]),
        (["--trainer.strategy.hook=EntropyCoded"], ["--trainer.strategy: ", "hook"]),
        (["--model.cut", "{by: units"], ["A value is no YAML: "]),
        (["--model.cut.after=conv1"], ["--model.cut.after: ", "Expected a list, as [a,b]"]),
        (["--trainer.max_steps=many"], ["--trainer.max_steps: ", "Expected a whole number", "many"]),
        (["--model.cut.by=macc"], ["--model.cut.by: ", "Expected one of 'activation_bytes'", "Did you mean macs?"]),
        (["--model.clip=0"], ["--model.clip: 0 is no number above 0."]),
        (["--model.clip=.inf"], ["--model.clip: .inf is no number above 0."]),
        (["--model.network.hidden=[-1]"], ["--model.network.hidden: -1 is no whole number above 0."]),
        (["--model.head.convs=1.5"], ["--model.head.convs: 1.5 is no whole number from 0 on."]),
        (["--data.batch_sizes={1.5: 3}"], ["there is no epoch 1.5"]),
        (["--data.batch_sizes={1: 0}"], ["--data.batch_sizes: ", "no whole number above 0"]),
        (["--data.num_workers=10000"], ["starts that many processes: at most "]),
        (["--data.augment.pad=8"], ["8×8 pixels", "augment.pad"]),
        (["--model.optimizer.lr=.nan"], ["--model.optimizer.lr: nan"]),
        (["--model.optimizer.lr=-1"], ["Invalid learning rate: -1.0"]),
        (["--model.optimizer=null"], ["optimizer of DecoupledGreedy must not be null"]),
        (["--model.num_blocks=null"], ["num_blocks of DecoupledGreedy must not be null: leave it out"]),
        (["--data.batch_size=null"], ["batch_size of Digits must not be null"]),
        (["--model.optimizer=LBFGS"], ["optimizer", "float"]),
        (["--model.optimizer=SparseAdam"], ["dense gradients"]),
        (["--model.scheduler.T_max=0"], ["ZeroDivisionError"]),
        (["--model.scheduler.T_max=-3"], ["T_max of CosineAnnealingLR must not be negative, and is -3."]),
        (["--model.scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau"], ["'metrics'"]),
        (["--model.num_classes=3"], ["--model.num_classes is taken from the data"]),
        (["--model.network=os.getcwd"], ["--model.network: ", "Chain"]),
        (["--model.head.hidden=100000000000000"], ["DecoupledGreedy cannot be built: RuntimeError: ", "memory"]),
        (["--seed_everything=-1"], ["--seed_everything: a seed is from 0 to 4294967295, not -1."]),
        (["--seed_everything=4294967296"], ["--seed_everything: a seed is from 0 to 4294967295, not 4294967296."]),
        (["--name=a\nb"], ["plain folder name"]),
        (["--name=a\udcffb"], ["--name: ", "no text in UTF-8"]),
        (["--data.root=1\x002"], ["--data.root: ", "no text in UTF-8"]),
        (["--trainer.max_epochs=0"], ["--trainer.max_epochs: 0 is no whole number above 0."]),
        (["--trainer.limit_train_batches=0"], ["--trainer.limit_train_batches: "]),
        (["--trainer.log_every_n_steps=-3"], ["--trainer.log_every_n_steps: -3 is no whole number from 0 on."]),
        (["--trainer.check_val_every_n_epoch=0"], ["--trainer.check_val_every_n_epoch: "]),
        (["--trainer.val_check_interval=10000"], ["number of the training batches (4)"]),
        (["--trainer.precision=64-true"], ["--trainer.precision: "]),
        (["--trainer.devices=-1"], ["TypeError: `devices`", "int > 0"]),
        (["--trainer.num_nodes=0"], ["`num_nodes` must be a positive integer"]),
        (["--trainer.strategy=fsdp"], ["requires a GPU"]),
        (["--trainer.logger=WandbLogger"], ["WandbLogger cannot be built: ModuleNotFoundError: ", "wandb"]),
        (["--config=configs/nowhere.yaml"], ["no config 'configs/nowhere.yaml'"]),
        (["--config=decoupled_greedy/digit"], ["comes along", "Did you mean decoupled_greedy/digits or "]),
        (["--model.num_blocks=9"], ["4 units", "9 blocks", "between 1 and 4"]),
        (["--model.num_blocks=0"], ["0 blocks", "between 1 and 4"]),
        (["--model.num_blocks=2", "--model.cut.after=[conv7]"], ["conv7", "conv1, conv2, conv3, conv4"]),
        (["--model.num_blocks=2", "--model.cut.after=[conv4]"], ["conv4", "empty block"]),
        (["--model.cut.after=[conv1]"], ["makes 2 blocks", "num_blocks is 4"]),
        (["--model.cut.by=published"], ["VGG", "known: none"]),
        (["--model.network.plan=[8,M,8,M,8,M,8,M]"], ["halves the image 4 times"]),
        (["--data.validation=1.5"], ["--data.validation: 1.5 is no number from 0 to 1."]),
        (["--data.batch_size=0"], ["--data.batch_size: "]),
        (["--data=datamodules.MNIST", "--data.root=/nowhere"], ["/nowhere/MNIST/raw", "--data.download true"]),
        (["--data=datamodules.CIFAR10", "--data.root=/nowhere"], ["/nowhere/cifar-10-batches-py/data_batch_1"]),
        (["--ckpt_path=last"], ["no checkpoint", "last.ckpt"]),
        (["--trainer.gradient_clip_val=1.0"], ["leave --trainer.gradient_clip_val out, and set --model.clip,"]),
        (["--epochs=3"], ["--epochs=3. Did you mean trainer.m"]),
        (["--trainer.gradient_clip_algorithm=value"], ["leave --trainer.gradient_clip_val out"]),
        (
            ["--trainer.accumulate_grad_batches=4"],
            ["grad_batches out, and set --model.accumulate."],
        ),
        (["--trainer.strategy=CompresedDDP"], ["invalid strategy name", "compresedddp"]),
        (["--trainer.accelerator=cdu"], ["invalid accelerator name", "cdu"]),
        (
            ["--trainer.devices=2", "--trainer.strategy=ddp_spawn"],
            ["DDPStrategy does not train the blocks of", "--trainer.strategy ddp,"],
        ),
    ],
    ids=lambda value: value[-1].lstrip("-") if value[-1].startswith("--") else "",
)
def test_a_mistake_is_told_in_one_sentence_and_leaves_nothing(options, said, tmp_path, capsys):
    message = fault(capsys, *FIT, f"--runs={tmp_path}", *options)
    for part in said:
        assert part in message
    assert ("Did you mean" in message) == ("Did you mean" in said[-1])  # nothing far-fetched
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("num_blocks", "nmu_blocks", ["--model: ", "nmu_blocks", "Did you mean num_blocks?"]),
        ("max_epochs", "max_epohcs", ["max_epohcs", "Did you mean trainer.max_epochs?"]),
        ("num_blocks: 4", "num_blocks: many", ["--model.num_blocks: ", "Expected a whole number"]),
        ("model:", "model: [", ["line"]),
    ],
)
def test_a_mistake_in_a_config_is_told_in_one_sentence(right, wrong, said, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    assert right in DIGITS.read_text()
    config.write_text(DIGITS.read_text().replace(right, wrong))
    message = fault(capsys, "fit", "--config", str(config), f"--runs={tmp_path}")
    for part in said:
        assert part in message


LAUGHS = "a: &a [x, x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmn"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"model: \xe9", "can't decode byte"),
        ("model: DecoupledGreedy".encode("utf-16"), "can't decode byte"),
        (b"model: \0", "not allowed"),
        (b"model: &a [*a]", "nested more than 100 deep"),
        (b"model: &a {class_path: Backprop, init_args: *a}", "nested more than 100 deep"),
        (b"model: " + b"[" * 5000 + b"]" * 5000, "nested more than 100 deep"),
        (f"{LAUGHS}model: *n".encode(), "more than 100,000 values"),
        (b"1" * 5000, "4300 digits"),
        (b"model:\n\tclip: 1", "file.yaml, line 2, column 1, is no YAML: "),
        (b"model:\n\tclip: 1", "YAML is indented by spaces, not by tabs."),
        (b"model: {clip: 1", "file.yaml, line "),
    ],
    ids=[
        "latin",
        "utf-16",
        "nul",
        "contains itself",
        "is its own argument",
        "deep",
        "billion laughs",
        "long number",
        "tab",
        "what to do about it",
        "open",
    ],
)
@pytest.mark.parametrize("command", ["fit --config", "suite"])
def test_a_file_that_cannot_be_read_is_told(content, said, command, tmp_path, capsys):
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    assert said in fault(capsys, *command.split(), str(path)) or command == "suite"


@pytest.mark.parametrize("options", [["--trainer.max_epohcs=3"], ["--model.nmu_blocks=3"]])
def test_a_mistake_is_followed_by_where_all_options_are(options, capsys):
    with pytest.raises(SystemExit):
        main(["fit", *options])
    assert "All options: local-learning fit --help; " in capsys.readouterr().err


def test_mistakes_are_told_whatever_jsonargparse_calls_them(tmp_path, capsys, monkeypatch):
    def reworded(self, message, ex=None, original=Parser.error):
        original(self, message.replace("Option", "Setting").replace("is not accepted", "is none of its own"), ex)

    monkeypatch.setattr(Parser, "error", reworded)
    message = fault(capsys, *FIT, f"--runs={tmp_path}", "--model.nmu_blocks=3")
    assert message == "error: --model: Option 'nmu_blocks' is not accepted. Did you mean num_blocks?"


GROUPS = CONFIGS / "neuron_groups" / "digits.yaml"
PREDSIM = CONFIGS / "predsim" / "digits.yaml"


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (GROUPS, ["--model.num_groups=3"], ["3 groups do not divide the 32 channels", "divisors of 32"]),
        (GROUPS, ["--model.num_groups=0"], ["at least 1, not 0"]),
        (
            GROUPS,
            ['--model.network={"class_path": "models.networks.MLP"}'],
            ["MLP-256-256-256 has no feature maps", "CifarResNet or VGG"],
        ),
        (PREDSIM, ["--model.beta=1.5"], ["--model.beta: 1.5 is no number from 0 to 1."]),
        (PREDSIM, ["--data.batch_size=1"], ["a batch has only one", "data.batch_size of at least 2"]),
        (
            CONFIGS / "infopro" / "digits.yaml",
            ["--model.num_groups=2"],
            ["num_groups must be 1, not 2", "models.NeuronGroups"],
        ),
        (CONFIGS / "infopro" / "digits.yaml", ["--model.num_blocks=3"], ["K = 2, 4, 8, 16, not 3", "--model.weights"]),
    ],
    ids=["indivisible", "none", "no maps", "beta", "one image", "infopro groups", "infopro weights"],
)
def test_what_a_method_cannot_do_is_told_in_one_sentence(config, options, said, tmp_path, capsys):
    message = fault(capsys, "fit", "--config", str(config), f"--runs={tmp_path / 'runs'}", *options)
    for part in said:
        assert part in message


def test_a_loss_that_is_no_number_is_told_and_the_last_checkpoint_stays(copied, tmp_path, capsys, monkeypatch):
    before = (copied / "checkpoints" / "last.ckpt").read_bytes()
    healthy = DecoupledGreedy.local_loss

    def poisoned(self, k, features, batch):
        return healthy(self, k, features, batch) * (float("nan") if (k, self.global_step) == (2, 9) else 1)

    monkeypatch.setattr(DecoupledGreedy, "local_loss", poisoned)
    resume = ("--trainer.max_epochs=4", "--ckpt_path=last")
    message = fault(capsys, *FIT, f"--runs={tmp_path}", "--name=run", *resume)
    assert "The loss of block3 is nan at step 10" in message
    assert (copied / "checkpoints" / "last.ckpt").read_bytes() == before
    # Also of a run without a checkpoint yet what it has logged is kept.
    new = (*FIT, f"--runs={tmp_path}", "--name=new", "--trainer.limit_train_batches=10")
    assert "nan at step 10" in fault(capsys, *new)
    assert (tmp_path / "new" / "metrics.csv").is_file()


def test_a_checkpoint_of_another_network_is_refused(finished, capsys):
    path = finished / "checkpoints" / "last.ckpt"
    wider = fault(capsys, *FIT, "--model.network.plan=[16,8,M,16,16]", f"--ckpt_path={path}")
    assert "another network" in wider
    assert "(16, 1, 3, 3) here" in wider or "there and" in wider
    cut = fault(capsys, *FIT, "--model.num_blocks=2", f"--ckpt_path={path}")
    assert "another cut" in cut
    assert str(path) in cut
    method = fault(capsys, "fit", f"--config={SSL}", f"--runs={path.parent}", f"--ckpt_path={path}")
    assert "is of a DecoupledGreedy, not of a BlockwiseSSL: " in method


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_weights_that_never_learned_are_not_evaluated(command, tmp_path, capsys):
    message = fault(capsys, command, *FIT[1:], f"--runs={tmp_path}")
    assert message == f"error: {command} needs trained weights: give --ckpt_path RUN/checkpoints/last.ckpt."


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, capsys):
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    path.write_text("not a checkpoint")
    assert str(path) in fault(capsys, *FIT, f"--ckpt_path={path}")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, capsys):
    import os
    import pickle

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps({"state_dict": Trap()}))
    assert str(path) in fault(capsys, *FIT, f"--ckpt_path={path}")
    assert not (tmp_path / "trapped").exists()


def test_a_taken_name_is_not_overwritten(copied, tmp_path, capsys):
    before = summary(copied)
    message = fault(capsys, *FIT, f"--runs={tmp_path}", "--name=run")
    assert "--ckpt_path last" in message
    assert "--name" in message
    assert summary(copied) == before


def test_a_run_folder_that_cannot_be_written_is_told(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    message = fault(capsys, *FIT, f"--runs={tmp_path / 'file'}")
    assert "cannot be written" in message
    assert "--runs" in message


def test_a_resume_that_fails_before_its_first_step_keeps_the_run(copied, tmp_path, capsys, monkeypatch):

    def lost(self, train):
        raise DataError("The data is lost.")

    monkeypatch.setattr(Digits, "load", lost)
    before = sorted(path.name for path in (copied / "checkpoints").iterdir())
    options = ("--ckpt_path=last", "--trainer.max_epochs=3")
    assert "The data is lost." in fault(capsys, *FIT, f"--runs={tmp_path}", "--name=run", *options)
    assert sorted(path.name for path in (copied / "checkpoints").iterdir()) == before
    assert summary(copied)["global_step"] == 8


def test_an_unknown_command_is_told_with_those_that_there_are(capsys):
    message = fault(capsys, "fitt", "--config", str(DIGITS))
    assert "there is no command 'fitt'. Did you mean fit?" in message
    commands = ("fit", "validate", "test", "predict", "cost", "bench", "probe", "observe", "suite", "report")
    assert all(command in message for command in commands)


def test_help_shows_every_command_or_the_asked_one(capsys):
    for asked, shown in (([], ("fit", "predict", "observe")), (["cost"], ("--convention", "--data.help"))):
        with pytest.raises(SystemExit) as stop:
            main([*asked, "--help"])
        assert stop.value.code == 0
        printed = capsys.readouterr().out
        assert all(part in printed for part in shown)


def test_a_missing_or_wrong_suite_is_told(tmp_path, capsys):
    assert "nowhere.yaml" in fault(capsys, "suite", "nowhere.yaml", f"--runs={tmp_path}")
    wrong = tmp_path / "wrong.yaml"
    for content, said in {
        "run: 3": "is not a suite",
        "runs: []": "it has no runs",
        f"runs: [{{config: {DIGITS}}}]\nmore: 1": "it holds 'more'",
        f"runs: [{{config: {DIGITS}, name: one, grid: {{data.seed: []}}}}]": "grid of one has no values of data.seed",
    }.items():
        wrong.write_text(content)
        assert said in fault(capsys, "suite", str(wrong), f"--runs={tmp_path}")


def test_a_report_without_runs_is_told(tmp_path, capsys):
    assert "No finished run" in fault(capsys, "report", str(tmp_path))


def test_no_command_at_all_shows_which_there_are(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_a_class_in_the_folder_of_the_call_is_found(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_method.py").write_text(
        "from models import DecoupledGreedy\nclass Own(DecoupledGreedy):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])  # as of a console script
    with pytest.raises(SystemExit) as stop:
        main([*FIT, "--model=own_method.Own", "--print_config"])
    assert not stop.value.code, capsys.readouterr().err


def test_a_file_of_ones_own_that_cannot_be_imported_says_why(tmp_path, monkeypatch, capsys):
    (tmp_path / "broken_method.py").write_text("class Broken(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "invalid syntax (broken_method.py, line 1)" in fault(capsys, *FIT, "--model=broken_method.Broken")


SSL = CONFIGS / "blockwise_ssl" / "digits.yaml"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.loss=lightly.loss.NTXentLoss", "--model.loss.temperature=-1"], "temperature of NTXentLoss"),
        (["--model.loss=lightly.loss.DINOLoss"], "DINOLoss is no loss of two views' embeddings"),
        (["--data.views.transform.blur=2"], "--data.views.transform.blur: 2 is no number from 0 to 1."),
        (["--data.views.transform.strength=.inf"], "--data.views.transform.strength: .inf is no number from 0 on."),
        (["--model.difficulty.mode=harder"], "Got value: harder."),  # and not: did you mean hardest
    ],
)
def test_what_views_cannot_be_is_told(options, said, tmp_path, capsys):
    message = fault(capsys, "fit", "--config", str(SSL), f"--runs={tmp_path / 'runs'}", *options)
    assert said in message
    assert "Did you mean" not in message
    assert not list(tmp_path.iterdir())


OWN = """
from models import DecoupledGreedy, LocalLearning
class Unreduced(DecoupledGreedy):
    def local_loss(self, k, features, batch):
        return features.mean(dim=(1, 2, 3))
class Forgetful(DecoupledGreedy):
    def local_loss(self, k, features, batch):
        super().local_loss(k, features, batch)
class Detached(DecoupledGreedy):
    def local_loss(self, k, features, batch):
        return super().local_loss(k, features, batch).detach()
class Lossless(DecoupledGreedy):
    local_loss = LocalLearning.local_loss
"""


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("Unreduced", "Unreduced gives block1 a tensor of shape (128,)"),
        ("Forgetful", "Forgetful gives block1 None"),
        ("Detached", "Detached gives block1 a tensor of shape () without a gradient"),
        ("Lossless", "Lossless does not say what the loss of a block is"),
    ],
)
def test_a_loss_that_is_none_is_told(method, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_losses.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    runs = tmp_path / "runs"
    assert said in fault(capsys, *FIT, f"--model=own_losses.{method}", "--data.batch_size=128", f"--runs={runs}")
    assert not runs.exists()


def test_a_terminal_without_an_ellipsis_does_not_stop_a_training(tmp_path, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    main([*FIT, "--model.num_blocks=2", "--trainer.fast_dev_run=true", f"--runs={tmp_path}"])
    terminal.seek(0)
    assert "conv1 ? " in terminal.read()


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_a_single_process_writes_its_run_whatever_the_environment_says(variable, tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as Lightning does where it is imported with the variable
    monkeypatch.setenv(variable, "1")
    run = fit(tmp_path, "--trainer.max_epochs=1")
    assert {"metrics.csv", "summary.json", "config.yaml"} < {path.name for path in run.iterdir()}
    assert len(list(run.glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize("command", ["fit", "predict", "cost"])
def test_a_command_without_an_experiment_is_told(command, capsys):
    assert "needs an experiment: give --config, such as" in fault(capsys, command)


@pytest.mark.parametrize("option", ["--data", "--model", "-c", "--ckpt_path"])
def test_an_option_without_its_value_is_told(option, capsys):
    assert re.fullmatch(
        rf"error: argument {option}(/--config)?: expected one argument\.", fault(capsys, "predict", option)
    )


@pytest.mark.parametrize("command", ["fit", "cost"])
def test_batch_norm_of_a_single_image_is_told(command, tmp_path, capsys):
    config = CONFIGS / "decoupled_greedy" / "digits_mlp.yaml"
    message = fault(capsys, command, f"--config={config}", f"--runs={tmp_path}", "--data.batch_size=1")
    assert "BatchNorm has no statistics of one image: give a --data.batch_size above 1" in message
    assert not list(tmp_path.iterdir())
