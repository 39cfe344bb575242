"""Answers on the wire: orjson, numpy arrays without a detour over Python numbers."""

from __future__ import annotations

import io
from base64 import b64encode
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import Response


class JsonResponse(Response):
    """A JSON body; numpy arrays and scalars are written as they are."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Anything orjson takes, numpy included."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def npy_response(array: NDArray[np.float32]) -> Response:
    """A body in NumPy's ``.npy`` format, version 1."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return Response(stream.getvalue(), media_type="application/x-npy")


def base64_floats(vector: NDArray[np.float32]) -> str:
    """Little-endian float32 in base64, as OpenAI's embeddings have it."""
    return b64encode(vector.astype("<f4", copy=False).tobytes()).decode()
