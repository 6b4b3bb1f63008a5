"""Clients shared by the tests of encrypted evaluation."""

import pytest

from tfprivacy_lab import he


@pytest.fixture(scope="session")
def bfv_client():
    return he.Client.generate("bfv")


@pytest.fixture(scope="session")
def ckks_client():
    return he.Client.generate("ckks")


@pytest.fixture(scope="session")
def bfv_sanitized_client():
    return he.Client.generate("bfv-sanitized")


@pytest.fixture(scope="session")
def ckks_sanitized_client():
    return he.Client.generate("ckks-sanitized")


@pytest.fixture(params=["bfv", "ckks"])
def client(request):
    return request.getfixturevalue(f"{request.param}_client")


@pytest.fixture(params=["bfv_sanitized", "ckks_sanitized"])
def sanitized_client(request):
    return request.getfixturevalue(f"{request.param}_client")
