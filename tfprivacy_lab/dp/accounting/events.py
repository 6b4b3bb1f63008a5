"""What was done to the private set, as data: dp_accounting events to JSON and back.

An event says what happened; what it costs is the business of an accountant. The JSON carries dp_accounting's own
names, so that anyone can rebuild the events without this package and account them again::

    def rebuild(node):
        node = dict(node)
        kind = getattr(dp_accounting.dp_event, node.pop("type"))
        if "event" in node:
            node["event"] = rebuild(node["event"])
        if "events" in node:
            node["events"] = [rebuild(child) for child in node["events"]]
        return kind(**node)

No TensorFlow is imported here.
"""

from __future__ import annotations

import dataclasses
import json
import math

import dp_accounting
from dp_accounting import dp_event

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError, check_finite_number, check_positive_int
from tfprivacy_lab.dp.accounting import adjacency
from tfprivacy_lab.dp.accounting.privacy_loss.mechanisms import (
    Mechanism,
    PoissonSampledGaussian,
    PoissonSampledLaplace,
    TruncatedPoissonSampledGaussian,
)

FORMAT = "tfprivacy_lab event log 1"

_MOST_NODES, _MOST_DEPTH, _MOST_CHARACTERS = 10_000, 16, 2_000_000
_MOST_COUNT, _MOST_EXAMPLES, _LARGEST_NOISE = 10**8, 10**12, 1e6


def _noise(value):
    return check_finite_number("noise_multiplier", value, above=0, at_most=_LARGEST_NOISE)


def _probability(value):
    return check_finite_number("sampling_probability", value, above=0, at_most=1)


def _count_of(name, most):
    return lambda value: check_positive_int(name, value, at_most=most)


# Fields that are plain numbers, by type; the checks of each. "event" and "events" hold further events.
_NUMBERS = {
    "GaussianDpEvent": {"noise_multiplier": _noise},
    "LaplaceDpEvent": {"noise_multiplier": _noise},
    "PoissonSampledDpEvent": {"sampling_probability": _probability},
    "SelfComposedDpEvent": {"count": _count_of("count", _MOST_COUNT)},
    "ComposedDpEvent": {},
    "TruncatedSubsampledGaussianDpEvent": {
        "dataset_size": _count_of("dataset_size", _MOST_EXAMPLES),
        "sampling_probability": _probability,
        "truncated_batch_size": _count_of("truncated_batch_size", _MOST_EXAMPLES),
        "noise_multiplier": _noise,
    },
}
_CHILD = {"PoissonSampledDpEvent": "event", "SelfComposedDpEvent": "event", "ComposedDpEvent": "events"}
# What may stand under a Poisson sample. Gaussians that share one sample are one Gaussian (see composition).
_UNDER_SAMPLING = {"GaussianDpEvent", "LaplaceDpEvent", "SelfComposedDpEvent", "ComposedDpEvent"}


def to_json(event: dp_accounting.DpEvent) -> dict:
    """An event as a JSON-ready tree of dp_accounting's names and fields.

    Args:
        event: Gaussian, Laplace, Poisson-sampled, truncated Poisson-sampled Gaussian, self-composed or composed.

    Returns:
        ``{"type": "GaussianDpEvent", "noise_multiplier": 1.1}`` and the like; nested under ``event`` or ``events``.

    Raises:
        InputError: naming a type that no log holds, or a field out of range.

    >>> to_json(dp_accounting.GaussianDpEvent(1.5))
    {'type': 'GaussianDpEvent', 'noise_multiplier': 1.5}
    """
    # Through the checks and back, so that 1 and 1.0 are written alike.
    return _tree(from_json(_tree(event, 0)), 0)


def from_json(tree: dict) -> dp_accounting.DpEvent:
    """The event of a tree that :func:`to_json` wrote; nothing else is accepted.

    Raises:
        InputError: for an unknown type, a missing or further field, a value out of range, a tree too large or too
            deep, or a type that the installed dp-accounting does not know.
    """
    return _event(tree, 0, [0], sampled=False)


def write_events(path, events) -> None:
    """Write a run's log of events, atomically: what an independent accountant needs, and nothing secret.

    Args:
        path: File to write.
        events: The events, in the order in which they happened; at least one. All of one adjacency, which is written
            beside them.

    Raises:
        InputError: if an event cannot be logged, their adjacencies differ, or the file cannot be written.
    """
    events = list(events)
    trees = [to_json(adjacency.plain(event)) for event in events]
    if not trees:
        raise InputError("Expected events to hold at least one event, got none; log what the run did.")
    files.write_json(path, {"format": FORMAT, "adjacency": adjacency.common(events), "events": trees})


def read_events(path) -> list[dp_accounting.DpEvent]:
    """The events of a log; under zero-out adjacency each stands in a ZeroOutOneDpEvent.

    Raises:
        InputError: naming the file, if it is no whole log of this format.
    """
    content = files.read_bytes(path, "event log")
    try:
        log = parse(content.decode())
        if not isinstance(log, dict) or set(log) != {"format", "adjacency", "events"}:
            raise InputError("expected an object with format, adjacency and events.")
        neighbours = adjacency.named(log["adjacency"])
        if log["format"] != FORMAT or neighbours is None:
            raise InputError(f"format {log['format']!r} with adjacency {log['adjacency']!r} is not understood.")
        if not isinstance(log["events"], list) or not log["events"]:
            raise InputError("expected events to be a list of at least one.")
        logged = [from_json(tree) for tree in log["events"]]
    except (InputError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read event log {path}: {error}") from error
    return [adjacency.ZeroOutOneDpEvent(event) for event in logged] if neighbours == adjacency.ZERO_OUT else logged


def dumps(event: dp_accounting.DpEvent) -> str:
    """One line of JSON, the same for equal events: keys sorted, numbers exact."""
    return json.dumps(to_json(event), sort_keys=True, separators=(",", ":"), allow_nan=False)


def loads(text: str) -> dp_accounting.DpEvent:
    """The event of :func:`dumps`.

    Raises:
        InputError: as :func:`from_json`, or if ``text`` is not JSON.
    """
    return from_json(parse(text))


def parse(text: str):
    """JSON with no duplicate keys, NaN or Infinity, and of bounded size.

    Raises:
        InputError: saying what is wrong.
    """
    if len(text) > _MOST_CHARACTERS:
        raise InputError(f"Expected at most {_MOST_CHARACTERS} characters of JSON, got {len(text)}.")
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON ({error}).") from error


def _no_duplicates(pairs):
    names = [name for name, _ in pairs]
    if len(names) != len(set(names)):
        raise ValueError(f"a key stands twice among {names}")
    return dict(pairs)


def _refuse_constant(name):
    raise ValueError(f"{name} is not a JSON value")


def _tree(event, depth) -> dict:
    """to_json without the checks of values."""
    name = type(event).__name__
    if isinstance(event, adjacency.ZeroOutOneDpEvent):
        raise InputError(
            f"Expected an event that holds for {adjacency.ADD_OR_REMOVE_ONE}, got one for {adjacency.ZERO_OUT} "
            "(shuffled batches); sample by sampling='poisson'."
        )
    if name not in _NUMBERS or type(event) is not getattr(dp_event, name, None):
        raise InputError(f"Expected an event of {', '.join(_NUMBERS)}, got {event!r:.200}.")
    if depth > _MOST_DEPTH:
        raise InputError(f"Expected events nested at most {_MOST_DEPTH} deep; compose them flat.")
    tree = {"type": name}
    for field in _NUMBERS[name]:
        # NumPy's numbers become Python's, which JSON writes exactly; the check of the value follows.
        value = getattr(event, field)
        tree[field] = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
    if _CHILD.get(name) == "event":
        tree["event"] = _tree(event.event, depth + 1)
    elif _CHILD.get(name) == "events":
        tree["events"] = [_tree(child, depth + 1) for child in event.events]
    return tree


def _event(tree, depth, nodes, *, sampled) -> dp_accounting.DpEvent:
    """from_json below the root: ``nodes`` counts the whole tree, ``sampled`` says that a sampler stands above."""
    nodes[0] += 1
    if nodes[0] > _MOST_NODES or depth > _MOST_DEPTH:
        raise InputError(f"Expected at most {_MOST_NODES} events nested at most {_MOST_DEPTH} deep.")
    if not isinstance(tree, dict) or not isinstance(tree.get("type"), str) or tree["type"] not in _NUMBERS:
        raise InputError(f"Expected an event with type one of {', '.join(_NUMBERS)}, got {tree!r:.200}.")
    name = tree["type"]
    if sampled and name not in _UNDER_SAMPLING:
        raise InputError(f"Expected a mechanism without sampling under PoissonSampledDpEvent, got {name}.")
    numbers, child = _NUMBERS[name], _CHILD.get(name)
    expected = {"type", *numbers, *([child] if child else [])}
    if set(tree) != expected:
        raise InputError(f"Expected {name} to have the fields {sorted(expected)}, got {sorted(map(str, tree))}.")
    arguments = {field: check(tree[field]) for field, check in numbers.items()}
    if child == "event":
        below = sampled or name == "PoissonSampledDpEvent"
        arguments["event"] = _event(tree["event"], depth + 1, nodes, sampled=below)
    elif child == "events":
        if not isinstance(tree["events"], list) or not tree["events"]:
            raise InputError(f"Expected {name} to hold a list of at least one event, got {tree['events']!r:.200}.")
        arguments["events"] = [_event(each, depth + 1, nodes, sampled=sampled) for each in tree["events"]]
    kind = getattr(dp_event, name, None)
    if kind is None:
        raise InputError(f"{name} needs dp-accounting 0.6 or newer; it is not in the installed one.")
    return kind(**arguments)


def mechanisms(event: dp_accounting.DpEvent) -> dict[Mechanism, int]:
    r"""The multiset of mechanisms that an event composes: what its cost depends on.

    Composition does not ask for an order, k-fold use is a count, and Gaussians that see one sample are one
    Gaussian of :math:`\sigma^{-2} = \sum_i \sigma_i^{-2}` (the sensitive direction of all of them is the same).

    Returns:
        How often each mechanism is used.

    Raises:
        InputError: as :func:`to_json`, or for a sampled composition with Laplace noise in it.
    """
    counts: dict[Mechanism, int] = {}
    _collect(from_json(to_json(event)), 1, counts)
    return counts


def _collect(event, count, counts) -> None:
    """Add ``count`` uses of ``event`` to ``counts``."""
    if isinstance(event, dp_accounting.ComposedDpEvent):
        for each in event.events:
            _collect(each, count, counts)
        return
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
        _collect(event.event, count * event.count, counts)
        return
    if isinstance(event, dp_accounting.PoissonSampledDpEvent):
        mechanism = _sampled(event)
    elif isinstance(event, dp_accounting.GaussianDpEvent):
        mechanism = PoissonSampledGaussian(1.0, event.noise_multiplier)
    elif isinstance(event, dp_accounting.LaplaceDpEvent):
        mechanism = PoissonSampledLaplace(1.0, event.noise_multiplier)
    else:
        mechanism = TruncatedPoissonSampledGaussian(
            event.dataset_size,
            event.sampling_probability,
            event.truncated_batch_size,
            event.noise_multiplier,
        )
    counts[mechanism] = check_count(counts.get(mechanism, 0) + count)


def check_count(count: int) -> int:
    """How often one mechanism is used.

    Raises:
        InputError: if it is more than can be computed.
    """
    if count > _MOST_COUNT:
        raise InputError(f"Expected at most {_MOST_COUNT} uses of one mechanism, got {count}.")
    return count


def _sampled(event) -> Mechanism:
    """The one mechanism under a Poisson sample."""
    below: dict[Mechanism, int] = {}
    _collect(event.event, 1, below)
    if list(below.values()) == [1]:
        return dataclasses.replace(next(iter(below)), sampling_probability=event.sampling_probability)
    if not all(isinstance(mechanism, PoissonSampledGaussian) for mechanism in below):
        raise InputError(
            "Expected Gaussian mechanisms only where several share one Poisson sample, got Laplace noise among them; "
            "sample for each of them afresh."
        )
    precision = math.fsum(count / mechanism.noise_multiplier**2 for mechanism, count in below.items())
    return PoissonSampledGaussian(event.sampling_probability, precision**-0.5)
