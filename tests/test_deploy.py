"""The files of deploy/: they name what export.py writes, and KServe's classes know every field."""

import json
import re
import subprocess

import pytest

from dynkhydra_tf.flags import parse
from dynkhydra_tf.serving.server_files import write_server_files
from dynkhydra_tf.workers import LOST
from tests import kserve_server
from tests.conftest import ROOT

# In KServe's environment: every field of the manifest, all the way down, is one of its classes'.
CHECK = """
import re, sys
import kserve.models, yaml
from kubernetes.client import models

def check(value, kind, place):
    if inner := re.fullmatch(r"[lL]ist\\[(.*)\\]", kind):
        return [check(each, inner[1], place) for each in value]
    if inner := re.fullmatch(r"[dD]ict[([](.*), ?(.*)[)\\]]", kind):
        return {key: check(each, inner[2], f"{place}.{key}") for key, each in value.items()}
    cls = getattr(kserve.models, kind, None) or getattr(models, kind, None)
    if cls is None:
        right = {"str": str, "int": int, "bool": bool, "object": object}[kind]
        assert isinstance(value, right), f"{place}: {value!r} is no {kind}"
        return value
    names = {theirs: ours for ours, theirs in cls.attribute_map.items()}
    assert not set(value) - set(names), f"{place}: unknown {sorted(set(value) - set(names))}"
    kinds = {key: cls.openapi_types[names[key]] for key in value}
    fields = {names[key]: check(value[key], kinds[key], f"{place}.{key}") for key in value}
    return cls(**fields)  # it checks what must be there

service = check(yaml.safe_load(sys.stdin), "V1beta1InferenceService", "")
assert service.spec.predictor.model.model_format.name == "tensorflow"
print("good")
"""


def check_manifest(text):
    try:
        python = kserve_server.environment()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"kserve cannot be installed: {(error.stderr or '')[-300:]}")
    return subprocess.run([python, "-I", "-c", CHECK], input=text, capture_output=True, text=True)


def test_kserve_knows_every_field_of_the_manifest():
    text = (ROOT / "deploy" / "inferenceservice.yaml").read_text()
    done = check_manifest(text)
    assert done.stdout == "good\n", done.stderr[-2000:]
    done = check_manifest(text.replace("storageUri", "storageURI"))
    assert done.returncode and "unknown ['storageURI']" in done.stderr


def test_the_compose_file_names_what_an_export_has(tmp_path):
    write_server_files(tmp_path, "digits", [1, 4], max_batch=8)
    text = (ROOT / "deploy" / "compose.yaml").read_text().replace("${MODEL:?}", "digits")
    named = re.findall(r"--(\w+)=/models/digits/(\S+)", text)
    assert {file for _, file in named} == {path.name for path in tmp_path.iterdir()}
    for flag, file in named:  # each of them says which flag it is for
        assert f"--{flag}=/models/digits/{file}" in (tmp_path / file).read_text().splitlines()[0]
    assert 'base_path: "/models/digits"' in (tmp_path / "models.config").read_text()


def test_the_training_job_runs_a_command_of_this_version():
    text = (ROOT / "deploy" / "tfjob.yaml").read_text()
    command = re.search(r"command: (\[.*\])", text)[1]
    assert json.loads(command) == ["python", "-m", "dynkhydra_tf.train"]
    settings = parse(re.findall(r"^ +- (--\S+)$", text, flags=re.M))
    assert settings.distribution.distribute == "workers"
    assert settings.run_dir.startswith(re.search(r"name: runs\n +mountPath: (\S+)", text)[1])
    assert settings.data.data_dir == re.search(r"name: data\n +mountPath: (\S+)", text)[1]
    assert settings.optimisation.batch_size % int(re.search(r"replicas: (\d+)", text)[1]) == 0
    assert str(LOST) in text
