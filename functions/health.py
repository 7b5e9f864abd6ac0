"""Health check: ``GET /health/check``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, routes
from shared import services

if TYPE_CHECKING:
    from shared.services.health import Dependency, Report

blueprint = func.Blueprint()


@http.route(blueprint, routes.HEALTH, ["GET", "HEAD"], action=None, partitioned=False)
async def check_health(request: Request) -> Response:
    """200 when every dependency answers, else 503; the body says which does not, or not as it should."""
    report = await services.health.check()
    body = json.dumps(
        {
            "overallStatus": _status(report),
            "dependencies": [
                {
                    "name": d.name,
                    "status": _status(d),
                    "description": d.description,
                }
                for d in report.dependencies
            ],
        }
    )
    headers = {"Cache-Control": "no-store"}
    if not report.healthy:
        headers["Retry-After"] = "5"
    return Response(
        body, status_code=200 if report.healthy else 503, media_type="application/json", headers=headers
    )


def _status(what: Dependency | Report) -> str:
    return "Unhealthy" if not what.healthy else "Degraded" if what.degraded else "Healthy"
