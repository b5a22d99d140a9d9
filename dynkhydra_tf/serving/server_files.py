"""What a model server is configured with, and the requests it warms up with. S is the side of an image."""

import pathlib

import tensorflow as tf

from dynkhydra_tf.files import write_text

MODELS = """\
# tensorflow_model_server --model_config_file=/models/{name}/models.config
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
    model_version_policy {{ latest {{ num_versions: 1 }} }}
  }}
}}
"""

BATCHING = """\
# tensorflow_model_server --enable_batching --batching_parameters_file=/models/{name}/batching_parameters.txt
#
# The server waits batch_timeout_micros for requests to run together, at most max_batch_size images, and pads
# the batch to the next of allowed_batch_sizes. This model runs a branch on the images that need it: a row of
# padding is a copy of a request's image and costs what that image costs, its branches included. So the sizes
# lie close together; with few clients, leave batching off: one image alone takes the shortest path. One bad
# image fails the whole batch that it is in.
max_batch_size {{ value: {largest} }}
batch_timeout_micros {{ value: 2000 }}
max_enqueued_batches {{ value: 100 }}
num_batch_threads {{ value: 2 }}
{sizes}
"""

MONITORING = """\
# tensorflow_model_server --rest_api_port=8501 --monitoring_config_file=/models/{name}/monitoring.config
prometheus_config {{
  enable: true
  path: "/monitoring/prometheus/metrics"
}}
"""


def write_server_files(directory, name, batch_sizes):
    """Writes models.config, batching_parameters.txt and monitoring.config into a model's directory.

    Args:
        directory: the model's directory, the one that holds the versions.
        name: str, the model's name on the server.
        batch_sizes: ints, rising.
    """
    sizes = "\n".join(f"allowed_batch_sizes: {size}" for size in batch_sizes)
    texts = {"models.config": MODELS, "batching_parameters.txt": BATCHING, "monitoring.config": MONITORING}
    for file, text in texts.items():
        content = text.format(name=name, sizes=sizes, largest=max(batch_sizes))
        write_text(pathlib.Path(directory) / file, content)


def write_warmup(directory, size, input_dtype, batch_sizes):
    """Writes assets.extra/tf_serving_warmup_requests: each signature at each batch size.

    The images are of one colour, so that the file stays small; all branches share one body, and one image
    warms it up.

    Args:
        directory: the version directory.
        size: int, S.
        input_dtype: `tf.DType` of `images`.
        batch_sizes: ints.
    """
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    picture = tf.io.encode_jpeg(tf.fill((size, size, 3), tf.constant(128, tf.uint8))).numpy()

    def requests(batch):
        # One value stands for all in a TensorProto.
        images = tf.make_tensor_proto(128, input_dtype, (batch, size, size, 3))
        yield "serving_default", {"images": images}
        yield "with_tau", {"images": images, "tau": tf.make_tensor_proto(0.0, tf.float32, (batch,))}
        yield "gate", {"images": images}
        yield "image_bytes", {"image_bytes": tf.make_tensor_proto([picture] * batch, tf.string)}

    path = pathlib.Path(directory) / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for batch in batch_sizes:
            for signature, inputs in requests(batch):
                request = predict_pb2.PredictRequest()
                request.model_spec.signature_name = signature
                for name, value in inputs.items():
                    request.inputs[name].CopyFrom(value)
                log = prediction_log_pb2.PredictLog(request=request)
                writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
