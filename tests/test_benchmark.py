import json

import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.benchmark import __main__ as command
from dynkhydra_tf.benchmark import environment, inference, runner, subjects, training
from dynkhydra_tf.gating import select_branches


@pytest.fixture
def benchmark(run_command):
    def run(*arguments):
        def main(options):
            command.main(options, [])

        return run_command(main, command.Options, *arguments)

    return run


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64])
def test_models_answer_all_requests_in_turn_from_others_on_in_each_round(count):
    answered = []

    class Request:
        def __init__(self, name, index):
            self.run = lambda: answered.append((name, index))

        def __exit__(self):
            answered.append("closed")

    class Model:
        def __init__(self, name):
            self.request = lambda inputs, signature: Request(name, inputs["images"][0])

    job = {"images": np.arange(count), "requests": count, "seconds": 0}
    models = {name: Model(name) for name in "ab"}
    taken, spent = runner.times(models, job | {"models": {name: ("", "") for name in models}}, 1)
    assert answered[12 * count :] == ["closed"] * (2 * count)
    turns = [answered[start : start + count] for start in range(0, 12 * count, count)]
    assert all(
        sorted(turn) == [("ab"[n % 2], index) for index in range(count)] for n, turn in enumerate(turns)
    )
    firsts = [[turn[0][1] for turn in turns if turn[0][0] == name] for name in "ab"]
    assert firsts[0] == firsts[1] and len(set(firsts[0])) == min(count, 6)
    assert {name: [len(times) for times in taken[name]] for name in models} == dict.fromkeys(
        "ab", [5] * count
    )
    assert [len(times) for times in spent["b"]] == [5] * count


def test_summary_by_hand():
    # Two requests, three rounds; b takes twice as long in each round.
    times = {"a": [[1.0, 2.0, 3.0], [5.0, 4.0, 6.0]], "b": [[2.0, 4.0, 6.0], [10.0, 8.0, 12.0]]}
    cpu = {"a": [[1.0, 1.0, 9.0], [3.0, 3.0, 3.0]], "b": times["b"]}
    summary = inference.summarise(times, "a", cpu)
    assert summary["a"] == {"ms": 3.5, "low": 3.0, "high": 4.0, "over": 1.0, "cpu": 2.0}
    assert summary["b"] == {"ms": 7.0, "low": 6.0, "high": 8.0, "over": 2.0, "cpu": 7.0}


@pytest.mark.parametrize(("onednn", "told"), [("on", "1"), ("off", "0"), ("default", None)])
def test_what_tensorflow_is_told_of_onednn(monkeypatch, onednn, told):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")  # as this package sets it for itself
    assert environment.with_onednn(onednn).get("TF_ENABLE_ONEDNN_OPTS") == told


def test_comparison_names_what_lies_outside_both_spreads():
    def run(low, ms, high):
        numbers = {"ms": ms, "low": low, "high": high, "over": 1.0}
        return {"inference": [{"threads": 1, "batch_size": 8, "subjects": {"hydra": numbers}}]}

    assert "SLOWER" in command.slower_or_faster(run(1.0, 1.1, 1.2), run(1.3, 1.4, 1.5))
    assert "faster" in command.slower_or_faster(run(1.3, 1.4, 1.5), run(1.0, 1.1, 1.2))
    assert "None of 1 times" in command.slower_or_faster(run(1.0, 1.1, 1.2), run(1.1, 1.3, 1.5))
    assert "Nothing was measured in both" in command.slower_or_faster({}, run(1.1, 1.3, 1.5))


def test_comparison_with_a_file_of_one_setting_of_onednn():
    numbers = {"ms": 1.0, "low": 1.0, "high": 1.0}
    row = {"threads": 1, "batch_size": 8, "subjects": {"hydra": numbers}}
    older = {"environment": {"oneDNN in inference": "off"}, "inference": [row]}
    newer = {"inference": [row | {"onednn": told} for told in ("on", "off")]}
    assert command.slower_or_faster(older, newer).startswith("None of 1 times changed")


@pytest.mark.parametrize(("requests", "compared"), [({}, 0), ({"a model's turn": "all requests"}, 1)])
def test_comparison_leaves_out_inference_with_other_turns(requests, compared):
    numbers = {"ms": 1.0, "low": 1.0, "high": 1.0}
    row = {"threads": 1, "onednn": "on", "batch_size": 1, "subjects": {"hydra": numbers}}
    growth = {"onednn": "on", "depth": 1, "num_branches": 4, "batches": {"1": numbers}}
    training = {"depth": 1, "num_branches": 4, "batch_size": 8, "steps": {"routed": numbers}}
    older = {"environment": requests, "inference": [row], "growth": [growth], "training": [training]}
    newer = older | {"environment": environment.describe("on")}
    expected = f"None of {1 + 2 * compared} times changed"
    assert command.slower_or_faster(older, newer).startswith(expected)


def test_the_gate_spreads_and_tau_sets_lambda():
    model = subjects.make_hydra(depth=1, num_branches=8)
    images = subjects.images(200)
    gate = model(images)["gate"]
    first = np.bincount(np.argmax(gate, axis=1), minlength=8) / len(images)
    assert first.max() < 0.4 and (first > 0.01).sum() >= 6
    for active in (1, 2, 2.5, 4):
        selected = select_branches(gate, subjects.TOP_K, subjects.tau_for(model, images, active))
        assert np.sum(selected) / len(images) == pytest.approx(active, abs=0.01)


@pytest.mark.slow
def test_masked_and_served_answer_alike(tmp_path):
    model, images = subjects.make_hydra(depth=1, num_branches=4), subjects.images(256)
    tau = subjects.tau_for(model, images, 2)
    subjects.export_hydra(model, tmp_path / "hydra", tau)
    subjects.export_masked(model, tmp_path / "masked", tau)
    subjects.export_static(model, tmp_path / "limit", 2)
    models = {name: tmp_path / name for name in ("hydra", "masked", "limit")}
    result = inference.run_job(models, images, [2], 1, 0.0)
    answers = {name: outputs["probabilities"] for name, outputs in result["answers"].items()}
    np.testing.assert_allclose(answers["hydra"], answers["masked"], atol=1e-5)
    right = tf.nn.softmax(model(images[:64], tau=tau)["logits"])
    np.testing.assert_allclose(answers["hydra"], right, atol=1e-5)
    assert not np.allclose(answers["limit"], right, atol=1e-3)
    times = result["times_ms"][2]
    assert {len(requests) for requests in times.values()} == {32}
    assert all(min(min(rounds) for rounds in requests) > 0 for requests in times.values())


def _hundredth(value):
    return {key: value[key] / 100 if key in ("ms", "low", "high") else value[key] for key in value}


@pytest.mark.slow
def test_every_table_on_a_small_network(tmp_path, benchmark, capsys):
    options = ["--depth=1", "--num_branches=4", "--active=2", "--batch_sizes=1", "--threads=1", "--seconds=0"]
    options += [
        "--growth_depths=1",
        "--growth_branches=4,5",
        "--training_depths=1,2",
        "--training_branches=4",
    ]
    options += ["--training_batch_size=16", "--training_steps=2", f"--output_dir={tmp_path}"]
    assert benchmark(*options) is None
    printed = capsys.readouterr().out
    texts = ["hydra, lambda 2", "plain ResNet, d=1", "Of the time at lambda 2: stem", "Growth at lambda 2"]
    texts += ["TensorFlow, oneDNN off, 1 thread, batch 1", "hydra_d2_e12, tau 0.08"]
    for text in (*texts, "dense / routed", "images/s"):
        assert text in printed
    for told in ("on", "off"):
        assert f"1 thread, oneDNN {told}, batch 1; d=1, nb=4" in printed
        assert (tmp_path / f"inference_1_onednn_{told}.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "benchmark.json").read_text())
    assert set(results) == {"environment", "limits", "minutes", *command.SECTIONS}
    assert set(results["minutes"]) == set(command.SECTIONS)
    first, deeper = results["training"]
    assert first["num_branches"] == 4 and first["dense_over_routed"] > 0
    assert (deeper["depth"], deeper["dense_over_routed"]) == (2, None)  # dense at the first depth only
    assert results["input"]["images_per_s"] > 0 and results["input"]["times_the_model"] > 0
    # Every section is compared: against a hundredth of its times, all is slower.
    older = json.loads((tmp_path / "benchmark.json").read_text(), object_hook=_hundredth)
    text = command.slower_or_faster(older, results)
    for section in command.SECTIONS:
        assert f"\n{section}, " in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--active=0"], "active must be numbers in [1, 4]. Received: 0"),
        (["--active=5"], "active must be numbers in [1, 4]. Received: 5"),
        (["--threads=two"], "--threads=two: it must be whole numbers"),
        (["--onednn=maybe"], "onednn must be"),
        (["--threads="], "threads must name at least one number. Received: none"),
        (["--compare=nowhere.json"], "--compare=nowhere.json cannot be read"),
        (["--output_dir=/proc/x"], "Cannot write to /proc"),
    ],
)
def test_bad_input(benchmark, capsys, options, message):
    assert benchmark(*options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", '{"growth": [{"depth": 3}]}', '{"inference": 7}'])
def test_other_json(benchmark, capsys, tmp_path, content):
    (tmp_path / "older.json").write_text(content)
    assert benchmark(f"--compare={tmp_path / 'older.json'}", f"--output_dir={tmp_path}") == 2
    assert "is no benchmark.json of this version" in capsys.readouterr().err


def test_unknown_section(run_command, capsys):
    assert run_command(lambda options: command.main(options, ["speed"]), command.Options) == 2
    sections = "inference, equal_accuracy, edge, growth, training, input"
    assert f"There are the sections {sections}" in capsys.readouterr().err


def test_limits_are_measured():
    limits = command.machine_limits(size=128, turns=1)
    assert len(limits) == 3 and all(value > 0 for value in limits.values())


def test_input_pipeline_is_measured(capsys):
    assert training.input_pipeline(64, 10)["images_per_s"] > 100
