"""A folder belongs to one run, and its secret seed to that run alone."""

import json
import stat

import pytest

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.experiments import claims

SETTINGS = {"recipe": "r", "plan": {"epochs": 3}, "epsilon": 1.0, "seed": None, "pairs": (("a", 1),)}


def test_the_same_run_may_go_on(tmp_path):
    claims.claim(tmp_path, SETTINGS)
    claims.claim(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("change", "naming"),
    [
        ({"epsilon": 8.0}, "epsilon"),
        ({"plan": {"epochs": 4}}, "plan"),
        ({"seed": 1}, "seed"),
        ({"data": "other"}, "data"),
    ],
)
def test_another_run_is_refused_by_what_differs(tmp_path, change, naming):
    claims.claim(tmp_path, SETTINGS)
    kept = claims.noise_seed(tmp_path, None)
    with pytest.raises(InputError, match=f"other settings \\({naming}\\)"):
        claims.claim(tmp_path, SETTINGS | change)
    assert claims.noise_seed(tmp_path, None) == kept


def test_secret_seed_is_kept_private_then_forgotten(tmp_path):
    first = claims.noise_seed(tmp_path, None)
    assert claims.noise_seed(tmp_path, None) == first
    (kept,) = tmp_path.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert json.loads(kept.read_text()) == first
    claims.forget_noise_seed(tmp_path)
    claims.forget_noise_seed(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert claims.noise_seed(tmp_path, None) != first


def test_published_seed_is_taken_and_not_written(tmp_path):
    assert claims.noise_seed(tmp_path, 7) == 7
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "3", True])
def test_bad_seeds_are_refused(tmp_path, seed):
    with pytest.raises(InputError, match="seed"):
        claims.noise_seed(tmp_path, seed)


def test_public_seed_never_comes_from_a_secret_one():
    assert claims.public_seed(None) == 0
    assert claims.public_seed(5) == 5


def test_damaged_seed_file_is_refused(tmp_path):
    (tmp_path / ".noise_seed").write_text("tru")
    with pytest.raises(InputError, match="kept seed"):
        claims.noise_seed(tmp_path, None)


def test_one_process_at_a_time(tmp_path):
    with (
        claims.only_one(tmp_path / "new"),
        pytest.raises(InputError, match="Another run"),
        claims.only_one(tmp_path / "new"),
    ):
        pass
    with claims.only_one(tmp_path / "new"):
        pass
