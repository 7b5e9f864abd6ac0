"""A function app for the tests of devhost: every function tells what it was called with.

Triggered functions tell it as lines of the file ``ECHO_OUT``; what contains ``fail`` fails, and a
blob whose name contains ``die`` kills the process the first time.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import azure.functions as func
from azurefunctions.extensions.http.fastapi import JSONResponse, Request, Response, StreamingResponse

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)


def tell(**facts: object) -> None:
    with open(os.environ["ECHO_OUT"], "a") as out:
        out.write(json.dumps(facts) + "\n")


def told() -> str:
    return Path(os.environ["ECHO_OUT"]).read_text()


@app.route(route="items/{id}", methods=["GET", "HEAD"])
async def b_item(req: Request) -> Response:
    return JSONResponse({"function": "b_item", "path": dict(req.path_params), "query": str(req.query_params)})


@app.route(route="items/special", methods=["GET"])
async def c_hidden_by_b(req: Request) -> Response:
    return JSONResponse({"function": "c_hidden_by_b"})


@app.route(route="items/first", methods=["GET"])
async def a_first(req: Request) -> Response:
    return JSONResponse({"function": "a_first"})


@app.route(route="numbers/{id:int}", methods=["GET"])
async def number(req: Request) -> Response:
    return JSONResponse(dict(req.path_params))


@app.route(route="upload", methods=["POST"])
async def upload(req: Request) -> Response:
    size = 0
    async for chunk in req.stream():
        size += len(chunk)
    return JSONResponse({"size": size})


@app.route(route="stream", methods=["GET"])
async def stream(req: Request) -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%d" % number
            await asyncio.sleep(0.2)

    return StreamingResponse(parts(), media_type="text/plain")


@app.route(route="fail", methods=["GET"])
async def fail(req: Request) -> Response:
    raise RuntimeError("secret details")


@app.route(route="process", methods=["GET"])
def process(req: Request) -> Response:
    return JSONResponse({"pid": os.getpid(), "setting": os.environ.get("ECHO_SETTING")})


@app.route(route="die", methods=["POST"])
async def die(req: Request) -> Response:
    os.kill(os.getpid(), signal.SIGKILL)
    return Response()


@app.blob_trigger(arg_name="blob", path="%ECHO_CONTAINER%/in/{name}", connection="AzureWebJobsStorage")
async def on_blob(blob: func.InputStream) -> None:
    tell(blob=blob.name, length=blob.length, uri=blob.uri)
    if "die" in str(blob.name) and told().count(f'"{blob.name}"') == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if "fail" in str(blob.name):
        raise RuntimeError("refused")


@app.queue_trigger(arg_name="message", queue_name="%ECHO_QUEUE%", connection="AzureWebJobsStorage")
async def on_message(message: func.QueueMessage) -> None:
    body = message.get_body().decode()
    tell(message=body, count=message.dequeue_count)
    if "fail" in body:
        raise RuntimeError("refused")
    if "sleep" in body:
        await asyncio.sleep(60)


@app.timer_trigger(arg_name="timer", schedule="%ECHO_SCHEDULE%", run_on_startup=False)
async def on_tick(timer: func.TimerRequest) -> None:
    tell(tick=timer.past_due)


@app.timer_trigger(arg_name="timer", schedule="* * * * * *")
async def on_tick_disabled(timer: func.TimerRequest) -> None:
    tell(never=True)
