"""The service: a head behind HTTP, as an ASGI application.

:mod:`.queries` answers queries; around it are the endpoints that tell of the head and of the service.
It holds no key and never sees a feature. Nothing of a body is kept, logged or shared between requests.
"""

from __future__ import annotations

import contextlib
import json
from importlib import metadata

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tfprivacy_lab.he.quantization.heads import check_head
from tfprivacy_lab.he.server.head import Server
from tfprivacy_lab.he.service.admission import Admission, Limits
from tfprivacy_lab.he.service.metrics import Figures, Observed
from tfprivacy_lab.he.service.openapi import METRICS_TYPE, PROBLEM_TYPE, PUBLISHED_LIMITS, REFUSALS, describe
from tfprivacy_lab.he.service.queries import CLOSE, Evaluation, Problem, busy


def make_app(
    kernel, bias=None, limits: Limits | None = None, replies: str = "sanitized", feature_range=None
) -> Observed:
    """The service of one head.

    Args:
        kernel: Finite, shape (d, c), Keras convention.
        bias: Finite, shape (c,), or None for zeros.
        limits: What it takes on; None takes the defaults.
        replies: "sanitized" refuses queries whose replies would give the head away; "any" answers them too.
        feature_range: The one public range that queries must be encrypted with, or None for any.

    Returns:
        An ASGI application for one event loop; its ``admission`` counts what is in flight, its ``figures``
            are the metrics, its ``routes`` the endpoints.

    Raises:
        InputError: naming the kernel or the bias.

    Guarantee: an answer of 200 is this head's exact reply to the body of its own request. What queries hold at
        a time, evaluation included, is at most ``max_bytes``, whatever clients do; beside it stand the process itself,
        prepared heads (:data:`~tfprivacy_lab.he.server.prepared.KEPT_BYTES`, or one) and buffers of connections.

    Not covered: who asks (there are no accounts: put it behind a proxy that knows them, and counts samples by
        ``X-Samples``), and all that :class:`.Server` leaves open, above all that answers give
        the head away.
    """
    server, limits = Server(kernel, bias, replies, feature_range), limits or Limits()
    features, classes = check_head(kernel, bias)[0].shape
    admission = Admission(limits)
    figures = Figures(admission)
    evaluation = Evaluation(server, limits, admission, figures)
    shape = {
        "features": features,
        "classes": classes,
        **{name: getattr(limits, name) for name in PUBLISHED_LIMITS},
    }
    if feature_range is not None:
        shape["feature_range"] = np.asarray(feature_range, np.float64).tolist()
    description = describe(metadata.version("tfprivacy_lab"))

    async def head(request):
        return JSONResponse(shape)

    async def healthz(request):
        return JSONResponse({"status": "ok"})

    async def readyz(request):
        if not admission.ready:
            raise busy("readiness", admission)
        return JSONResponse({"status": "ready"})

    async def metrics(request):
        return Response(figures.text(), headers={"Content-Type": METRICS_TYPE})

    async def openapi(request):
        return JSONResponse(description)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        evaluation.close()

    routes = [Route("/v1/evaluate", evaluation, methods=["POST"])]
    for endpoint in (head, healthz, readyz, metrics, openapi):
        name = {"head": "v1/head", "openapi": "openapi.json"}.get(endpoint.__name__, endpoint.__name__)
        routes.append(Route(f"/{name}", endpoint, methods=["GET"]))
    handlers = {HTTPException: _answer_refusal, Exception: _answer_fault}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    observed = Observed(_Unambiguous(app), figures, [route.path for route in routes])
    observed.admission, observed.figures, observed.routes = admission, figures, routes
    return observed


async def _answer_refusal(request, error: HTTPException) -> Response:
    """Problems of ours, and the router's 404 and 405."""
    status = error.status_code
    title = REFUSALS.get(status, str(error.detail))
    value = {"type": "about:blank", "title": title, "status": status, "detail": str(error.detail)}
    return Response(json.dumps(value), status, error.headers, PROBLEM_TYPE)


async def _answer_fault(request, error: Exception) -> Response:
    """What the client learns of a fault of ours; the log has the rest."""
    return await _answer_refusal(request, Problem(500, "A fault of the service; its log knows the request id."))


class _Unambiguous:
    """Refuses a request with two lengths, of which a proxy may have read the other (RFC 9112, section 6.1)."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send) -> None:
        """Pass the request on, or answer 400 and close."""
        names = {name for name, _ in scope.get("headers", ())}
        if {b"content-length", b"transfer-encoding"} <= names:
            detail = "Expected Content-Length or Transfer-Encoding, got both."
            response = await _answer_refusal(None, Problem(400, detail, CLOSE))
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)
