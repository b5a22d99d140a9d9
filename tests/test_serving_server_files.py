import shlex

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving.server_files import check_name, write_server_files

NAMES = ["digits", 'my "x"', "it's", "a\\b", "two words", "{name}", "Äpfel 🍎", "$HOME", "#1", "v1.5"]


@pytest.mark.parametrize("name", NAMES)
def test_the_server_can_read_them(tmp_path, name):
    check_name(name)
    write_server_files(tmp_path, name, [1, 4, 16], max_batch=40)
    models = model_server_config_pb2.ModelServerConfig()
    text = (tmp_path / "models.config").read_text(encoding="utf-8")
    text_format.Parse(text, models)
    (model,) = models.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == (name, f"/models/{name}", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 1
    # The command in the first line runs as it is.
    assert shlex.split(text.splitlines()[0]) == [
        "#",
        "tensorflow_model_server",
        f"--model_config_file=/models/{name}/models.config",
    ]
    assert "prometheus_config {\n  enable: true\n" in (tmp_path / "monitoring.config").read_text()
    # The batching parameters' message is in no package.
    lines = (tmp_path / "batching_parameters.txt").read_text().splitlines()
    assert "this model takes up to 40." in "\n".join(lines)
    settings = [line for line in lines if not line.startswith("#")]
    assert settings[0] == "max_batch_size { value: 16 }"
    assert settings[-3:] == [f"allowed_batch_sizes: {size}" for size in (1, 4, 16)]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a:b", "a\nb", "a\tb", "\x7f", "\udcff", "a\u2028b"])
def test_a_name_that_no_server_has(name):
    with pytest.raises(UserError, match="name must be printable") as raised:
        check_name(name)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("name", ["digits", 'my "x"', "Äpfel 🍎"])
def test_the_last_two_versions_have_labels(tmp_path, name):
    write_server_files(tmp_path, name, [1], max_batch=4, versions=[1, 3, 7])
    models = model_server_config_pb2.ModelServerConfig()
    text = (tmp_path / "ab.config").read_text(encoding="utf-8")
    text_format.Parse(text, models)
    (model,) = models.model_config_list.config
    assert (model.name, model.base_path) == (name, f"/models/{name}")
    assert list(model.model_version_policy.specific.versions) == [3, 7]
    assert dict(model.version_labels) == {"stable": 3, "canary": 7}
    assert f"--model_config_file=/models/{name}/ab.config" in shlex.split(text.splitlines()[0])
    (tmp_path / "one").mkdir()
    write_server_files(tmp_path / "one", name, [1], max_batch=4, versions=[7])
    assert not (tmp_path / "one" / "ab.config").exists()
