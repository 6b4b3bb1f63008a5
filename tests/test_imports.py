"""What loads what: light parts stay light, and TensorFlow is quiet from import to exit."""

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import tfprivacy_lab
from tfprivacy_lab.lazy_exports import lazy_exports

pytestmark = pytest.mark.processes

HEAVY = ("tensorflow", "tensorflow_privacy", "tensorflow_datasets", "keras", "Pyfhel", "spu", "jax", "sklearn")


def python(code, *arguments):
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


LOADED = """
import importlib, json, sys
modules, names = (argument.split(",") for argument in sys.argv[1:])
found = {}
for module in modules:
    importlib.import_module(module)
    found[module] = [name for name in names if name in sys.modules]
print(json.dumps(found))
"""


def loaded(modules, names=HEAVY):
    """Those of ``names`` that are there after each of ``modules`` is imported, in a fresh interpreter."""
    result = python(LOADED, ",".join(modules), ",".join(names))
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


def test_the_package_alone_loads_nothing_and_the_probe_sees_what_is_loaded():
    names = (*HEAVY, "numpy", "scipy", "dp_accounting")
    assert loaded(["tfprivacy_lab", "tfprivacy_lab.checks"], names) == {
        "tfprivacy_lab": [],
        "tfprivacy_lab.checks": ["numpy"],
    }


LIGHT = [
    "checks", "files", "data.idx", "provenance", "cli.command", "cli.mpc", "experiments.recipes", "dp",
    "dp.accounting.gaussian", "dp.plain", "dp.plan", "dp.sampling", "dp.accounting.statement", "report.page",
    "data.rendered_digits", "distributed_noise", "he", "he.messages.wire", "he.packing.batched", "he.plain",
    "he.ring.parameters", "he.quantization.heads", "he.server.head", "he.service.app", "he.service.batch",
    "he.client.remote", "mpc", "mpc.beaver", "mpc.transport.certificates", "mpc.jobs.job", "mpc.transport.links",
    "mpc.parties", "mpc.jobs.protocols", "mpc.jobs.ranges", "mpc.training", "he.client.head",
]  # fmt: skip


def test_light_modules_load_nothing_heavy():
    modules = [f"tfprivacy_lab.{name}" for name in LIGHT]
    found = loaded(modules)
    # The client brings in the library that holds secret keys, at the latest with its first key.
    assert set(found.pop("tfprivacy_lab.he.client.head")) <= {"Pyfhel"}
    assert found == {module: [] for module in modules[:-1]}


def test_names_load_on_first_use():
    code = (
        "import sys, tfprivacy_lab; print('tfprivacy_lab.dp' in sys.modules); "
        "print(tfprivacy_lab.dp.DpSgdRun(10, 1, 1.0, 1).steps, 'tensorflow' in sys.modules); "
        "print({'checks', 'dp', 'he', 'mpc', 'audit'} - set(dir(tfprivacy_lab)))"
    )
    result = python(code)
    assert (result.stdout.splitlines(), result.stderr) == (["False", "1 False", "set()"], "")
    with pytest.raises(AttributeError, match="module 'tfprivacy_lab' has no attribute 'nothing'"):
        _ = tfprivacy_lab.nothing
    with pytest.raises(AttributeError, match=r"module 'tfprivacy_lab.dp' has no attribute 'nothing'"):
        _ = tfprivacy_lab.dp.nothing


@pytest.mark.slow
def test_whoever_only_asks_for_tensorflow_leaves_it_quiet():
    code = (
        "import importlib.util, sys, tfprivacy_lab; found = importlib.util.find_spec('tensorflow'); "
        "print(found.name, 'tensorflow' in sys.modules); import tensorflow; "
        "print([one for one in sys.meta_path if type(one).__module__.startswith('tfprivacy_lab')])"
    )
    result = python(code)
    assert (result.stdout.splitlines(), result.stderr) == (["tensorflow False", "[]"], "")


@pytest.mark.slow
def test_tensorflow_loads_where_nothing_can_be_held_back():
    result = python("import tempfile; tempfile.tempdir = '/no/such/folder'; import tfprivacy_lab, tensorflow; print(1)")
    assert (result.returncode, result.stdout) == (0, "1\n")


PACKAGES = [module.name for module in pkgutil.walk_packages(tfprivacy_lab.__path__, "tfprivacy_lab.") if module.ispkg]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_promised_name_exists_and_is_none_of_a_module(name):
    package = importlib.import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(getattr(package, "__all__", ()))  # else an import of the module would hide the other
    for promised in getattr(package, "__all__", ()):
        assert getattr(package, promised) is not None
        assert promised in dir(package)


def test_what_moved_is_found_under_its_old_name_and_says_where_it_is():
    moved = {"old_home": "dp.plan", "OldPlan": "dp.plan:TrainingPlan"}
    load, _, listed = lazy_exports("tfprivacy_lab", {}, moved)
    with pytest.warns(DeprecationWarning, match=r"tfprivacy_lab\.old_home is now tfprivacy_lab\.dp\.plan; "):
        assert load("old_home").__name__ == "tfprivacy_lab.dp.plan"
    with pytest.warns(DeprecationWarning, match=r"is now tfprivacy_lab\.dp\.plan\.TrainingPlan; "):
        assert load("OldPlan") is tfprivacy_lab.dp.TrainingPlan
    assert listed == []


@pytest.mark.parametrize("arguments", [["--help"], ["account", "--help"]])
def test_module_runs_as_the_command(arguments):
    command = [sys.executable, "-m", "tfprivacy_lab", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(" ".join(["usage: tfprivacy_lab", *arguments[:-1]]))


def test_module_without_a_command_is_an_error():
    result = subprocess.run([sys.executable, "-m", "tfprivacy_lab"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert "COMMAND" in result.stderr
    assert "Traceback" not in result.stderr


TRAINING = """
import atexit, gc, sys
kept = []

@atexit.register  # Registered first, so it runs last.
def clear_modules_before_functions():
    "What the interpreter does in some programs: a function outlives its module's names."
    module = sys.modules["tensorflow.python.eager.polymorphic_function.atomic_function"]
    module.RUNTIME_FUNCTION_REFS = module.func_graph_module = None
    kept.clear()
    globals().pop("double")
    gc.collect()

import tfprivacy_lab
import keras, numpy as np, tensorflow as tf
from tfprivacy_lab.dp import DpSgdRun, TrainingPlan, train

@tf.function
def double(x):
    return 2 * x

model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
x, y = np.arange(32, dtype=np.float32).reshape(8, 4) / 32, np.arange(8) % 3
model.fit(x, y, verbose=0)
train(model, x, y, plan=TrainingPlan(4, 1, 1.0, 0.1), run=DpSgdRun(8, 4, 2.0, 2), delta=1e-3, seed=0)
kept.append(double.get_concrete_function(tf.TensorSpec([None])))
print(int(double(tf.constant(21))))
"""


def test_tensorflow_is_quiet_from_import_to_exit(monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    result = python(TRAINING)
    assert (result.returncode, result.stdout, result.stderr) == (0, "42\n", "")


def test_a_log_level_of_the_users_own_is_kept(monkeypatch):
    code = "import os, tfprivacy_lab; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    assert python(code).stdout == "0\n"
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    assert python(code).stdout == "3\n"
