"""What a model server is configured with, and the requests it warms up with. S is the side of an image."""

import json
import os
import pathlib
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import write_text

if TYPE_CHECKING:
    import tensorflow as tf

MODELS = """\
# tensorflow_model_server --model_config_file={place}/models.config
model_config_list {{
  config {{
    name: {name}
    base_path: {base_path}
    model_platform: "tensorflow"
    model_version_policy {{ latest {{ num_versions: 1 }} }}
  }}
}}
"""

LABELS = """\
# tensorflow_model_server --model_config_file={place}/ab.config --allow_version_labels_for_unavailable_models
#
# Two versions side by side: .../v1/models/NAME/labels/stable:predict and .../labels/canary:predict, over gRPC
# the version_label. The monitor tells lambda and drift of either. The flag lets the labels be there at once.
model_config_list {{
  config {{
    name: {name}
    base_path: {base_path}
    model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: {stable} versions: {canary} }} }}
    version_labels {{ key: "stable" value: {stable} }}
    version_labels {{ key: "canary" value: {canary} }}
  }}
}}
"""

BATCHING = """\
# tensorflow_model_server --enable_batching --batching_parameters_file={place}/batching_parameters.txt
#
# The server waits batch_timeout_micros for requests to run together, at most max_batch_size images, and pads
# the batch to the next of allowed_batch_sizes. This model runs a branch on the images that need it: a row of
# padding is a copy of a request's image and costs what that image costs, its branches included. So the sizes
# lie close together; with few clients, leave batching off: one image alone takes the shortest path.
#
# The server refuses a request of more than max_batch_size images ("Task size ... is larger than maximum input
# batch size"); without batching this model takes up to {max_batch}. A file that cannot be read is told in the
# output error of its row and fails no other request; a wrong shape, tau or float image fails the batch that
# it is in. The server takes bodies of gigabytes: in front of a public one, a proxy needs a limit on the body.
# Over gRPC one value may stand for a tensor of any shape, which the server unpacks before the model is asked.
max_batch_size {{ value: {largest} }}
batch_timeout_micros {{ value: 2000 }}
max_enqueued_batches {{ value: 100 }}
num_batch_threads {{ value: 2 }}
{sizes}
"""

MONITORING = """\
# tensorflow_model_server --rest_api_port=8501 --monitoring_config_file={place}/monitoring.config
prometheus_config {{
  enable: true
  path: "/monitoring/prometheus/metrics"
}}
"""


def check_name(name: str) -> None:
    """Checks a model's name on a server.

    Raises:
        UserError: what the server's addresses, files and logs cannot hold.
    """
    if not name.strip(".") or not name.isprintable() or set(name) & set("/:"):
        raise UserError(
            f"name must be printable, without / and :, and not of dots alone. Received: name={name!r}"
        )


def write_server_files(
    directory: str | os.PathLike,
    name: str,
    batch_sizes: Sequence[int],
    max_batch: int,
    versions: Sequence[int] = (),
) -> None:
    """Writes models.config, batching_parameters.txt and monitoring.config into a model's directory.

    Where there are two versions also ab.config, which serves the last two under the labels stable and canary.

    Args:
        directory: the model's directory, the one that holds the versions.
        name: the model's name on the server, see `check_name`.
        batch_sizes: rising.
        max_batch: the most images of a request.
        versions: those in the directory, rising.
    """
    place = f"/models/{name}"
    values = {
        "place": shlex.quote(place),
        "name": _quoted(name),
        "base_path": _quoted(place),
        "largest": max(batch_sizes),
        "max_batch": max_batch,
        "sizes": "\n".join(f"allowed_batch_sizes: {size}" for size in batch_sizes),
    }
    texts = {"models.config": MODELS, "batching_parameters.txt": BATCHING, "monitoring.config": MONITORING}
    if len(versions) > 1:
        texts["ab.config"] = LABELS
        values |= {"stable": versions[-2], "canary": versions[-1]}
    for file, text in texts.items():
        write_text(pathlib.Path(directory) / file, text.format(**values))


def _quoted(text):
    """Printable text as a string of protobuf's text format, which escapes these as JSON does."""
    return json.dumps(text, ensure_ascii=False)


def write_warmup(
    directory: str | os.PathLike,
    size: int,
    input_dtype: "tf.DType",
    batch_sizes: Sequence[int],
    signatures: Sequence[str],
) -> None:
    """Writes assets.extra/tf_serving_warmup_requests: each signature at each batch size.

    The images are of one colour, so that the file stays small; all branches share one body, and one image
    warms it up.

    Args:
        directory: the version directory.
        size: S.
        input_dtype: of `images`.
        batch_sizes: the sizes.
        signatures: the names of those that the model has.
    """
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    picture = tf.io.encode_jpeg(tf.fill((size, size, 3), tf.constant(128, tf.uint8))).numpy()

    def requests(batch):
        # One value stands for all in a TensorProto.
        images = tf.make_tensor_proto(128, input_dtype, (batch, size, size, 3))
        taus = {"tau": tf.make_tensor_proto(0.0, tf.float32, (batch,))}
        confidences = {"exit_confidence": tf.make_tensor_proto(1.0, tf.float32, (batch,))}
        files = tf.make_tensor_proto([picture] * batch, tf.string)
        return {
            "serving_default": {"images": images},
            "with_tau": {"images": images, **taus},
            "with_exit_confidence": {"images": images, **taus, **confidences},
            "gate": {"images": images},
            "image_bytes": {"image_bytes": files},
            "image_bytes_with_tau": {"image_bytes": files, **taus},
            "image_bytes_with_exit_confidence": {"image_bytes": files, **taus, **confidences},
        }

    path = pathlib.Path(directory) / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for batch in batch_sizes:
            inputs = requests(batch)
            for signature in signatures:
                request = predict_pb2.PredictRequest()
                request.model_spec.signature_name = signature
                for name, value in inputs[signature].items():
                    request.inputs[name].CopyFrom(value)
                log = prediction_log_pb2.PredictLog(request=request)
                writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
