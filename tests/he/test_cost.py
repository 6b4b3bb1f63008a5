"""What a query's header says of its cost: the reply's exact length, and a bound on memory held against the process."""

import subprocess
import sys

import numpy as np
import pytest

from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.messages import wire

pytestmark = pytest.mark.processes

SHAPES = [((128, 10), "bfv", "batched", 4096), ((128, 10), "bfv", "coefficient", 200)]
SHAPES += [((256, 1000), "bfv", "coefficient", 5), ((256, 1000), "ckks", "batched", 2049)]
SHAPES += [((128, 10), "bfv-sanitized", "coefficient", 60), ((64, 300), "ckks-sanitized", "coefficient", 4)]

MEASURE = """
import sys, numpy as np
from tfprivacy_lab import he
from tfprivacy_lab.he.messages import wire as messages

def status(name):
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(name + ":"))

shape, small, large = eval(sys.argv[1]), *(open(path, "rb").read() for path in sys.argv[2:4])
server = he.Server(np.random.default_rng(0).normal(size=shape) / 10)
server.evaluate(small)
cost = server.cost(large[: messages.HEADER_BYTES], len(large))
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as stream:
    stream.write("5")
reply = server.evaluate(large)
print(status("VmHWM") - before, cost.working_bytes, cost.reply_bytes, len(reply))
"""


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(("shape", "name", "packing", "samples"), SHAPES)
def test_evaluation_holds_no_more_than_its_cost(request, tmp_path, shape, name, packing, samples, compress):
    """The peak of a process that does nothing else, 8 MiB of the allocator's aside."""
    client = request.getfixturevalue(f"{name.replace('-', '_')}_client")
    for file, count in (("small", 1), ("large", samples)):
        query = client.encrypt(np.zeros((count, shape[0])), 1.0, packing, compress=compress)
        (tmp_path / file).write_bytes(query)
    command = [sys.executable, "-c", MEASURE, repr(shape), tmp_path / "small", tmp_path / "large"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=100, check=True)
    peak, working, announced, actual = map(int, done.stdout.split())
    assert announced == actual
    assert peak < working + 8 * 2**20
    assert working < 6 * max(actual, (tmp_path / "large").stat().st_size) + 64 * 2**20


def test_costs_of_queries_that_cannot_be_answered(bfv_client):
    server, query = he.Server(np.ones((4, 2)), replies="any"), bfv_client.encrypt(np.ones((3, 4)), 1.0)
    start = query[: wire.HEADER_BYTES]
    assert server.cost(start, len(query)).samples == 3
    for given, length, naming in (
        (start[:-1], len(query), "header"),
        (b"", 0, "other bytes"),
        (start, len(query) - 1, "truncated"),
        (bfv_client.to_bytes()[: wire.HEADER_BYTES], len(query), "keep it secret"),
    ):
        with pytest.raises(InputError, match=naming):
            server.cost(given, length)
    with pytest.raises(InputError, match="5 features"):
        he.Server(np.ones((5, 2))).cost(start, len(query))
    with pytest.raises(InputError, match="sanitised"):
        he.Server(np.ones((4, 2)), replies="sanitized").cost(start, len(query))


def test_pieces_must_make_the_whole(bfv_client):
    header, body = wire.parse(bfv_client.encrypt(np.ones((2, 4)), 1.0, "coefficient"), wire.QUERY, "query")
    whole = wire.pack(header, bytes(body))
    assert wire.pack_pieces(header, [bytes(body)[: 2**15], bytes(body)[2**15 :]]) == whole
    with pytest.raises(ValueError, match="body of"):
        wire.pack_pieces(header, [bytes(body)[: 2**15]])
