"""What each stage of the walkthrough does: from files to files, with nothing kept in memory between."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import keras
import numpy as np

from tfprivacy_lab import files, he
from tfprivacy_lab.data import datasets, rendered_digits
from tfprivacy_lab.dp.accounting import statement
from tfprivacy_lab.dp.ledger.ledger import Ledger, Reservation, dataset_digest
from tfprivacy_lab.dp.training import planned
from tfprivacy_lab.experiments import audits, charges, claims, features, runs
from tfprivacy_lab.models import architectures
from tfprivacy_lab.pretraining import probe, tasks
from tfprivacy_lab.provenance import provenance
from tfprivacy_lab.walkthrough.workspace import Work

_SHOWN = 10


def prepare_data(work: Work) -> dict:
    """Data: MNIST as the private set, rendered digits as the public one."""
    private = work.private()
    test = datasets.count_test(work.settings.dataset, work.data_dir)
    public, public_labels = rendered_digits.render_digits(10 * _SHOWN, work.settings.recipe.pretraining.seed)
    chosen = [_two_of_each(labels) for labels in (public_labels, private.train.labels)]
    files.write_arrays(
        work.state("samples.npz"),
        public_images=public[chosen[0]],
        public_labels=public_labels[chosen[0]],
        private_images=np.rint(private.train.images[chosen[1], ..., 0] * 255).astype(np.uint8),
        private_labels=private.train.labels[chosen[1]],
    )
    return {"official_mnist": private.official, "train": len(private.train), "test": test}


def pretrain(work: Work) -> dict:
    """Pretrain on public digits, and compare what to pretrain for."""
    settings, chosen = work.settings, work.settings.recipe.pretraining
    runs.use_determinism()
    scores = {"random": probe.linear_probe(_random_backbone(chosen.seed))}
    images, labels = rendered_digits.render_digits(settings.compared_images, chosen.seed + 1)
    for task, epochs in settings.compared:
        learnt = tasks.pretrain(task, images, labels, seed=chosen.seed, epochs=epochs, progress=work.progress)
        scores[task] = probe.linear_probe(learnt.backbone)
        if learnt.reconstruct is not None:
            _write_reconstructions(work.state("reconstructions.npz"), learnt.reconstruct, images[:_SHOWN])
        work.note(f"      {task:<24} probe on public digits {scores[task]:.2%}")
    work.note(f"      {chosen.task} on {chosen.images} public digits, to be kept")
    learnt = features.pretrain_public(chosen, progress=work.progress)
    with files.replaced_atomically(work.out / "backbone.keras") as partial:
        learnt.backbone.save(partial)
    return {
        **dataclasses.asdict(chosen),
        "probe": scores,
        "probe_images": settings.compared_images,
        "probe_epochs": dict(settings.compared),
        "probe_data": probe.DATA,
        "probe_released": probe.linear_probe(learnt.backbone),
    }


def embed(work: Work) -> dict:
    """Freeze the backbone and embed the private set once."""
    backbone, private = runs.load_model(work.out / "backbone.keras"), work.private()
    architectures.freeze(backbone)
    files.write_arrays(
        work.state("features.npz"),
        train=architectures.embed(backbone, private.train.images),
        train_labels=private.train.labels,
        validation=architectures.embed(backbone, private.validation.images),
        validation_labels=private.validation.labels,
    )
    return {"train": len(private.train), "validation": len(private.validation)}


def train_head(work: Work) -> dict:
    """Train the head with DPKerasSGDOptimizer, account for it, state it."""
    settings, recipe = work.settings, work.settings.recipe
    runs.use_determinism()
    train, labels, held_out, held_out_labels = work.features("train", "train_labels", "validation", "validation_labels")
    noise_seed = claims.noise_seed(work.out / "state", settings.seed)
    charged = _charge(work, noise_seed)
    trained = runs.train_head(
        train,
        labels,
        recipe=recipe,
        epsilon=settings.epsilon,
        delta=settings.delta,
        seed=noise_seed,
        validation=(held_out, held_out_labels),
        on_epoch=lambda record: work.note(
            f"      epoch {record.epoch:2d}  epsilon {record.epsilon:.3f}  validation {record.validation_accuracy:.2%}"
        ),
    )
    kernel, bias = trained.model.get_weights()
    files.write_arrays(work.out / "head.npz", kernel=kernel, bias=bias)
    text = runs.run_statement(recipe, trained.run, settings.delta, seeded=settings.seed is not None)
    text += "\n" + statement.row("Ledger covers", work.ledger_covers()) + "\n"
    files.write_bytes(work.out / "privacy_statement.txt", text.encode())
    backbone = runs.load_model(work.out / "backbone.keras")
    with files.replaced_atomically(work.out / "model.keras") as partial:
        architectures.with_head(architectures.freeze(backbone), trained.model).save(partial)
    metrics = runs.run_metrics(recipe, trained, settings.delta, seed=settings.seed)
    book = Ledger.open(work.ledger)
    book.finish(charged.run)
    kept = {"total": book.epsilon, "spent": charged.spent, "run": charged.run, "covers": work.ledger_covers()}
    return {**metrics, "ledger": kept}


def _charge(work: Work, noise_seed: int) -> Reservation:
    """Charge the run to the private set's ledger before any noise is drawn; a run that goes on is charged once."""
    settings, whole, path = work.settings, work.whole(), work.ledger
    if not work.shared_ledger and not path.exists():
        Ledger.create(path, dataset_digest(whole.train, whole.validation), settings.epsilon, settings.delta)
    charged = charges.charge(path, settings.recipe, whole, work.run(), work.decided(), noise_seed)
    work.note(f"      ledger {path} covers {work.ledger_covers()}")
    return charged


def charge_finished(work: Work) -> None:
    """Charge the ledger that is given now for a head that was trained before, perhaps under another."""
    if work.shared_ledger:
        name, seed = work.result("train")["ledger"]["run"], work.settings.seed
        charges.charge_finished(work.ledger, work.whole(), work.run(), name, work.decided(), seed)


def attack(work: Work) -> dict:
    """Attack: membership inference on a positive control, the model without DP, and the DP model."""
    settings, seed = work.settings, work.settings.split_seed
    runs.use_determinism()
    train, labels, held_out, held_out_labels = work.features("train", "train_labels", "validation", "validation_labels")
    head = work.head(work.out / "head.npz")
    titles = ("head without DP", "positive control") if work.progress else (None, None)
    twin = audits.head_without_dp(train, labels, seed, progress=titles[0])
    kernel, bias = twin.get_weights()
    files.write_arrays(work.state("twin.npz"), kernel=kernel, bias=bias)
    target = audits.Target.sample((train, labels), (held_out, held_out_labels), seed)
    epsilon = work.result("train")["epsilon"]
    results = {
        "positive_control": audits.positive_control(
            work.private(), delta=settings.delta, seed=seed, progress=titles[1]
        ),
        "non_private": audits.attack(twin, target, delta=settings.delta, seed=seed),
        "dp": audits.attack(head, target, delta=settings.delta, seed=seed, epsilon=epsilon),
    }
    files.write_json(work.state("audit.json"), results)
    return {name: audits.without_curves(result) for name, result in results.items()}


def encrypt(work: Work) -> dict:
    """Test, once: in the clear, and by a server that sees ciphertexts only."""
    settings = work.settings
    test = datasets.load_test(settings.dataset, work.data_dir).take(slice(settings.test_limit))
    backbone = runs.load_model(work.out / "backbone.keras")
    features = architectures.embed(backbone, test.images)
    plain = architectures.outputs(work.head(work.out / "head.npz"), features)
    head = files.read_arrays(work.out / "head.npz", "head", ("kernel", "bias"))
    found, measured, logits = {}, {}, {"plain": plain, "labels": test.labels}
    for scheme in ("bfv", "ckks"):
        start = time.perf_counter()
        found[scheme], measured[scheme], logits[scheme] = _encrypted(scheme, head, features, plain, test.labels)
        work.note(f"      {scheme:<5} {len(test)} images evaluated encrypted  {time.perf_counter() - start:.1f} s")
    files.write_arrays(work.state("logits.npz"), **logits)
    files.write_array(work.out / "examples.npy", features[:16])
    files.write_json(work.state("he.json"), measured)
    return {
        "test_examples": len(test),
        "test_accuracy": float(np.mean(plain.argmax(axis=1) == test.labels)),
        "nonprivate_test_accuracy": planned.evaluate_accuracy(work.head(work.state("twin.npz")), features, test.labels),
        "he": found,
    }


def tell(work: Work) -> dict:
    """Report: metrics.json, figures, report.html, model card."""
    from tfprivacy_lab.report import page

    settings, marks = work.settings, {name: work.mark(name) for name in STAGES if name != "report"}
    seconds = {name: files.read_json(path, f"mark of stage {name}")["seconds"] for name, path in marks.items()}
    tested = work.result("encrypt")
    metrics = {
        **work.result("train"),
        "dataset": settings.dataset,
        "official_mnist": work.result("data")["official_mnist"],
        "fast": settings.fast,
        **tested,
        "pretraining": work.result("pretrain"),
        "audit": work.result("audit"),
        "seconds": round(sum(seconds.values()), 1),
        "seconds_by_stage": seconds,
        **provenance(),
    }
    files.write_json(work.out / "metrics.json", metrics)
    written = page.build(work.out)
    return {"files": sorted(written)}


STAGES = {
    "data": prepare_data,
    "pretrain": pretrain,
    "embed": embed,
    "train": train_head,
    "audit": attack,
    "encrypt": encrypt,
    "report": tell,
}


def _two_of_each(labels) -> np.ndarray:
    """Places of the first of each digit, then of the second, as far as there are such."""
    places = [np.flatnonzero(labels == digit)[:2] for digit in range(datasets.CLASSES)]
    return np.concatenate([found[turn : turn + 1] for turn in range(2) for found in places])


def _random_backbone(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return architectures.freeze(architectures.backbone())


def _write_reconstructions(path: Path, model: keras.Model, images: np.ndarray) -> None:
    """Noisy originals and what the autoencoder makes of them."""
    original = images.astype(np.float32) / 255
    noise = np.random.default_rng(0).normal(0, 0.3, original.shape)
    noisy = np.clip(original + noise, 0, 1).astype(np.float32)
    rebuilt = architectures.outputs(model, noisy[..., np.newaxis])[..., 0]
    files.write_arrays(path, original=original, noisy=noisy, reconstructed=rebuilt)


def _encrypted(scheme: str, head: dict, features: np.ndarray, plain: np.ndarray, labels: np.ndarray):
    """One scheme: (what must hold, what was measured, logits)."""
    start = time.perf_counter()
    client = he.Client.generate(scheme)
    keygen = time.perf_counter() - start
    server = he.Server(head["kernel"], head["bias"])
    measured, logits, query, reply = _round_trip(client, server, features)
    rounds = [_round_trip(client, server, features[:1])[0] for _ in range(5)]
    measured["one"] = {
        "bytes": rounds[0]["bytes"],
        "seconds": {stage: float(np.median([r["seconds"][stage] for r in rounds])) for stage in rounds[0]["seconds"]},
    }
    for part in (measured, measured["one"]):
        part["seconds"]["keygen"], part["bytes"]["keys"] = keygen, len(client.to_bytes())
    integers, exponent = he.quantize_features(features, he.PARAMETERS[scheme], 1.0)
    quantized = server.quantized_head(scheme, exponent)
    measured["max_error"], measured["samples"] = float(np.abs(logits - plain).max()), len(features)
    found = {
        "agreement": float(np.mean(logits.argmax(axis=1) == plain.argmax(axis=1))),
        "test_accuracy": float(np.mean(logits.argmax(axis=1) == labels)),
        "error_bound": float(np.max(quantized.error_bound(features))),
    }
    if scheme == "bfv":
        decrypted = client.decrypt_integers(reply, query)[0]
        found["exact"] = bool(np.array_equal(decrypted, he.integer_logits(quantized, integers)))
    else:
        exact = features.astype(np.float64) @ head["kernel"].astype(np.float64) + head["bias"]
        found["within_bound"] = bool(np.abs(logits - exact).max() <= found["error_bound"])
    return found, measured, logits


def _round_trip(client: he.Client, server: he.Server, features: np.ndarray):
    """Client, server, client: (times and sizes, logits, query, reply). Only bytes pass between them."""
    times = [time.perf_counter()]
    query = client.encrypt(features, feature_range=1.0)
    times.append(time.perf_counter())
    reply = server.evaluate(query)
    times.append(time.perf_counter())
    logits = client.decrypt(reply, query)
    times.append(time.perf_counter())
    seconds = dict(zip(("encrypt", "evaluate", "decrypt"), np.diff(times).tolist(), strict=True))
    return {"seconds": seconds, "bytes": {"query": len(query), "reply": len(reply)}}, logits, query, reply
