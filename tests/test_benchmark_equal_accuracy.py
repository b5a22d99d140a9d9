import json
import shutil

import numpy as np
import pytest

from dynkhydra_tf.benchmark import equal_accuracy, inference, subjects
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.plain import Plain
from tests.conftest import ROOT

KEPT = ROOT / "docs" / "runs"


@pytest.fixture
def kept(tmp_path):
    """A function that copies kept runs into a directory and returns it."""

    def copy(*names):
        for name in names:
            shutil.copytree(KEPT / name, tmp_path / name)
        return tmp_path

    return copy


def _again(path, run, **flags):
    """Copies a run that is kept as `again`, with other values of some flags."""
    shutil.copytree(path / run, path / "again")
    file = path / "again" / "flags.cfg"
    lines = file.read_text().splitlines()
    for name, value in flags.items():
        lines = [line for line in lines if not line.startswith(f"--{name}=")] + [f"--{name}={value}"]
    file.write_text("\n".join(lines) + "\n")
    return path / "again"


def _of(rows, run, tau=None):
    (row,) = [row for row in rows if (row["run"], row["tau"]) == (run, tau)]
    return row


def test_the_runs_of_the_repository():
    rows = equal_accuracy.trained(KEPT, [0.15])
    hydra = _of(rows, "hydra_d2_e12", 0.15)
    assert (hydra["top1"], hydra["active_branches"]) == (0.6019, 1.4897)
    assert (hydra["depth"], hydra["num_branches"], hydra["top_k"], hydra["classes"]) == (2, 20, 4, 100)
    assert _of(rows, "hydra_d2_e12", 0.08)["top1"] == 0.6113  # its own threshold
    assert _of(rows, "plain_d3_e12")["top1"] == 0.5917
    runs = {row["run"] for row in rows}
    # Six epochs: no Hydra was trained so; a shared trunk; another size and network.
    assert not runs & {"plain_d2_e6", "trunk_d2_e6_on_e6", "cifar100_96px_plain"}


def test_seeds_are_one_network(kept):
    path = kept("hydra_d2_e12", "plain_d3_e12")
    other = _again(path, "plain_d3_e12", seed=1)
    summary = json.loads((other / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps(summary | {"top1": 0.6017}))
    plain = [row for row in equal_accuracy.trained(path, []) if row["tau"] is None]
    assert [(row["seeds"], row["top1"]) for row in plain] == [(2, pytest.approx(0.5967))]


def test_how_often_a_run_was_evaluated_makes_no_other_network(kept):
    path = kept("hydra_d2_e12", "plain_d3_e12")
    _again(path, "plain_d3_e12", seed=1, evaluate_every=7)
    assert [row["seeds"] for row in equal_accuracy.trained(path, []) if row["tau"] is None] == [2]
    for name in ("plain_d3_e12", "again"):
        with open(path / name / "flags.cfg", "a") as file:
            file.write("--early_stopping=2\n")  # then it may end the run
    assert [row["seeds"] for row in equal_accuracy.trained(path, []) if row["tau"] is None] == [1, 1]


def test_only_networks_of_as_many_training_images_are_compared(kept):
    path = kept("hydra_d2_e12", "plain_d3_e12")
    half = _again(path, "plain_d3_e12", validation_fraction=0.5)
    data = json.loads((half / "data.json").read_text())
    data["sizes"] |= {"train": 25000, "validation": 25000}
    (half / "data.json").write_text(json.dumps(data))
    assert "again" not in {row["run"] for row in equal_accuracy.trained(path, [])}
    shutil.rmtree(path / "plain_d3_e12")
    with pytest.raises(UserError, match="trained for as long on as many images"):
        equal_accuracy.trained(path, [])


def test_thresholds_that_were_not_measured_are_left_out(kept):
    rows = equal_accuracy.trained(kept("hydra_d2_e12", "plain_d3_e12"), [0.15, 0.77])
    assert [row["tau"] for row in rows] == [None, 0.08, 0.15]


@pytest.mark.parametrize("names", [["hydra_d2_e12", "plain_d3_e24"], ["plain_d3_e12"], []])
def test_a_pair_is_needed(kept, names):
    with pytest.raises(UserError, match="must hold a Hydra on ResNet") as error:
        equal_accuracy.trained(kept(*names), [])
    assert str(error.value).endswith(f"Received: {', '.join(names) or 'no such run'}")


def test_comparison_by_hand(kept, monkeypatch):
    rows = equal_accuracy.trained(kept("hydra_d2_e12", "plain_d3_e12", "plain_d4_e12"), [0.15])
    # Accuracies: plain 59.17 and 60.70 %, Hydra 61.13 and 60.19 %: two thirds of the way from d=3 to d=4.
    ms = dict(zip(map(equal_accuracy._subject, rows), (1.0, 2.0, 1.6, 1.5), strict=True))

    def run_job(models, images, batch_sizes, threads, seconds, onednn):
        assert (threads, onednn, len(images)) == (2, "off", 128)
        times = {name: [[ms[name] * 8] * 3] * 8 for name in models}
        return {"answers": None, "times_ms": {8: times}, "cpu_ms": {8: times}}

    monkeypatch.setattr(inference, "run_job", run_job)
    monkeypatch.setattr(equal_accuracy, "_export", lambda *_: (dict.fromkeys(ms, "there"), {}))
    monkeypatch.setattr(equal_accuracy, "_torch_is_there", lambda: False)
    said = []
    (result,) = equal_accuracy.against_plain("", rows, [8], [2], ["off"], 0.0, said.append)
    assert (result["runtime"], result["threads"], result["onednn"], result["batch_size"]) == (
        "tensorflow",
        2,
        "off",
        8,
    )
    share = (0.6019 - 0.5917) / (0.607 - 0.5917)
    of_equal_accuracy = {name: row["plain_ms"] for name, row in result["subjects"].items()}
    assert of_equal_accuracy == {
        "plain_d3_e12": [None, None],
        "plain_d4_e12": [None, None],
        "hydra_d2_e12, tau 0.08": [16.0, None],  # more accurate than either
        "hydra_d2_e12, tau 0.15": [pytest.approx(8 + 8 * share)] * 2,
    }
    assert "Without PyTorch" in said[0]
    line = next(line for line in said[1].splitlines() if line.startswith("hydra_d2_e12, tau 0.08"))
    trained, timed = ["12", "1.95", "61.13%"], ["12.80", "12.80", "-", "12.80", "12.80"]
    assert line.split()[3:] == [*trained, *timed, ">", "16.00", ">", "1.25"]


@pytest.mark.slow
def test_networks_of_the_right_lambda_are_timed(kept, tmp_path):
    rows = equal_accuracy.trained(kept("hydra_d2_e12", "plain_d1_e12"), [0.3])
    for row in rows:
        row["depth"] = 1
        row["num_branches"] = row["num_branches"] and 4
    results = equal_accuracy.against_plain(tmp_path, rows, [1, 8], [1], ["on", "off"], 0.0, lambda text: None)
    runtimes = [("tensorflow", "on"), ("tensorflow", "off")]
    runtimes += [("pytorch", None)] * equal_accuracy._torch_is_there()
    assert [(row["runtime"], row["onednn"]) for row in results[::2]] == runtimes
    assert [row["batch_size"] for row in results] == [1, 8] * len(runtimes)
    assert all(times["ms"] > 0 and times["cpu"] > 0 for row in results for times in row["subjects"].values())
    assert list(results[0]["subjects"]) == ["plain_d1_e12", "hydra_d2_e12, tau 0.08", "hydra_d2_e12, tau 0.3"]


@pytest.mark.slow
def test_pytorch_answers_as_tensorflow(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is optional: pip install torch")
    images = subjects.images(64)
    model = subjects.make_hydra(1, 4, combine="sum")
    tau = subjects.tau_for(model, images, 1.5)
    subjects.export_pytorch(model, tmp_path / "hydra.torch", tau)
    plain = Plain(subjects.ResNet(2), 10)
    subjects.export_pytorch(plain, tmp_path / "plain.torch")
    places = {name: tmp_path / f"{name}.torch" for name in ("hydra", "plain")}
    result = inference.run_job(places, images, [2], 1, 0.0)
    for name, logits in (("hydra", model(images, tau=tau)["logits"]), ("plain", plain(images)["logits"])):
        right = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(result["answers"][name]["probabilities"], right, atol=1e-5)
