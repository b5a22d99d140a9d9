from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from dynkhydra_tf.serving.server_files import write_server_files


def test_the_server_can_read_them(tmp_path):
    write_server_files(tmp_path, "digits", [1, 4, 16])
    models = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((tmp_path / "models.config").read_text(), models)
    (model,) = models.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("digits", "/models/digits", "tensorflow")
    assert "prometheus_config {\n  enable: true\n" in (tmp_path / "monitoring.config").read_text()
    # The batching parameters' message is in no package.
    lines = (tmp_path / "batching_parameters.txt").read_text().splitlines()
    settings = [line for line in lines if not line.startswith("#")]
    assert settings[0] == "max_batch_size { value: 16 }"
    assert settings[-3:] == [f"allowed_batch_sizes: {size}" for size in (1, 4, 16)]
