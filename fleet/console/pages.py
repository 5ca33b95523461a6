"""The console's pages: rollouts, devices, drift; and signing in."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fleet.api.auth import SESSION_S, Sessions, cookie_name
from fleet.api.reads import DAY_S, LABEL_DAYS, QUERIES, in_thread
from fleet.api.views import RolloutView
from fleet.console.charts import histogram_svg, interval_svg
from fleet.histograms import Histogram, histograms

__all__ = ["SESSIONS", "STATIC", "routes", "secured"]

HERE: Final = Path(__file__).parent
STATIC: Final = HERE / "static"
SESSIONS: Final = web.AppKey("sessions", Sessions)
MODELS_SHOWN: Final = 30
LIVE_WINDOWS: Final = 5  # that a histogram merges
ROLLOUTS_SHOWN: Final = 20
ALERTS_SHOWN: Final = 20
STATES: Final = ("open", "acknowledged", "closed")  # of alerts, the pressing first
LAST: Final = ("prediction", "confidence", "latency_us")
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

routes = web.RouteTableDef()


def _ago(then: float | None) -> str:
    if then is None:
        return "never"
    seconds = max(0.0, time.time() - then)
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _clock(then: float) -> str:
    return datetime.fromtimestamp(then, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _words(name: object) -> str:
    return "latency (µs)" if name == "latency_us" else str(name).replace("_", " ")


def _brief(message: str, rollout: RolloutView) -> str:
    """Return a message without the reason that the stage above it tells already."""
    for stage in rollout.stages:
        if stage.reason:
            message = message.replace(f": {stage.reason}", "")
    return message


TEMPLATES: Final = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters.update(ago=_ago, brief=_brief, clock=_clock, words=_words)
TEMPLATES.globals.update(chart=histogram_svg, interval=interval_svg)


def secured(response: web.Response) -> web.Response:
    """Return a page with the headers that every page has."""
    response.headers.update(HEADERS)
    return response


def _page(name: str, **values: Any) -> web.Response:
    text = TEMPLATES.get_template(name).render(**values)
    return secured(web.Response(text=text, content_type="text/html"))


@routes.get("/")
async def home(_: web.Request) -> web.Response:
    """Go to the rollouts."""
    raise web.HTTPSeeOther("/rollouts")


@routes.get("/rollouts")
async def rollouts(request: web.Request) -> web.Response:
    """Show every rollout with its stages and reasons."""
    queries = request.app[QUERIES]
    found = await in_thread(queries.rollouts)
    whole = [await in_thread(queries.rollout, item.rollout_id) for item in found[:ROLLOUTS_SHOWN]]
    return _page(
        "rollouts.html", here="rollouts", rollouts=whole, more=max(0, len(found) - ROLLOUTS_SHOWN)
    )


@routes.get("/models")
async def models(request: web.Request) -> web.Response:
    """Show every published version, and on which hardware it was measured."""
    found = await in_thread(request.app[QUERIES].releases)
    return _page(
        "models.html", here="models", releases=found[:MODELS_SHOWN],
        more=max(0, len(found) - MODELS_SHOWN),
    )  # fmt: skip


@routes.get("/devices")
async def devices(request: web.Request) -> web.Response:
    """Show every device."""
    found = await in_thread(request.app[QUERIES].devices, time.time())
    sites: dict[str, list[Any]] = {}
    for device in found:
        sites.setdefault(device.tags.get("site", ""), []).append(device)
    return _page("devices.html", here="devices", sites=sorted(sites.items()), count=len(found))


@routes.get("/drift")
async def drift(request: web.Request) -> web.Response:
    """Show the alerts, the latest look at every device, and one device's histograms."""
    queries = request.app[QUERIES]
    models = sorted({release.model for release in await in_thread(queries.releases)})
    model = request.query.get("model", models[0] if models else "")
    report = await in_thread(queries.drift, model)
    labels = await in_thread(queries.labels, model, time.time() - DAY_S * LABEL_DAYS)
    alerts = sorted(await in_thread(queries.alerts), key=lambda a: STATES.index(a.state))
    device = request.query.get("device") or _most_telling(report)
    charts = await in_thread(histograms, queries, device, model, LIVE_WINDOWS) if device else []
    found = next((d for d in report["devices"] if d["device"] == device), None)
    return _page(
        "drift.html",
        here="drift",
        models=models,
        model=model,
        report=report,
        labels=labels.releases[:MODELS_SHOWN],
        label_days=LABEL_DAYS,
        alerts=alerts[:ALERTS_SHOWN],
        more=max(0, len(alerts) - ALERTS_SHOWN),
        device=device,
        moved={} if found is None else {f["name"]: f["effect_sd"] for f in found["features"]},
        skew={} if found is None else found["skew"],
        charts=sorted(charts, key=_telling_first(found)),
    )


@routes.get("/login")
async def login(request: web.Request) -> web.Response:
    """Ask for the operator's token, or take it from the address once."""
    token = request.query.get("token", "")
    if token:
        return _sign_in(request, token)
    return _page("login.html", here="", wrong=False)


@routes.post("/login")
async def sign_in(request: web.Request) -> web.Response:
    """Take the operator's token from the form."""
    form = await request.post()
    return _sign_in(request, str(form.get("token", "")).strip())


def _sign_in(request: web.Request, token: str) -> web.Response:
    sessions = request.app[SESSIONS]
    if not sessions.knows_token(token):
        page = _page("login.html", here="", wrong=True)
        page.set_status(401)
        return page
    response = web.HTTPSeeOther("/rollouts")
    response.set_cookie(
        cookie_name(request.host),
        sessions.begin(),
        max_age=int(SESSION_S),
        httponly=True,
        samesite="Strict",
        secure=request.secure,
        path="/",
    )
    raise response


def _telling_first(found: dict[str, Any] | None) -> Callable[[Histogram], tuple[int, int, str]]:
    """Return an order: what drifted, other features, and last what the model made of them."""
    moved = {feature["name"] for feature in found["features"]} if found else set()

    def place(chart: Histogram) -> tuple[int, int, str]:
        last = LAST.index(chart.column) + 1 if chart.column in LAST else 0
        return last, chart.column not in moved, chart.column

    return place


def _most_telling(report: dict[str, Any]) -> str:
    """Return the device to show first: one that drifted, or simply the first."""
    found = sorted(report["devices"], key=lambda d: (d["verdict"] != "drift", d["device"]))
    return str(found[0]["device"]) if found else ""
