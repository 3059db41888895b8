"""Sentence embeddings over HTTP: the inference server inside the demo's image.

/ping answers 200 once the model is loaded. /invocations takes {"inputs": ["a sentence", …]} (or one
string) and answers {"embeddings": [[…], …]}.
"""

from __future__ import annotations

from pathlib import Path

import numpy
import onnxruntime
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tokenizers import Tokenizer

MODEL = Path("/opt/ml/model")


def load() -> tuple[onnxruntime.InferenceSession, Tokenizer]:
    providers = ["CPUExecutionProvider"]
    if Path("/dev/nvidiactl").exists():
        onnxruntime.preload_dlls()
        providers.insert(0, "CUDAExecutionProvider")
    options = onnxruntime.SessionOptions()
    # Threads that spin while there is nothing to do would take from the launches that are measured
    # on the same cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(MODEL / "model.onnx"), options, providers=providers)
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    return session, tokenizer


SESSION, TOKENIZER = load()


async def ping(request: Request) -> Response:
    return Response(status_code=200)


async def invocations(request: Request) -> Response:
    try:
        asked = await request.json()
        sentences = asked["inputs"]
    except (ValueError, KeyError, TypeError):
        return JSONResponse({"error": 'expected {"inputs": ["a sentence", …]}'}, status_code=400)
    if isinstance(sentences, str):
        sentences = [sentences]
    encoded = TOKENIZER.encode_batch([str(sentence) for sentence in sentences])
    feeds = {
        "input_ids": numpy.array([one.ids for one in encoded], dtype=numpy.int64),
        "attention_mask": numpy.array([one.attention_mask for one in encoded], dtype=numpy.int64),
    }
    (embeddings,) = SESSION.run(["embeddings"], feeds)
    return JSONResponse({"embeddings": embeddings.tolist()})


app = Starlette(routes=[Route("/ping", ping), Route("/invocations", invocations, methods=["POST"])])

if __name__ == "__main__":
    print(f"model loaded, providers {SESSION.get_providers()}", flush=True)
    uvicorn.run(app, host="0.0.0.0", port=8080, log_level="info", access_log=False)
