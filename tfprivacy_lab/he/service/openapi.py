"""The service's OpenAPI 3.1 description, as published at ``/openapi.json``."""

from __future__ import annotations

PROBLEM_TYPE = "application/problem+json"
OCTETS = "application/octet-stream"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PUBLISHED_LIMITS = ("max_body_bytes", "max_reply_bytes", "max_samples", "max_requests")
"""Limits that clients are told."""

REFUSALS = {
    400: "No valid HTTP, two lengths, or a body of another length than announced",
    405: "Another method",
    408: "The body did not arrive in time",
    411: "No Content-Length",
    413: "A query above max_body_bytes or max_samples, or whose reply would be above max_reply_bytes",
    415: "Another Content-Type than application/octet-stream",
    422: "No query that this head can answer: damaged, of another width or parameter set",
    500: "A fault of the service",
    503: "Too much in flight: try again after Retry-After seconds",
    504: "The evaluation took too long; send fewer samples a query",
}
"""What each refusal means; its body is a problem (RFC 9457)."""


def _response(description: str, media: dict, **headers: str) -> dict:
    named = {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()}
    named["X-Request-ID"] = {"$ref": "#/components/headers/RequestId"}
    return {"description": description, "headers": named, "content": media}


def _json(reference: str) -> dict:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{reference}"}}}


def _refusals(*statuses: int) -> dict:
    problem = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses = {str(status): _response(REFUSALS[status], problem) for status in statuses}
    if 503 in statuses:
        responses["503"]["headers"]["Retry-After"] = {
            "description": "Whole seconds to wait",
            "schema": {"type": "integer", "minimum": 1},
        }
    return responses


def _get(summary: str, answer: dict, *refusals: int) -> dict:
    parameters = [{"$ref": "#/components/parameters/RequestId"}]
    return {"get": {"summary": summary, "parameters": parameters, "responses": {"200": answer} | _refusals(*refusals)}}


def _object(**properties: str) -> dict:
    return {
        "type": "object",
        "required": list(properties),
        "properties": {name: {"type": kind} for name, kind in properties.items()},
    }


def describe(version: str) -> dict:
    """The OpenAPI object of a service of this package version."""
    octets = {OCTETS: {"schema": {"type": "string", "format": "binary"}}}
    health = _object(status="string")
    shape = _object(features="integer", classes="integer", **dict.fromkeys(PUBLISHED_LIMITS, "integer"))
    # There if the service takes queries of one public range only: a bound on all features, or one a column.
    shape["properties"]["feature_range"] = {
        "oneOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}}]
    }
    evaluate = {
        "summary": "Evaluate the head on an encrypted query",
        "description": "Repeating a request is safe: each answer decrypts to the same logits (CKKS: within its bound).",
        "parameters": [{"$ref": "#/components/parameters/RequestId"}],
        "requestBody": {"required": True, "description": "What the client's encrypt wrote", "content": octets},
        "responses": {
            "200": _response(
                "The reply, for the client's decrypt", octets, **{"X-Samples": "How many samples it holds"}
            )
        }
        | _refusals(400, 405, 408, 411, 413, 415, 422, 500, 503, 504),
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Encrypted evaluation of a dense head",
            "version": version,
            "description": "Queries and replies are ciphertexts; the service holds no key.",
        },
        "paths": {
            "/v1/evaluate": {"post": evaluate},
            "/v1/head": _get(
                "The head's shape and the service's limits, no weights", _response("Shape and limits", _json("Head"))
            ),
            "/healthz": _get("Whether the process lives", _response("It does", _json("Health"))),
            "/readyz": _get("Whether it takes on a query now", _response("It does", _json("Health")), 503),
            "/metrics": _get(
                "Prometheus metrics", _response("Counters", {"text/plain": {"schema": {"type": "string"}}})
            ),
            "/openapi.json": _get("This description", _response("OpenAPI 3.1", {"application/json": {"schema": {}}})),
        },
        "components": {
            "headers": {"RequestId": {"description": "Repeated or made", "schema": {"type": "string"}}},
            "parameters": {
                "RequestId": {
                    "name": "X-Request-ID",
                    "in": "header",
                    "required": False,
                    "description": "Repeated in the answer and the log; another is made if it is not well-formed",
                    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
                }
            },
            "schemas": {
                "Problem": _object(type="string", title="string", status="integer", detail="string"),
                "Health": health,
                "Head": shape,
            },
        },
    }
