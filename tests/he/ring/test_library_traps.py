"""Traps of SEAL through Pyfhel 3.5: each is shown to be there still, and to be guarded against.

Where the first half of a test fails, the library has changed: the guard may go. Where the second half fails, the guard
is gone.
"""

import ast
import dataclasses
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import tfprivacy_lab
from tests.he.networks import dense_network
from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.client import head as client_module
from tfprivacy_lab.he.client.key_bytes import make_library
from tfprivacy_lab.he.client.network import NetworkClient
from tfprivacy_lab.he.client.slots import SingleImageClient
from tfprivacy_lab.he.plans.network import BatchedPlan
from tfprivacy_lab.he.plans.single_image import SinglePlan
from tfprivacy_lab.he.quantization.heads import QuantizedHead
from tfprivacy_lab.he.ring import seal
from tfprivacy_lab.he.ring import seal_context as context_module
from tfprivacy_lab.he.ring.network_parameters import BATCHED
from tfprivacy_lab.he.ring.parameters import PARAMETERS
from tfprivacy_lab.he.ring.seal import PyCtxt, Pyfhel
from tfprivacy_lab.he.ring.seal_context import seal_context
from tfprivacy_lab.he.server import bfv_square
from tfprivacy_lab.he.server.network import NetworkServer
from tfprivacy_lab.he.server.slots import SingleImageServer

BFV = PARAMETERS["bfv"]
LOADS = re.compile(r"^[ \"]*(from |import (\w+, )*)Pyfhel\b|(import_module|setattr)\(.Pyfhel\b", re.MULTILINE)


@pytest.fixture(scope="module")
def library():
    made = Pyfhel()
    made.contextGen(scheme="bfv", n=2048, t=BFV.plaintext_modulus, qi=list(BFV.coeff_modulus))
    made.keyGen()
    return made


def test_strided_arrays(library, client):
    strided = np.arange(4096)[::2]
    found = library.decryptInt(library.encryptInt(strided))[:5]
    assert not np.array_equal(found, strided[:5])  # other data, silently
    slots = np.arange(2 * client.parameters.poly_modulus_degree, dtype=float)[::2] / 8192
    slots = (slots + 0j)[::2] if client.scheme == "ckks" else (slots * 8192).astype(np.int64)[::-1]
    assert not slots.flags.c_contiguous
    np.testing.assert_allclose(client._decrypt_slots(client._encrypt_slots(slots)), slots, atol=1e-3)
    features = np.asfortranarray(np.random.default_rng(0).uniform(-1, 1, (8, 10)))[::2, ::-3]
    assert not features.flags.c_contiguous
    kernel = np.random.default_rng(1).normal(size=(4, 3))
    for packing in client.parameters.packings:
        logits = client.decrypt(he.Server(kernel).evaluate(client.encrypt(features, 1.0, packing)))
        np.testing.assert_allclose(logits, features @ kernel, atol=0.01)


def test_missing_evaluation_keys():
    made = Pyfhel()
    made.contextGen(scheme="ckks", n=8192, scale=2.0**30, qi_sizes=[60, 30, 60])
    made.keyGen()
    values = np.arange(4096) / 4096.0
    ciphertext = made.encryptFrac(values)
    alone = Pyfhel()
    alone.from_bytes_context(made.to_bytes_context())
    sent = PyCtxt(pyfhel=alone, bytestring=ciphertext.to_bytes(), scheme="ckks")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        turned = alone.rotate(sent, 1, in_new_ctxt=True)
    assert not alone.is_rotate_key_empty()  # made for a secret of its own
    wrong = made.decryptFrac(PyCtxt(pyfhel=made, bytestring=turned.to_bytes(), scheme="ckks"))
    assert np.abs(wrong - np.roll(values, -1)).max() > 1
    plan = SinglePlan.make(dense_network(3, 20, 8, 3))
    keys = SingleImageClient(plan.public).evaluation_keys()
    # The list of steps says that they are there; the bytes are another's, without them.
    other = SingleImageClient(plan.public)
    other._library.rotateKeyGen(rot_steps=[1])
    short = dataclasses.replace(keys, rotation=other._library.to_bytes_rotate_key("none")).sealed()
    with pytest.raises(InputError, match="evaluation keys of these parameters"):
        SingleImageServer(plan, short)


def test_insecure_parameters(monkeypatch):
    weak = {"scheme": "bfv", "n": 2048, "t": BFV.plaintext_modulus, "qi": [1152921504606830593]}
    status = Pyfhel().contextGen(**weak)
    assert status.startswith("invalid")  # a string that holds "valid", and no error
    original = Pyfhel.contextGen
    for parameters, make in ((BFV, make_library), (BATCHED["bfv", 1], seal_context)):
        monkeypatch.setattr(
            "tfprivacy_lab.he.ring.seal.Pyfhel", answering(lambda library, **asked: original(library, **weak))
        )
        with pytest.raises(RuntimeError, match="another context than asked for: none, but invalid"):
            make(parameters)
        # Also where it says so of a context that is the one asked for.
        saying = answering(lambda library, **asked: original(library, **asked) and status)
        monkeypatch.setattr("tfprivacy_lab.he.ring.seal.Pyfhel", saying)
        with pytest.raises(RuntimeError, match="another context than asked for: none, but invalid"):
            make(parameters)
        monkeypatch.undo()


def answering(function):
    """Pyfhel with another way to make a context."""
    return type("Changed", (Pyfhel,), {"contextGen": lambda library, **asked: function(library, **asked)})


def test_replaced_moduli(monkeypatch):
    made = Pyfhel()
    made.contextGen(scheme="bfv", n=8192, t=1032193, sec=128, qi_sizes=[40, 40, 40])
    assert [prime.bit_length() for prime in made.qi] != [40, 40, 40]  # dropped, silently
    original = Pyfhel.contextGen

    def replacing(library, qi, **asked):
        return original(library, qi_sizes=[30] * len(qi), sec=128, **asked)

    for parameters, make in ((BFV, make_library), (BATCHED["bfv", 1], seal_context)):
        library = make(parameters)
        wanted = parameters.key_primes if parameters is BFV else parameters.coeff_modulus
        assert (library.n, tuple(library.qi)) == (parameters.poly_modulus_degree, wanted)
        assert library.t == parameters.plaintext_modulus
        monkeypatch.setattr("tfprivacy_lab.he.ring.seal.Pyfhel", answering(replacing))
        with pytest.raises(RuntimeError, match="another context than asked for: success"):
            make(parameters)
        monkeypatch.undo()


def test_contexts_from_bytes_bring_their_own_security():
    weak, taken = Pyfhel(), Pyfhel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weak.contextGen(scheme="ckks", n=2048, scale=2.0**20, qi_sizes=[60, 60, 60], sec=0)
        taken.from_bytes_context(weak.to_bytes_context())
        taken.keyGen()  # accepted, with 180 bits at N = 2048
        ciphertext = taken.encryptFrac(np.ones(4), scale=2.0**20)
    assert len(ciphertext.to_bytes("none")) > 2 * 2 * 2048 * 8
    assert "from_bytes_context" not in called()


def test_results_beyond_the_plaintext_range(library):
    half = (BFV.plaintext_modulus - 1) // 2
    one = library.encryptInt(np.array([half]))
    assert library.decryptInt(one + one)[0] == -1  # wrapped, silently
    with pytest.raises(InputError, match="could overflow"):
        QuantizedHead(np.full((1, 1), half // BFV.max_feature + 1), np.zeros(1, int), 1.0, 0, BFV, "coefficient")


@pytest.mark.parametrize("scheme", ["bfv", "ckks"])
def test_factors_of_zeros(library, scheme):
    with pytest.raises(RuntimeError, match="transparent"):
        library.encryptInt(np.array([1])) * library.encodeInt(np.zeros(2048, np.int64))
    client, server = he.Client.generate(scheme), he.Server(np.zeros((4, 2)), [1.0, -1.0])
    for packing in client.parameters.packings:
        logits = client.decrypt(server.evaluate(client.encrypt(np.ones((1, 4)), 1.0, packing)))
        np.testing.assert_allclose(logits, [[1.0, -1.0]], atol=1e-3)


def called() -> set[str]:
    """Names of all attributes that the package's code reads or calls, and its operators on matrices as "@"."""
    found = set()
    for path in (Path(tfprivacy_lab.__file__).parent / "he").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
    return found


def test_wrong_and_inconsistent_functions_are_not_used():
    """``@``, ``cumul_add``, ``mod_level``; ``@`` on NumPy's arrays is another."""
    assert not {"cumul_add", "mod_level", "scalar_prod", "from_bytes_context", "multDepth"} & called()
    holders = (
        *("client/head", "client/slots", "client/network", "ring/seal_context"),
        *("server/slots", "server/ckks_operations", "server/bfv_square"),
    )
    for name in holders:
        tree = ast.parse((Path(tfprivacy_lab.__file__).parent / "he" / f"{name}.py").read_text())
        assert not any(isinstance(node, ast.MatMult) for node in ast.walk(tree)), name
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not {"pickle", "copy", "marshal", "shelve"} & imported, name


def test_pickled_ciphertexts(library):
    ciphertext = library.encryptInt(np.array([7]))
    back = pickle.loads(pickle.dumps(ciphertext))
    with pytest.raises(Exception):  # noqa: B017 - whatever the library raises: the key is gone
        assert back.decrypt()[0] == 7
    # What goes to worker processes are residues; they come back as they would from here.
    plan = BatchedPlan.make(dense_network(3, 4, 3, 2), "bfv")
    client, sent = NetworkClient(plan.public), []
    original = bfv_square.pool

    class Spied:
        def __init__(self, pool):
            self._pool = pool

        def map(self, function, parts):
            sent.extend(parts)
            return self._pool.map(function, parts)

        def shutdown(self):
            self._pool.shutdown()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bfv_square, "pool", lambda *arguments: Spied(original(*arguments)))
        with NetworkServer(plan, processes=2) as server:
            server.evaluate(client.encrypt(np.full((1, 4), 0.5)))
    assert all(type(part) is np.ndarray and part.dtype == np.uint64 for part in sent)


def test_parallel_work_is_done_by_processes_of_their_own():
    """The library holds the interpreter's lock."""
    with bfv_square.pool(BATCHED["bfv", 1], 2) as pool:
        assert pool._mp_context.get_start_method() == "spawn"
        assert type(pool).__name__ == "ProcessPoolExecutor"


def test_a_library_of_another_layout_is_noticed(monkeypatch):
    """Bytes are read at fixed places: a version that writes them elsewhere must not be read at all."""
    monkeypatch.setattr(client_module, "PUBLIC_KEY_PREFIX_BYTES", 121)
    with pytest.raises(RuntimeError, match="another layout"):
        he.Client.generate("bfv")
    monkeypatch.setattr(context_module, "PREFIX_BYTES", 121)
    context_module.ciphertext_prefix.cache_clear()
    with pytest.raises(RuntimeError, match="another layout"):
        context_module.ciphertext_prefix(BATCHED["ckks", 1])


POOLS = """
import ctypes, pathlib, sys

class Loading:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "Pyfhel.Pyfhel":
            print("libAfhel.so" in pathlib.Path("/proc/self/maps").read_text())

sys.meta_path.insert(0, Loading)
import {first}, {second}
from tfprivacy_lab.he.ring.seal import BESIDE, POOL

own = sys.modules["Pyfhel.Pyfhel"].__file__
files = own, str(pathlib.Path(own).parent / BESIDE)
pools = [ctypes.c_void_p.in_dll(ctypes.CDLL(path), POOL) for path in files]
print(len(set(map(ctypes.addressof, pools))), *(pool.value is not None for pool in pools))
"""


@pytest.mark.processes
@pytest.mark.parametrize("late", [True, False])
def test_two_copies_of_seal_destroy_one_pool(late):
    """Pyfhel loaded by itself sets up one pool twice and the other never; what is set up twice is destroyed twice.

    A build whose modules hold no SEAL of their own, but use that of the library beside them, has one pool.
    """
    modules = ("Pyfhel", "tfprivacy_lab.he.ring.seal")[:: 1 if late else -1]
    code = POOLS.format(first=modules[0], second=modules[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    loaded_first, copies, *set_up = done.stdout.split()
    wrong = late and copies == "2"
    assert loaded_first == str(not late)
    assert set_up == ["True", str(not wrong)], done.stderr
    assert wrong or done.returncode == 0, done.stderr
    assert ("RuntimeWarning: Pyfhel was imported before tfprivacy_lab.he.ring.seal" in done.stderr) == wrong


@pytest.mark.parametrize("name", ["POOL", "BESIDE"])
def test_pyfhel_without_that_pool_or_library_is_loaded_without_a_word(monkeypatch, recwarn, name):
    monkeypatch.setattr(seal, name, "none_of_this_name")
    seal._load_apart()
    assert not recwarn.list


def test_nobody_loads_the_library_but_its_door():
    """Also no test and no notebook, whose process would end badly."""
    root = Path(__file__).parents[3]
    folders = [root / name for name in ("tfprivacy_lab", "tests", "benchmarks", "notebooks")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in {".py", ".ipynb"}]
    told = {path.name for path in files if LOADS.search(path.read_text("utf-8"))}
    assert told == {"seal.py"}
