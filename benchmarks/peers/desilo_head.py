"""A head in DESILO's CKKS, a row of weights a class and rotations by powers of two; prints JSON. Own environment."""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np
from desilofhe import Engine

ROUNDS, LEVELS = 9, 1


def main() -> None:
    """Read {features, kernel, bias} from standard input; print one row."""
    given = {name: np.array(value) for name, value in json.load(sys.stdin).items()}
    features, kernel, bias = given["features"], given["kernel"], given["bias"]
    engine = Engine(max_level=LEVELS)
    secret = engine.create_secret_key()
    public = engine.create_public_key(secret)
    width = 1 << (len(features) - 1).bit_length()
    steps = [1 << bit for bit in range(width.bit_length() - 1)]
    keys = [engine.create_fixed_rotation_key(secret, step) for step in steps]

    def padded(values):
        return np.pad(values, (0, engine.slot_count - len(values)))

    rows = [engine.encode(padded(row)) for row in kernel.T]
    times, largest = {"server": [], "client": []}, 0.0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        sent = bytes(engine.serialize_ciphertext(engine.encrypt(padded(features), public)))
        middle = time.perf_counter()
        query, received = engine.deserialize_ciphertext(sent), []
        for row in rows:
            total = engine.multiply(query, row)
            for key in keys:
                total = engine.add(total, engine.rotate(total, key))
            received.append(bytes(engine.serialize_ciphertext(total)))
        end = time.perf_counter()
        found = [engine.decrypt(engine.deserialize_ciphertext(reply), secret)[0] for reply in received]
        times["server"].append(end - middle)
        times["client"].append(middle - start + time.perf_counter() - end)
        largest = max(largest, float(np.abs(np.real(found) + bias - features @ kernel - bias).max()))
    row = {
        "setting": f"{engine.slot_count} slots, {LEVELS} level",
        **{f"{who}_ms": round(1e3 * statistics.median(values), 3) for who, values in times.items()},
        "up_bytes": len(sent),
        "down_bytes": sum(map(len, received)),
        "key_bytes": sum(len(engine.serialize_fixed_rotation_key(key)) for key in keys),
        "largest_error": largest,
    }
    json.dump([row], sys.stdout)


if __name__ == "__main__":
    main()
