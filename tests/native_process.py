"""Answers requests with an export in a process that never imports tensorflow.

    python native_process.py NATIVE.PY MODEL_DIR REQUESTS.PICKLE ANSWERS.PICKLE

A request is (signature, inputs); its answer is a dict of arrays, or the error's text.
"""

import importlib.util
import pickle
import sys
import time

native_path, model_dir, requests_path, answers_path = sys.argv[1:]
spec = importlib.util.spec_from_file_location("native", native_path)
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)

with open(requests_path, "rb") as file:
    requests = pickle.load(file)
answers = []
start = time.perf_counter()
with native.SavedModel(model_dir, threads=1) as model:
    seconds = time.perf_counter() - start
    for signature, inputs in requests:
        try:
            answers.append(model.run(inputs, signature))
        except native.ModelError as error:
            answers.append(str(error))
assert not {"tensorflow", "keras"} & set(sys.modules), "this process must do without Python's TensorFlow"
with open(answers_path, "wb") as file:
    pickle.dump(answers, file)
with open("/proc/self/status") as file:  # ru_maxrss begins with the parent's
    megabytes = int(file.read().partition("VmHWM:")[2].split()[0]) / 1024
print(f"loaded in {seconds * 1e3:.0f} ms; at most {megabytes:.0f} MB")
