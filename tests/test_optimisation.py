import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.optimisation import SGD, AdamW, LinearDecay, learning_rate_schedule, make_optimizer
from dynkhydra_tf.settings import OptimisationSettings


def rate_of(steps_per_epoch=10, **settings):
    return learning_rate_schedule(OptimisationSettings(**settings), steps_per_epoch)


def test_piecewise_drops_at_the_first_step_of_the_epoch():
    rate = rate_of(schedule="piecewise", learning_rate=1e-3, epochs=4, lr_drops=((2, 0.1), (3, 0.01)))
    # Steps 0..19 are epochs 0 and 1, the paper's "at epoch 2" begins with step 20.
    for step, factor in [(0, 1), (19, 1), (20, 0.1), (29, 0.1), (30, 0.01), (39, 0.01)]:
        assert float(rate(step)) == pytest.approx(1e-3 * factor), step


def test_piecewise_without_drops_is_constant():
    assert rate_of(schedule="piecewise", learning_rate=1e-3, epochs=4, lr_drops=()) == 1e-3


def test_cosine_with_warm_up():
    rate = rate_of(schedule="cosine", learning_rate=2.0, epochs=5, warmup_epochs=1.0)
    # Linear to 2 at step 10; half way from 10 to 50 the cosine is at 1; at the end at 0.
    for step, value in [(0, 0), (5, 1), (10, 2), (30, 1), (50, 0)]:
        assert float(rate(step)) == pytest.approx(value, abs=1e-6), step


def test_cosine_without_warm_up():
    rate = rate_of(schedule="cosine", learning_rate=2.0, epochs=5, warmup_epochs=0.0)
    for step, value in [(0, 2), (25, 1), (50, 0)]:
        assert float(rate(step)) == pytest.approx(value, abs=1e-6), step


def test_linear():
    rate = rate_of(schedule="linear", learning_rate=2.0, epochs=5, warmup_epochs=1.0)
    # Up to 2 at step 10; 40 steps down: half way at step 30.
    for step, value in [(0, 0), (5, 1), (10, 2), (30, 1), (50, 0), (60, 0)]:
        assert float(rate(step)) == pytest.approx(value, abs=1e-6), step
    without = rate_of(schedule="linear", learning_rate=2.0, epochs=5, warmup_epochs=0.0)
    assert [float(without(step)) for step in (0, 25, 50)] == [2, 1, 0]
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(rate))
    assert isinstance(again, LinearDecay) and float(again(30)) == 1


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_warm_up_as_long_as_the_run(schedule):
    with pytest.raises(UserError, match=r"warmup_epochs must be less than epochs=2. Received: 2"):
        rate_of(schedule=schedule, epochs=2, warmup_epochs=2.0)


def trained_one_step(optimizer, gradient=0.0):
    variables = [
        keras.Variable(np.ones((2, 3)), name="block_conv_kernel"),
        keras.Variable(np.ones((2, 3)), name="block_norm_gamma"),
    ]
    optimizer.build(variables)
    optimizer.apply_gradients([(np.full((2, 3), gradient), variable) for variable in variables])
    return [float(variable.numpy()[0, 0]) for variable in variables]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_on_kernels_alone_survives_saving(name):
    # A step without gradient takes rate * decay = 0.5 * 0.2 from what decays.
    settings = {"optimizer": name, "learning_rate": 0.5, "weight_decay": 0.2, "schedule": "piecewise"}
    settings["lr_drops"] = ()
    both = make_optimizer(OptimisationSettings(**settings), 10)
    assert trained_one_step(both) == pytest.approx([0.9, 0.9])
    kernels = make_optimizer(OptimisationSettings(**settings, decay_kernels_only=True), 10)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(kernels))
    assert trained_one_step(kernels) == pytest.approx([0.9, 1.0])
    assert trained_one_step(again) == pytest.approx([0.9, 1.0])


def test_sgd_has_nesterov_momentum():
    settings = OptimisationSettings(
        optimizer="sgd", learning_rate=0.1, weight_decay=0.0, schedule="piecewise", lr_drops=()
    )
    # m = -0.1 * 1; Nesterov's step is 0.9 m - 0.1 * 1 = -0.19.
    assert trained_one_step(make_optimizer(settings, 10), gradient=1.0) == pytest.approx([0.81, 0.81])


@pytest.mark.parametrize(
    "mine, keras_s",
    [
        (SGD, keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1)),
        (SGD, keras.optimizers.SGD(0.1, momentum=0.5)),
        (SGD, keras.optimizers.SGD(0.1)),
        (AdamW, keras.optimizers.AdamW(0.1, weight_decay=0.1)),
        (AdamW, keras.optimizers.AdamW(0.1, beta_1=0.5, beta_2=0.8, epsilon=1e-2)),
        (AdamW, keras.optimizers.AdamW(0.1, amsgrad=True)),
    ],
)
def test_one_op_does_what_keras_does(mine, keras_s):
    """Weights and state after three steps; and one optimizer goes on with the state of the other."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=(2, 3)).astype(np.float32)
    gradients = rng.normal(size=(4, 2, 3)).astype(np.float32)
    ends = []
    for kind in (mine, type(keras_s)):
        variable, optimizer = keras.Variable(start), kind.from_config(keras_s.get_config())
        optimizer.build([variable])
        step = _step_of(optimizer, variable)
        for gradient in gradients[:3]:
            step(tf.constant(gradient))
        ends.append((variable, optimizer, step))
    (variable, optimizer, step), (expected, of_keras, _) = ends
    assert np.abs(expected.numpy() - start).min() > 1e-3
    # TensorFlow's Adam takes 1 - beta_2 in float32, which of 0.999 is 1.3e-5 off.
    near = {"rtol": 3e-5 if mine is AdamW else 1e-6, "atol": 1e-7}
    for found, wanted in zip([variable, *optimizer.variables], [expected, *of_keras.variables], strict=True):
        np.testing.assert_allclose(found.numpy(), wanted.numpy(), **near, err_msg=found.path)
    assert in_one_op(step) == optimizer.in_one_pass

    # As when a run goes on that was begun before.
    for found, wanted in zip(optimizer.variables, of_keras.variables, strict=True):
        found.assign(wanted.numpy())
    variable.assign(expected.numpy())
    for _, _, run in ends:
        run(tf.constant(gradients[3]))
    np.testing.assert_allclose(variable.numpy(), expected.numpy(), **near)


def _step_of(optimizer, variable):
    return tf.function(lambda gradient: optimizer.apply_gradients([(gradient, variable)]))


def in_one_op(step):
    graph = step.get_concrete_function(tf.TensorSpec((2, 3))).graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return bool({"ResourceApplyKerasMomentum", "ResourceApplyAdam"} & {node.op for node in nodes})


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_branches_have_a_rate_of_their_own_which_survives_saving(name, make_hydra):
    """A step without decay moves a branch five times as far; what decay takes is as ever."""
    settings = {"optimizer": name, "learning_rate": 0.01, "schedule": "piecewise", "lr_drops": ()}
    moved = {}
    for decay, gradient in ((0.0, 1.0), (0.5, 0.0)):
        for scale in (1.0, 5.0):
            wanted = OptimisationSettings(**settings, weight_decay=decay, branch_gradient_scale=scale)
            optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(make_optimizer(wanted, 10)))
            model = make_hydra()
            variables = model.trainable_variables
            before = [variable.numpy() for variable in variables]
            optimizer.build(variables)
            optimizer.apply_gradients([(tf.fill(v.shape, gradient), v) for v in variables])
            moved[decay, scale] = [v.numpy() - was for v, was in zip(variables, before, strict=True)]
    stacks = {id(variable) for variable in model.branches.trainable_variables}
    assert len(stacks) == 3  # kernel, scale, offset
    for variable, once, more in zip(variables, moved[0.0, 1.0], moved[0.0, 5.0], strict=True):
        factor = 5 if id(variable) in stacks else 1
        assert np.abs(once).min() > 5e-3
        np.testing.assert_allclose(more, factor * once, rtol=2e-4, err_msg=variable.path)
    for once, more in zip(moved[0.5, 1.0], moved[0.5, 5.0], strict=True):
        np.testing.assert_array_equal(once, more)
    assert any(np.abs(taken).max() > 1e-4 for taken in moved[0.5, 1.0])


def test_with_sgd_a_scale_of_the_branches_is_one_of_their_gradients():
    """Two steps with momentum and decay: as if the gradients had been three times as large."""
    settings = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.2, "schedule": "piecewise"}
    ends = []
    for scale, gradient in ((3.0, 1.0), (1.0, 3.0)):
        wanted = OptimisationSettings(**settings, lr_drops=(), branch_gradient_scale=scale)
        optimizer = make_optimizer(wanted, 10)
        stack = keras.Variable(np.ones((2, 3)), name="kernel")
        stack.of_branches = True
        optimizer.build([stack])
        for _ in range(2):
            optimizer.apply_gradients([(tf.fill((2, 3), gradient), stack)])
        ends.append(stack.numpy())
    np.testing.assert_allclose(*ends, rtol=1e-6)
