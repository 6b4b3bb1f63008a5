"""Whole networks on encrypted MNIST: train them, evaluate all test images under encryption, and write the figures.

    .venv/bin/python benchmarks/he_networks.py --out results/he_networks

Three networks with square activations are trained on the private train split, shifted by up to a pixel; nothing is
chosen on test data. Rows: the dense network and the convolutional ones in batches (CKKS, and BFV for one square) and
one image at a time; Keras in the clear beside them; the network of TenSEAL's tutorial in TenSEAL as well. Times are
wall times: of all images in queries of a block, or the median of one image.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).resolve().parent))

from he_peers import network_rows

from tfprivacy_lab import data, files, models, provenance
from tfprivacy_lab.he import (
    BatchedPlan,
    DeepImageServer,
    DeepPlan,
    Network,
    NetworkClient,
    NetworkServer,
    SingleImageClient,
    SingleImageServer,
    SinglePlan,
)

EPOCHS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 25, 256, 2e-3, 1e-4


def tutorial_network() -> keras.Sequential:
    """The network of TenSEAL's tutorial on encrypted convolution: 4 kernels of 7x7 and stride 3, 64 and 10 units."""
    layers = keras.layers
    stack = [layers.Input((28, 28, 1)), layers.Conv2D(4, 7, strides=3), models.Square(), layers.Flatten()]
    return keras.Sequential([*stack, layers.Dense(64), models.Square(), layers.Dense(10)])


CASES = {"square_mlp": models.square_mlp, "cryptonet": models.cryptonet, "tutorial_conv": tutorial_network}


def train(make, private: data.PrivateData, seed: int = 0) -> keras.Model:
    """A network trained with Adam, a cosine schedule, and shifted images."""
    keras.utils.set_random_seed(seed)
    model = make()
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            layer.kernel_regularizer = keras.regularizers.L2(WEIGHT_DECAY)
    model = keras.models.model_from_json(model.to_json())  # regularisers count from the making of a layer on

    def shifted(images, labels):
        padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
        return tf.image.random_crop(padded, tf.shape(images)), labels

    examples = tf.data.Dataset.from_tensor_slices((private.train.images, private.train.labels))
    examples = examples.shuffle(len(private.train), seed=seed).batch(32).map(shifted).rebatch(BATCH_SIZE).prefetch(2)
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, EPOCHS * -(-len(private.train) // BATCH_SIZE))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    validation = (private.validation.images, private.validation.labels)
    model.fit(examples, epochs=EPOCHS, verbose=2, validation_data=validation)
    return model


def trained(case: str, folder: Path) -> keras.Model:
    """The model of a case: read if it is there, else trained and written."""
    path = folder / f"{case}.keras"
    if not path.exists():
        model = train(CASES[case], data.load_private("mnist"))
        with files.replaced_atomically(path) as partial:
            model.save(partial)
    return keras.models.load_model(path, compile=False)


def batched(case: str, network: Network, scheme: str, test: data.Split) -> dict:
    """One row: all test images, a block a query, so that memory stays bounded."""
    plan = BatchedPlan.make(network, scheme)
    client, size = NetworkClient(plan.public), plan.public.parameters.samples_per_block
    parts, server_ms, client_ms, up, down = [], 0.0, 0.0, 0, 0
    with NetworkServer(plan) as server:
        server.evaluate(client.encrypt(np.zeros((1, network.inputs))))  # workers start, memory is touched
        for first in range(0, len(test), size):
            images = test.images[first : first + size]
            query, milliseconds = timed(lambda images=images: client.encrypt(images))
            client_ms += milliseconds
            reply, milliseconds = timed(lambda query=query: server.evaluate(query))
            server_ms += milliseconds
            logits, milliseconds = timed(lambda reply=reply, query=query: client.decrypt(reply, query))
            client_ms += milliseconds
            up, down = up + query.nbytes, down + reply.nbytes
            parts.append(logits)
    found = row(case, network, "batched", scheme, np.concatenate(parts), test)
    return {
        **found,
        "server_ms": round(server_ms, 1),
        "client_ms": round(client_ms, 1),
        "images_per_second": round(1000 * len(test) / server_ms),
        "up_bytes": up,
        "down_bytes": down,
        "key_bytes": 0,
        "plan": plan.public.summary(len(test)),
    }


def plain(case: str, model: keras.Model, test: data.Split, count: int) -> dict:
    """One row of Keras in the clear, so many images in one call: what the encryption costs is a ratio to this."""
    call, images, times = tf.function(model), tf.constant(test.images[:count]), []
    for _ in range(9):
        logits, milliseconds = timed(lambda: call(images).numpy())
        times.append(milliseconds)
    found = row(case, Network.from_keras(model), "none", "none", logits, test.take(slice(0, count)))
    return {
        **found,
        "peer": "Keras, not encrypted",
        "server_ms": round(statistics.median(times), 3),
        "client_ms": 0.0,
        "up_bytes": images.numpy().nbytes,
        "down_bytes": logits.nbytes,
        "key_bytes": 0,
    }


def single(case: str, network: Network, test: data.Split) -> dict:
    """One row: image by image, medians."""
    make, serve = (SinglePlan, SingleImageServer) if network.squares == 1 else (DeepPlan, DeepImageServer)
    plan = make.make(network)
    client = SingleImageClient(plan.public)
    keys = client.evaluation_keys()
    server = serve(plan, keys)
    parts, server_ms, client_ms = [], [], []
    for image in test.images:
        query, encrypting = timed(lambda image=image: client.encrypt(image))
        reply, serving = timed(lambda query=query: server.evaluate(query))
        logits, decrypting = timed(lambda reply=reply, query=query: client.decrypt(reply, query))
        parts.append(logits)
        server_ms.append(serving)
        client_ms.append(encrypting + decrypting)
    return {
        **row(case, network, "single", "ckks", np.stack(parts), test),
        "samples": 1,
        "images": len(test),
        "server_ms": round(statistics.median(server_ms), 1),
        "server_ms_quartiles": [round(q, 1) for q in statistics.quantiles(server_ms, n=4)[::2]],
        "client_ms": round(statistics.median(client_ms), 1),
        "up_bytes": query.nbytes,
        "down_bytes": reply.nbytes,
        "key_bytes": keys.bytes,
        "plan": plan.public.summary(),
    }


def row(case: str, network: Network, packing: str, scheme: str, logits, test: data.Split) -> dict:
    """Accuracies, and how far encrypted logits are from those in the clear."""
    plain = network.evaluate(test.images)
    return {
        "case": case,
        "packing": packing,
        "scheme": scheme,
        "samples": len(test),
        "accuracy_plain": float(np.mean(plain.argmax(1) == test.labels)),
        "accuracy_encrypted": float(np.mean(logits.argmax(1) == test.labels)),
        "agreement": float(np.mean(logits.argmax(1) == plain.argmax(1))),
        "largest_error": float(np.abs(logits - plain).max()),
    }


def timed(call):
    """A result and the milliseconds it took."""
    start = time.perf_counter()
    result = call()
    return result, 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/he_networks"))
    parser.add_argument("--models", type=Path, default=Path("runs/he_networks"), help="folder of trained models")
    parser.add_argument("--single", type=int, default=1000, help="images evaluated one at a time")
    arguments = parser.parse_args()
    test, rows = data.load_test("mnist"), []
    made = {case: trained(case, arguments.models) for case in CASES}
    networks = {case: Network.from_keras(model) for case, model in made.items()}
    first = [test.take(slice(0, count)) for count in (1, 20, 4096)]
    runs = [
        lambda: batched("square_mlp", networks["square_mlp"], "ckks", test),
        lambda: batched("square_mlp", networks["square_mlp"], "ckks", first[2]),
        lambda: batched("square_mlp", networks["square_mlp"], "bfv", test),
        lambda: single("square_mlp", networks["square_mlp"], test.take(slice(0, arguments.single))),
        lambda: batched("cryptonet", networks["cryptonet"], "ckks", test),
        lambda: single("cryptonet", networks["cryptonet"], test.take(slice(0, arguments.single // 5))),
        lambda: batched("tutorial_conv", networks["tutorial_conv"], "ckks", test),
        lambda: single("tutorial_conv", networks["tutorial_conv"], test.take(slice(0, arguments.single // 5))),
        *(lambda c=case, n=count: plain(c, made[c], test, n) for case in CASES for count in (1, 4096)),
        lambda: network_rows("tutorial_conv", networks["tutorial_conv"], first[1].images, first[1].labels)[0],
    ]
    for run in runs:
        rows.append(run())
        print({key: value for key, value in rows[-1].items() if key != "plan"}, flush=True)
    files.write_json(arguments.out / "metrics.json", {"rows": rows, **provenance.provenance()})


if __name__ == "__main__":
    main()
