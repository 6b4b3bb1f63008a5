"""Laplace and Gaussian mechanisms: calibration and profile against 50-digit arithmetic and integrals."""

import itertools
import subprocess
import sys

import mpmath
import numpy as np
import pytest
from scipy import integrate, stats

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting import gaussian_epsilon
from tfprivacy_lab.dp.mechanisms import secure_noise
from tfprivacy_lab.dp.mechanisms.additive import GaussianMechanism, LaplaceMechanism

LEVEL = 1e-6


def gaussian_delta(noise_multiplier, epsilon):
    """Balle and Wang 2018, Thm 8, with 60 digits: slow, and blind to rounding."""
    with mpmath.workdps(60):
        s, epsilon = mpmath.mpf(noise_multiplier), mpmath.mpf(epsilon)
        a, b = 1 / (2 * s) - epsilon * s, -1 / (2 * s) - epsilon * s
        return mpmath.ncdf(a) - mpmath.exp(epsilon) * mpmath.ncdf(b)


def hockey_stick(density, moved, epsilon, points):
    """∫ max(0, p - e^ε q), the definition of δ(ε)."""
    pieces = itertools.pairwise(points)
    difference = lambda x: max(0.0, density(x) - np.exp(epsilon) * moved(x))  # noqa: E731
    return sum(integrate.quad(difference, low, high, limit=200)[0] for low, high in pieces)


@pytest.mark.parametrize("noise_multiplier", [0.02, 0.3, 1.0, 4.0, 60.0, 5e3])
@pytest.mark.parametrize("epsilon", [0.0, 1e-4, 0.1, 1.0, 7.0, 60.0])
def test_gaussian_profile_is_exact_and_never_too_low(noise_multiplier, epsilon):
    exact = gaussian_delta(noise_multiplier, epsilon)
    stated = GaussianMechanism(3.0, 3.0 * noise_multiplier).delta(epsilon)
    if exact < 1e-300:
        assert stated <= 1e-299
        return
    # Rounding is charged to δ: what the arguments are wrong by, times what the terms are larger than their difference.
    argument = noise_multiplier * epsilon
    slack = 1e-11 + 3e-15 * (1 + argument) ** 2 * noise_multiplier * max(1.0, argument)
    assert exact <= stated <= float(exact) * (1 + slack)


@pytest.mark.parametrize("noise_multiplier", [1e-9, 1e-12, 1e-20])
def test_hardly_any_noise_costs_what_it_costs(noise_multiplier):
    """ε is 1/(2σ²), and a few standard deviations, 1/σ, of the privacy loss more."""
    mechanism = GaussianMechanism(1.0, noise_multiplier)
    middle = 0.5 / noise_multiplier**2
    found = mechanism.epsilon(1e-5)
    assert found == gaussian_epsilon(noise_multiplier, 1e-5)
    assert middle <= found <= middle * (1 + 10 * noise_multiplier + 1e-12)
    assert mechanism.delta(middle / 2) == pytest.approx(1.0)
    assert mechanism.delta(2 * middle) <= 1e-300


def test_no_delta_is_left_far_beyond_all_losses():
    assert GaussianMechanism(1.0, 1.0).delta(1e155) == 0.0


@pytest.mark.parametrize(("noise_multiplier", "epsilon"), [(1.0, 0.0), (1.0, 1.0), (0.4, 2.0), (3.0, 0.2)])
def test_gaussian_profile_is_the_hockey_stick_divergence(noise_multiplier, epsilon):
    p, q = stats.norm(1, noise_multiplier).pdf, stats.norm(0, noise_multiplier).pdf
    crossing = noise_multiplier**2 * epsilon + 0.5
    integral = hockey_stick(p, q, epsilon, [crossing, crossing + 5, crossing + 60])
    assert GaussianMechanism(1.0, noise_multiplier).delta(epsilon) == pytest.approx(integral, rel=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.1, 0.9, 1.0, 3.0, 10.0, 200.0])
@pytest.mark.parametrize("delta", [0.5, 1e-2, 1e-5, 1e-12])
def test_analytic_calibration_meets_delta_and_wastes_no_noise(epsilon, delta):
    mechanism = GaussianMechanism.calibrated(2.0, epsilon, delta)
    multiplier = mpmath.mpf(mechanism.stddev) / 2
    assert gaussian_delta(multiplier, epsilon) <= delta
    if multiplier < 1e4:
        assert gaussian_delta(multiplier * (1 - mpmath.mpf("1e-8")), epsilon) > delta
    assert mechanism.delta(epsilon) <= delta
    assert mechanism.epsilon(delta) == pytest.approx(epsilon, rel=1e-9, abs=1e-9)


def test_analytic_calibration_at_the_edges():
    assert GaussianMechanism.calibrated(1, 1.0, 1e-300).delta(1.0) <= 1e-300
    assert gaussian_delta(GaussianMechanism.calibrated(1, 1.0, 1e-290).stddev, 1.0) <= mpmath.mpf("1e-290")
    # Differences of 1e-16 of the terms: noise may be too much here, never too little.
    assert gaussian_delta(GaussianMechanism.calibrated(1, 1e-6, 1e-12).stddev, 1e-6) <= 1e-12
    with pytest.raises(InputError, match=r"No noise up to 1e\+12 times the sensitivity"):
        GaussianMechanism.calibrated(1.0, 0.0, 1e-20)


def test_golden_values():
    # Balle and Wang 2018 and diffprivlib's GaussianAnalytic: ε = 1, δ = 1e-5, sensitivity 1.
    assert GaussianMechanism.calibrated(1, 1, 1e-5).stddev == pytest.approx(3.730632, abs=1e-6)
    # Dwork and Roth 2014, Thm A.1, by hand: sqrt(2 ln 125000) / 0.5.
    assert GaussianMechanism.classical(1, 0.5, 1e-5).stddev == pytest.approx(9.689610, abs=1e-6)
    assert LaplaceMechanism.calibrated(2.0, 0.5).scale == 4.0
    assert LaplaceMechanism(2.0, 4.0).epsilon == 0.5


@pytest.mark.parametrize("epsilon", [0.01, 0.3, 0.999])
@pytest.mark.parametrize("delta", [0.1, 1e-5, 1e-10])
def test_classical_calibration_is_safe_and_never_below_the_analytic(epsilon, delta):
    classical = GaussianMechanism.classical(1.0, epsilon, delta)
    assert classical.delta(epsilon) <= delta
    assert classical.stddev > GaussianMechanism.calibrated(1.0, epsilon, delta).stddev


@pytest.mark.parametrize("epsilon", [1.0, 1.5, 10.0])
def test_classical_calibration_refuses_what_it_does_not_prove(epsilon):
    with pytest.raises(InputError, match="Expected epsilon < 1 for the classical calibration"):
        GaussianMechanism.classical(1.0, epsilon, 1e-5)


def test_classical_formula_is_false_for_large_epsilon():
    """Why it is refused: at ε = 10 the formula's noise does not keep δ."""
    too_little = GaussianMechanism(1.0, np.sqrt(2 * np.log(1.25 / 0.1)) / 10)
    assert too_little.delta(10.0) > 0.1


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 1.9])
def test_laplace_profile_is_the_hockey_stick_divergence(epsilon):
    mechanism = LaplaceMechanism(3.0, 1.5)
    p, q = stats.laplace(3, 1.5).pdf, stats.laplace(0, 1.5).pdf
    integral = hockey_stick(p, q, epsilon, [-20, 0, (3 + 1.5 * epsilon) / 2, 3, 60])
    assert mechanism.delta(epsilon) == pytest.approx(integral, rel=1e-6)
    assert mechanism.delta(2.0) == mechanism.delta(5.0) == 0.0


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (1.6, 0.4), (2.5, 0.5)])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.4])
def test_laplace_profile_holds_for_vectors_since_one_coordinate_is_the_worst_case(a, b, epsilon):
    """A move split over two coordinates, by integrating the second one's profile over the first one's loss."""

    def second(t):
        """Hockey stick of a Laplace move by b at any real t, also where it counts everything."""
        return max(0.0, 1 - np.exp((t - b) / 2)) if t > -b else 1 - np.exp(t)

    def integrand(x):
        return stats.laplace(a).pdf(x) * second(epsilon - (abs(x) - abs(x - a)))

    points = [-50, 0, (epsilon + a - b) / 2, (epsilon + a + b) / 2, a, a + 50]
    points = sorted(min(max(point, -50), a + 50) for point in points)
    split = sum(integrate.quad(integrand, *piece, limit=200)[0] for piece in itertools.pairwise(points))
    alone = LaplaceMechanism(a + b, 1.0).delta(epsilon)
    expected = alone - min(a, b, (a + b - epsilon) / 2) / 2 * np.exp((epsilon - a - b) / 2)
    assert split == pytest.approx(expected, rel=1e-6)
    assert split < alone


MECHANISMS = [(LaplaceMechanism(1.0, 0.7), "laplace"), (GaussianMechanism(1.0, 0.7), "norm")]


@pytest.mark.parametrize(("mechanism", "law"), MECHANISMS)
@pytest.mark.parametrize("secure", [True, False])
def test_released_noise_has_the_stated_law(mechanism, law, secure, monkeypatch):
    generator = np.random.default_rng(11)
    monkeypatch.setattr(secure_noise, "random_words", lambda count: generator.integers(0, 2**64, count, np.uint64))
    values = np.linspace(-5, 5, 40_000).reshape(200, 200)
    sample = (mechanism.release(values, seed=None if secure else 5) - values).ravel()
    for factor, right in ((1.0, True), (0.9, False), (1.1, False)):
        assert (stats.kstest(sample / (0.7 * factor), law).pvalue > LEVEL) == right


@pytest.mark.parametrize(("mechanism", "law"), MECHANISMS)
def test_noise_without_a_seed_is_fresh_and_with_one_repeats(mechanism, law):
    value = np.zeros(50)
    assert not np.array_equal(mechanism.release(value), mechanism.release(value))
    assert np.array_equal(mechanism.release(value, seed=2**80), mechanism.release(value, seed=2**80))
    assert not np.array_equal(mechanism.release(value, seed=1), mechanism.release(value, seed=1 + 2**64))
    assert isinstance(mechanism.release(3), float)
    assert mechanism.release([[1, 2]], seed=0).shape == (1, 2)
    assert mechanism.release(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LaplaceMechanism(0, 1), "sensitivity to be a finite number > 0"),
        (lambda: LaplaceMechanism(1, -1), "scale=-1"),
        (lambda: LaplaceMechanism.calibrated(1, 0), "epsilon=0"),
        (lambda: LaplaceMechanism.calibrated(1, float("nan")), "epsilon=nan"),
        (lambda: LaplaceMechanism(1, 1).delta(-0.1), "epsilon=-0.1"),
        (lambda: GaussianMechanism(float("inf"), 1), "sensitivity=inf"),
        (lambda: GaussianMechanism(1, 0), "stddev=0"),
        (lambda: GaussianMechanism.calibrated(1, 1, 0), "delta=0"),
        (lambda: GaussianMechanism.calibrated(1, 1, 1), "delta=1"),
        (lambda: GaussianMechanism.calibrated(1, -1, 0.1), "epsilon=-1"),
        (lambda: GaussianMechanism.classical(1, 0.5, 2), "delta=2"),
        (lambda: GaussianMechanism(1, 1).epsilon(0), "delta=0"),
        (lambda: GaussianMechanism(1, 1).release([1.0, np.nan]), r"value to be finite, got nan at index \(1,\)"),
        (lambda: LaplaceMechanism(1, 1).release("3"), "value to hold real numbers"),
        (lambda: LaplaceMechanism(1, 1).release(1j), "dtype complex128"),
        (lambda: LaplaceMechanism(1, 1).release(1.0, seed=-1), "seed=-1"),
    ],
)
def test_arguments_are_checked(call, message):
    with pytest.raises(InputError, match=message) as refusal:
        call()
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.processes
def test_no_tensorflow_is_loaded():
    modules = "additive, secure_noise, discrete, empirical_check"
    code = f"import sys; from tfprivacy_lab.dp.mechanisms import {modules}; import tfprivacy_lab.dp.clipping.adaptive"
    code += "; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
