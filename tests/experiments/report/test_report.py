"""``report``."""

import contextlib
import io
import json
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from experiments.report.columns import cells_of
from experiments.report.command import main
from experiments.report.pictures import _depth_lines, _draw_cost_line
from experiments.report.rows import group
from experiments.report.runs import find_runs, line_of
from experiments.run.errors import RunError
from experiments.run.files import UNFINISHED

SUMMARY = {
    "name": "run",
    "method": "Backprop",
    "network": "VGG",
    "dataset": "Digits",
    "seed": 0,
    "num_blocks": 1,
    "batch_size": 64,
    "epochs": 2,
    "images_per_second": 1000.0,
    "peak_activation_bytes": 4 * 2**20,
    "metrics": {"test/top1": 0.9, "test/ensemble/top1": 0.9, "test/block1/top1": 0.9},
}
MACS = {"slowest_node_macs": 2e6, "inference_macs": 5e6, "ensemble_macs": 7e6}


def config_of(settings, trainer=None):
    return {"model": {"init_args": settings}, "trainer": trainer}


def line(settings=None, trainer=None, **changes):
    """What is read of a run with these arguments of the model."""
    return line_of(SUMMARY | changes, config_of(settings or {}, trainer))


def rows(*lines):
    return group(pd.DataFrame(lines))


def local(seed=0, top1=0.8, **changes):
    """A run in two blocks."""
    metrics = {"test/top1": top1, "test/block1/top1": 0.5, "test/block2/top1": top1, "test/ensemble/top1": 0.81}
    figures = {"images_per_second": 500.0, "peak_activation_bytes": 2**20, "metrics": metrics}
    return {"method": "DecoupledGreedy", "num_blocks": 2, "seed": seed} | figures | changes


def grouped(**changes):
    """A run in two blocks of four groups."""
    top1 = {"test": 0.8, "test/ensemble": 0.82, "test/block2": 0.79, "test/block2/group1": 0.7}
    metrics = {f"{name}/top1": value for name, value in top1.items()}
    return {"method": "NeuronGroups", "num_blocks": 2, "num_groups": 4, "metrics": metrics, **MACS} | changes


def probed(num_blocks, seed=0, linear=0.5, **changes):
    """A run of a method that predicts no class, probed."""
    blocks = range(1, num_blocks + 1)
    metrics = {f"probe_lin100/block{k}/gap/top1": linear + k / 10 for k in blocks}
    metrics |= {f"probe_lin10/block{k}/gap/top1": 0.1 for k in blocks} | {"probe_lin100/block1/gap/lr": 0.3}
    metrics |= {f"knn_k200_t0.1/block{k}/gap/top1": 0.4 for k in blocks if k > 1}
    return {"method": "SimCLR", "num_blocks": num_blocks, "seed": seed, "metrics": metrics} | changes


# -- rows: what is averaged, and with what it is compared ---------------------------------------------


def test_seeds_are_one_row_and_ratios_are_to_backprop():
    backprop, dgl = rows(line(), line(**local(0, 0.8)), line(**local(1, 0.9)))
    assert (backprop.first["method"], backprop.base, len(dgl.runs)) == ("Backprop", None, 2)
    assert dgl.mean["test/top1"] == pytest.approx(0.85)
    assert dgl.ratio["test/top1"] == pytest.approx(0.85 / 0.9)
    assert dgl.ratio["images_per_second"] == pytest.approx(0.5)
    assert dgl.ratio["peak_activation_bytes"] == pytest.approx(0.25)
    assert dgl.blocks() == pytest.approx({1: 50.0, 2: 85.0})


def test_settings_groups_and_epochs_are_rows_of_their_own():
    groups = [line({"sharing": sharing}, **grouped()) for sharing in ("full", "none")]
    found = rows(*groups, line(**local()), line(epochs=3), line(**MACS | {"slowest_node_macs": 8e6}))
    assert [(row.method, *row.nodes, row.first["epochs"]) for row in found] == [
        ("Backprop", 1, 1, 3),
        ("Backprop", 1, 1, 2),
        ("DecoupledGreedy", 2, 1, 2),
        ("NeuronGroups (sharing full)", 2, 4, 2),
        ("NeuronGroups (sharing none)", 2, 4, 2),
    ]
    assert found[-1].ratio["slowest_node_macs"] == pytest.approx(0.25)


def test_of_the_same_run_twice_the_last_counts():
    (row,) = rows(*(line(seed=seed, name=name) for name, seed in (("a", 0), ("b", 1), ("c", 1))))
    assert list(row.runs["name"]) == ["a", "c"]


def test_times_of_other_threads_are_not_compared():
    _, same, other = rows(line(), line(**local()), line(**local(num_blocks=4, device="CPU, 2 threads")))
    assert same.ratio["images_per_second"] == 0.5
    assert "images_per_second" not in other.ratio
    assert other.ratio["peak_activation_bytes"] == 0.25


def test_the_base_shares_most_settings_and_is_no_base_of_its_own():
    losses = [{"output_loss": {"class_path": f"losses.{loss}"}} for loss in ("CrossEntropy", "ExpGB")]
    lines = [line(options, **changes) for options in losses for changes in ({}, local())]
    found = {row.method: row for row in rows(*lines)}
    whole, blocks = found["Backprop (ExpGB)"], found["DecoupledGreedy (ExpGB)"]
    assert whole.base is None
    assert list(blocks.base.first[["method", "settings"]]) == list(whole.first[["method", "settings"]])


@pytest.mark.parametrize(("epochs", "base"), [(2, 2), (3, 3), (4, 2)])
def test_the_base_has_as_many_epochs_if_there_is_one(epochs, base):
    layers = rows(line(epochs=2), line(epochs=3), line(**local(epochs=epochs)))[-1]
    assert layers.base.first["epochs"] == base


def test_neither_one_block_of_groups_nor_what_keeps_no_activations_nor_another_batch_size_is_a_base():
    none = ({"method": "NeuronGroups", "num_groups": 4}, {"peak_activation_bytes": 0}, {"batch_size": 128})
    found = rows(line(**local()), *(line(**changes) for changes in none))
    assert [row.base for row in found] == [None] * 4


def test_a_method_without_labels_is_compared_with_its_own_single_block():
    lines = [line(), line(**local()), line(**probed(2, images_per_second=300.0))]
    assert rows(*lines)[-1].base is None
    _, dgl, _, simclr = rows(*lines, line(**probed(1, images_per_second=600.0)))
    assert (simclr.nodes, simclr.ratio["images_per_second"]) == ((2, 1), 0.5)
    assert dgl.base.method == "Backprop"


# -- names --------------------------------------------------------------------------------------------


def loss(name, **arguments):
    return {"loss": {"class_path": f"lightly.loss.{name}", "init_args": arguments}}


def decay(decay):
    return {"regularization": {"weight_decay": decay}, "optimizer": {"init_args": {"weight_decay": 5e-4}}}


@pytest.mark.parametrize(
    ("models", "names"),
    [
        ([{"optimizer": {"init_args": {"lr": rate}}} for rate in (0.1, 0.2)], ["lr 0.1", "lr 0.2"]),
        (
            [loss("NTXentLoss", temperature=0.5), loss("BarlowTwinsLoss", lambda_param=0.005)],
            ["BarlowTwinsLoss", "NTXentLoss"],
        ),
        ([loss("NTXentLoss", temperature=t) for t in (0.5, 0.2)], ["temperature 0.2", "temperature 0.5"]),
        # One has a part that the other lacks: told apart by that part's settings.
        ([{"difficulty": None}, {"difficulty": {"mode": "rising"}}], ["difficulty None", "mode rising"]),
        # Of settings that are called alike, and of entries of a mapping, the part before is named too.
        ([decay(1), decay(2)], ["regularization.weight_decay 1", "regularization.weight_decay 2"]),
        ([{"batch_sizes": {3: size}} for size in (64, 128)], ["batch_sizes.3 128", "batch_sizes.3 64"]),
    ],
)
def test_rows_are_named_by_what_tells_them_apart(models, names):
    assert sorted(row.variant for row in rows(*map(line, models))) == names


def test_a_class_says_nothing_of_what_is_inside_it():
    coder = {"class_path": "coders.Zlib", "init_args": {"level": 9}}
    coded = {"class_path": "hooks.EntropyCoded", "init_args": {"c": 1.0, "coder": coder}}
    half, none = {"class_path": "hooks.Half", "init_args": {"c": 0.5}}, {"class_path": "hooks.Uncompressed"}
    models = [{"hook": hook} for hook in (coded, half, none)]
    assert [row.variant for row in rows(*map(line, models))] == ["EntropyCoded", "Half", "Uncompressed"]


def callback(name, **arguments):
    """How ``config.yaml`` and summaries name a callback of ours."""
    return {"class_path": f"experiments.callbacks.{name}", "init_args": arguments}


def test_a_callback_that_changes_training_is_named_and_one_that_watches_is_not():
    watch, drop = callback("HiddenLayers", every_n_epochs=1), callback("InfoBatch", ratio=0.5, until=0.875)
    lines = [
        line(trainer={"callbacks": [watch]}, callbacks=[]),
        line(trainer={"callbacks": [watch, drop]}, callbacks=[drop]),
        line(trainer={"callbacks": []}, callbacks=[], seed=1),
    ]
    assert [(row.variant, len(row.runs), row.base) for row in rows(*lines)] == [("", 2, None), ("InfoBatch", 1, None)]
    more = line(callbacks=[callback("InfoBatch", ratio=0.8, until=0.875)])
    names = ["", "InfoBatch, ratio 0.5", "InfoBatch, ratio 0.8"]
    assert [row.variant for row in rows(*lines, more)] == names


def test_of_a_summary_that_does_not_tell_them_all_callbacks_count():
    alone, listed = callback("HiddenLayers", every_n_epochs=1), [callback("InfoBatch", ratio=0.5)]
    lines = [line(trainer={"callbacks": callbacks}) for callbacks in (None, alone, listed)]
    assert [row.variant for row in rows(*lines)] == ["", "HiddenLayers", "InfoBatch"]


# -- tables and pictures ------------------------------------------------------------------------------


def write(folder, name, settings=None, **changes):
    """A run folder with nothing but a summary, and a configuration if settings of the model are given."""
    (folder / name).mkdir(parents=True)
    (folder / name / "summary.json").write_text(json.dumps(SUMMARY | changes | {"name": name}))
    if settings is not None:
        (folder / name / "config.yaml").write_text(yaml.safe_dump(config_of(settings)))


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The folder of a report on many runs, its lines by method and K, and what was printed."""
    folder = tmp_path_factory.mktemp("runs")
    write(folder, "backprop", **MACS | {"slowest_node_macs": 8e6})
    for name, seed, top1 in (("dgl0", 0, 0.8), ("dgl1", 1, 0.5), ("dgl1 again", 1, 0.9)):
        write(folder, name, **local(seed, top1))
    for sharing in ("full", "none"):
        write(folder, f"groups {sharing}", {"sharing": sharing}, **grouped())
    for name, options in {"simclr": (2, 0, 0.5), "simclr 1": (2, 1, 0.6), "simclr whole": (1, 0)}.items():
        write(folder, name, **probed(*options))
    metrics = {"test/top1": 0.8, "test/block2/top1": 0.8, "val/block1/top1": 0.6, "val/block2/top1": 0.7}
    write(folder, "layers", {"epochs_per_block": 1}, method="Layerwise", num_blocks=2, metrics=metrics)
    metrics = {f"{split}/block{k}/top1": k / 20 for split in ("test", "train_set") for k in range(1, 17)}
    write(folder, "deep", **local(num_blocks=16, metrics=metrics | {"test/top1": 0.8}))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([str(folder)])
    table = pd.read_csv(folder / "report.csv", dtype=str).set_index(["method", "K"])
    return folder, table, printed.getvalue()


def test_report_writes_tables_and_pictures(reported):
    folder, table, printed = reported
    assert f"tensorboard --logdir {folder}" in printed
    assert "| DecoupledGreedy | 2 |" in (folder / "report.md").read_text()
    for picture in ("report.png", "cost.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    dgl = table.loc["DecoupledGreedy", "2"]
    assert (dgl["seeds"], dgl["test top-1, %"], dgl["each block, %"]) == ("2", "85.00 ± 7.07", "50.0 85.0")
    assert (dgl["peak MiB"], dgl["images/s"]) == ("1.0 (×0.25)", "500.0 (×0.50)")
    groups = table.loc["NeuronGroups (sharing full)", "2"]
    assert (groups["G"], groups["one group, %"], groups["ensemble, %"]) == ("4", "70.00", "82.00")
    assert groups["slowest node, M MACs"] == "2.0 (×0.25)"


def test_area_of_a_bubble_is_the_cost_of_that_prediction():
    """The model's, the ensemble's, and a group's alone, where groups never see each other."""

    def bubbles(**changes):
        axes = Figure().subplots()
        _draw_cost_line(axes, "groups", rows(line(**grouped(**changes))), "red", area=1e-5)
        points = [one for one in axes.collections if isinstance(one, PathCollection) and len(one.get_offsets())]
        return {(*map(round, one.get_offsets()[0]), round(one.get_sizes()[0])) for one in points}

    seeing = {(2, 82, 70), (2, 80, 50)}
    assert bubbles() == seeing
    assert bubbles(thread_macs=1e6) == seeing | {(2, 70, 10)}


def test_report_shows_what_blocks_reached_whose_heads_are_gone(reported):
    layers = reported[1].loc["Layerwise", "2"]
    assert layers["each block, %"] == "80.0"
    assert layers["each block when it was done, validation images, %"] == "60.0 70.0"
    kept = {f"{split}/block{k}/top1": 0.5 for split in ("test", "val") for k in (1, 2)}
    (row,) = rows(line({"epochs_per_block": 1}, **local(metrics=kept)))
    assert row.when_done() == {}


def test_report_shows_probes_of_each_block(reported):
    folder, table, _ = reported
    simclr, heading = table.loc["SimCLR", "2"], "linear probe (100 epochs), each block, %"
    assert (simclr[heading], simclr["kNN (k200, t0.1), each block, %"]) == ("65.0 75.0", "– 40.0")
    assert table.loc["Backprop", "1"][heading] == "–"
    row = next(row for row in group(find_runs([folder])) if row.method == "SimCLR" and row.nodes == (2, 1))
    assert _depth_lines(row) == {"o--": pytest.approx({1: 65.0, 2: 75.0})}


@pytest.mark.parametrize(
    ("protocol", "heading"),
    [
        ("probe_lin20_augmented", "linear probe (20 epochs, augmented)"),
        ("probe_lin20_standardised", "linear probe (20 epochs, standardised)"),
        ("random/probe_lin20_adam_dropout0.2", "linear probe (20 epochs, adam, dropout0.2), before training"),
        ("random/probe_lin20", "linear probe (20 epochs), before training"),
        ("reestimated/probe_lin20", "linear probe (20 epochs), BatchNorm re-estimated"),
        ("reestimated/knn_k5_t0.1", "kNN (k5, t0.1), BatchNorm re-estimated"),
    ],
)
def test_report_shows_every_way_of_probing(protocol, heading):
    metrics = {f"{protocol}/block1/gap/top1": 0.5, f"{protocol}/block1/gap/top1_best_on_test": 0.9}
    _, parts = cells_of(rows(line(**{**probed(1), "metrics": metrics})))
    assert parts["probes"].to_dict("list") == {f"{heading}, each block, %": ["50.0"]}


def test_report_shows_outputs_in_place_of_what_they_read():
    found = {"block1/gap/top1": 0.9, "block1/outputs/top1": 0.8, "block1/outputs/top1_by_largest": 0.7}
    metrics = {f"{judge}/{name}": value for judge in ("association", "probe_lin20") for name, value in found.items()}
    _, parts = cells_of(rows(line(**{**probed(1), "metrics": metrics})))
    headings = ["association, each block, %", "linear probe (20 epochs), each block, %"]
    assert parts["probes"].to_dict("list") == {heading: ["80.0"] for heading in headings}


def test_report_shows_no_probe_of_few_labels():
    _, parts = cells_of(rows(line(**{**probed(1), "metrics": {"probe_lin20_adam_labels0.1/block1/gap/top1": 0.5}})))
    assert not [*parts["probes"]]


def test_no_column_of_many_blocks_is_cut_off(reported):
    each = " ".join(f"{5 * k:.1f}" for k in range(1, 17))
    shown = [row for row in reported[2].splitlines() if row.count(each) == 2]
    assert len(shown) == 1
    assert "80.00" in shown[0]


def test_the_note_says_what_the_reader_must_know(reported, tmp_path, capsys):
    always = "Test split; speed as it was on the machine at that time."
    said = [
        "(×…) is the ratio to Backprop of the same network, data and batch size; of a method without labels, to its "
        "own run with one block.",
        "Where blocks learn one after the other, epochs are those of all blocks, images/s of one block.",
        "Of runs of the same setting and seed only the last by name counts: 1 left out.",
    ]
    assert " ".join([always, *said]) in reported[2].splitlines()
    write(tmp_path, "backprop")
    write(tmp_path, "longer", epochs=3, peak_activation_bytes=0)
    write(tmp_path, "dgl", **local())
    main([str(tmp_path)])
    several = "(of several, the one of as many epochs that shares most settings)"
    note = f"{always} (×…) is the ratio to Backprop of the same network, data and batch size {several}."
    assert note in capsys.readouterr().out.splitlines()


def test_what_no_run_has_is_left_out(tmp_path):
    write(tmp_path, "simclr", **probed(2, peak_activation_bytes=0))
    main([str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert not any(heading in text for heading in ("peak MiB", "test top-1", "ratio", "left out"))
    assert (tmp_path / "cost.png").is_file()


@pytest.mark.parametrize(("file", "text"), [("summary.json", "{"), ("config.yaml", "model: [")])
def test_a_damaged_file_is_named(file, text, tmp_path):
    write(tmp_path, "backprop")
    (tmp_path / "backprop" / file).write_text(text)
    with pytest.raises(RunError, match=f"backprop/{file} is damaged"):
        find_runs([tmp_path])


def test_neither_report_nor_suite_imports_torch(tmp_path):
    write(tmp_path, "study/backprop")  # finished: nothing is left to do but to report
    (tmp_path / "study.yaml").write_text("runs: [{config: nowhere.yaml, name: backprop}]")
    program = (
        "import sys; from experiments.cli import main; "
        f"main(['report', '{tmp_path}']); main(['suite', '{tmp_path}/study.yaml', '--runs={tmp_path}']); "
        "assert not {'torch', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_damaged_runs_are_left_out_and_named(tmp_path, capsys):
    for name in ("whole", "cut", "strange"):
        write(tmp_path, name)
    (tmp_path / "cut" / "summary.json").write_text('{"name":')
    (tmp_path / "strange" / "config.yaml").write_text("model: 3")
    assert list(find_runs([tmp_path])["name"]) == ["whole"]
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"left out: {tmp_path}/") and " is damaged (" in line for line in said] == [True, True]


def test_unfinished_runs_are_left_out_and_named(tmp_path, capsys):
    write(tmp_path, "whole")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / UNFINISHED).touch()
    assert list(find_runs([tmp_path])["name"]) == ["whole"]
    assert capsys.readouterr().err == f"left out: {tmp_path}/half is not finished.\n"
    with pytest.raises(RunError, match=r"There is no run .*nowhere"):
        find_runs([tmp_path / "nowhere"])
