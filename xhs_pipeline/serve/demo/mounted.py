"""The service's own application with the page at its root, and a gate that lets nothing else of Gradio out."""

import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.routing import Mount

from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.serve.app import create_app
from xhs_pipeline.serve.auth import CLIENT, REVIEWER, Tokens
from xhs_pipeline.serve.demo.render import part
from xhs_pipeline.serve.limits import App, Limits, Message, Receive, Scope, Send

# What a browser that shows the page asks for. Not among it: uploaded and cached files, API descriptions, proxies, run history.
PAGES = {"/", "/config", "/login", "/logout", "/theme.css", "/favicon.ico", "/manifest.json"}
FOLDERS = ("/assets/", "/static/", "/svelte/")
CALLS = {"/gradio_api/run/predict", "/gradio_api/app_id", "/gradio_api/startup-events"}

# Gradio's own scripts stand in the page and make functions of text; what this keeps is that the page loads and posts nothing elsewhere.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval'; img-src 'self' data: blob:; font-src 'self' data:; base-uri 'self'; "
    "form-action 'self'; object-src 'none'; frame-ancestors 'none'"
)
HEADERS = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]


def create_demo(data: Path, store: AppealStore, tokens: Tokens, limits: Limits) -> FastAPI:
    """The service over a data folder as `create_app` makes it, with the demo page at /; `store` stays the caller's to close.

    Where clients need a token, the page asks for name and token, a client's or a reviewer's, before anything else.
    """
    # read when it is imported; it wants a folder, where nothing is put, and its usual one in /tmp may be another user's
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(data / ".demo")}
    import gradio as gr

    from xhs_pipeline.serve.demo.layout import page, theme
    from xhs_pipeline.serve.demo.sessions import Sessions

    clients = tokens.of_role.get(CLIENT, {}).values()

    def may_enter(name: str, token: str) -> bool:
        """Afterwards the name alone tells a client, so a reviewer who is called as one must enter as that client."""
        return tokens.who(token) == (CLIENT, name) or (name not in clients and tokens.who(token) == (REVIEWER, name))

    app = create_app(data, store, tokens, limits)
    settings: dict[str, Any] = {
        "auth": may_enter if tokens.on(CLIENT) else None,
        "auth_message": "请用 XHS_CLIENT_TOKENS 或 XHS_REVIEWER_TOKENS 里的姓名和令牌登录；后者只能复核。",
    }
    gr.mount_gradio_app(
        app, page(lambda: app.state.judging, store, tokens, limits), path="/", theme=theme(), css=part("page.css"),
        js=part("keys.js"), footer_links=[], show_error=False, run_history=False, ssr_mode=False, mcp_server=False,
        enable_monitoring=False, pwa=False, **settings,
    )  # fmt: skip
    mounted = next(route for route in reversed(app.router.routes) if isinstance(route, Mount))
    gradio: Any = mounted.app
    gradio.state_holder = Sessions(gradio.blocks)
    # a heartbeat would hold a connection for every open page, and with it one of the requests that are answered at once
    gradio.blocks.config["connect_heartbeat"] = False
    mounted.app = Gate(gradio)
    return app


class Gate:
    """Answers 404 to whatever the page does not need, and says in every answer that the page may ask nobody else."""

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path in PAGES or path in CALLS or path.startswith(FOLDERS)):
            await PlainTextResponse("Not Found", 404)(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers)
