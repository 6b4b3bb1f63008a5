"""TenSEAL's ``mm`` of one encrypted vector with a head, at its own settings; prints JSON. Own environment."""

from __future__ import annotations

import json
import statistics
import sys
import time

import tenseal

ROUNDS = 9
SETTINGS = {"N=8192": (8192, [60, 40, 40, 60]), "N=4096": (4096, [40, 20, 40])}


def main() -> None:
    """Read {features, kernel, bias} from standard input; print a row a setting."""
    given, rows = json.load(sys.stdin), []
    expected = [
        sum(x * w for x, w in zip(given["features"], column, strict=True)) + b
        for column, b in zip(zip(*given["kernel"], strict=True), given["bias"], strict=True)
    ]
    for name, (degree, bits) in SETTINGS.items():
        context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=bits)
        context.global_scale = 2 ** bits[1]
        context.generate_galois_keys()
        times = {"server": [], "client": []}
        for _ in range(ROUNDS):
            start = time.perf_counter()
            query = tenseal.ckks_vector(context, given["features"])
            sent = query.serialize()
            middle = time.perf_counter()
            reply = query.mm(given["kernel"]) + given["bias"]
            received = reply.serialize()
            end = time.perf_counter()
            logits = reply.decrypt()
            times["server"].append(end - middle)
            times["client"].append(middle - start + time.perf_counter() - end)
        rows.append(
            {
                "setting": name,
                **{f"{who}_ms": round(1e3 * statistics.median(values), 3) for who, values in times.items()},
                "up_bytes": len(sent),
                "down_bytes": len(received),
                "key_bytes": len(context.serialize(save_secret_key=False)),
                "largest_error": max(abs(a - b) for a, b in zip(logits, expected, strict=False)),
            }
        )
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
