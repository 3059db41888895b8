"""Variants of the tests' own server image."""

from __future__ import annotations

import json
import os
from typing import Any

from tests.fixtures.images import Entry, Image, make_image, make_layer
from tests.fixtures.server_image import python_server_image


def server_image_with(name: str, size_bytes: int = 200_000, **platform: Any) -> Image:
    """The server image under a layer of its own, with a file that nothing can compress."""
    server = python_server_image(environment={"MARK": name})
    assert isinstance(server.config.content, bytes)
    config = json.loads(server.config.content)["config"]
    own = make_layer([Entry(f"srv/{name}.bin", os.urandom(size_bytes))])
    return make_image([*server.layers, own], config, **platform)
