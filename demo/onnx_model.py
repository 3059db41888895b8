"""Writes MiniLM's weights (safetensors) as one ONNX file that answers sentence embeddings.

Run as a program, `onnx_model.py FOLDER OUTPUT`, with `onnx` and `safetensors` on the path: they are
needed at build time only. The graph is BERT's encoder, mean pooling and normalisation.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

_EPSILON = 1e-12


class _Graph:
    """Nodes and weights as they are added; every method returns the name of its result."""

    def __init__(self, weights: dict[str, numpy.ndarray]) -> None:
        self.weights = weights
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, name: str, value: numpy.ndarray) -> str:
        self.initializers.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def numbers(self, *values: int) -> str:
        return self.constant("i" + "_".join(map(str, values)), numpy.array(values, numpy.int64))

    def number(self, value: float) -> str:
        return self.constant(f"f{value!r}", numpy.array(value, numpy.float32))

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name].astype(numpy.float32))

    def dense(self, inputs: str, name: str) -> str:
        transposed = numpy.ascontiguousarray(self.weights[f"{name}.weight"].T, numpy.float32)
        product = self.add("MatMul", inputs, self.constant(f"{name}.transposed", transposed))
        return self.add("Add", product, self.weight(f"{name}.bias"))

    def normalised(self, inputs: str, name: str) -> str:
        return self.add(
            "LayerNormalization",
            inputs,
            self.weight(f"{name}.weight"),
            self.weight(f"{name}.bias"),
            axis=-1,
            epsilon=_EPSILON,
        )

    def heads(self, inputs: str, name: str, count: int, size: int, order: list[int]) -> str:
        split = self.add("Reshape", self.dense(inputs, name), self.numbers(0, 0, count, size))
        return self.add("Transpose", split, perm=order)

    def gelu(self, inputs: str) -> str:
        scaled = self.add("Div", inputs, self.number(math.sqrt(2)))
        raised = self.add("Add", self.add("Erf", scaled), self.number(1.0))
        return self.add("Mul", self.add("Mul", inputs, raised), self.number(0.5))


def build(folder: Path) -> Any:
    """The ONNX model of the weights in `folder`."""
    config = json.loads((folder / "config.json").read_text())
    graph = _Graph(load_file(folder / "model.safetensors"))
    heads = config["num_attention_heads"]
    head_size = config["hidden_size"] // heads

    length = graph.add("Slice", graph.add("Shape", "input_ids"), graph.numbers(1), graph.numbers(2))
    positions = graph.add(
        "Slice", graph.weight("embeddings.position_embeddings.weight"), graph.numbers(0), length
    )
    words = graph.add("Gather", graph.weight("embeddings.word_embeddings.weight"), "input_ids")
    kinds = graph.weights["embeddings.token_type_embeddings.weight"][0].astype(numpy.float32)
    state = graph.add("Add", graph.add("Add", words, positions), graph.constant("kind_0", kinds))
    state = graph.normalised(state, "embeddings.LayerNorm")

    mask = graph.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    missing = graph.add("Sub", graph.number(1.0), mask)
    penalty = graph.add("Mul", missing, graph.number(-1e9))
    penalty = graph.add("Unsqueeze", penalty, graph.numbers(1, 2))
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        attention = f"{layer}.attention.self"
        query = graph.heads(state, f"{attention}.query", heads, head_size, [0, 2, 1, 3])
        key = graph.heads(state, f"{attention}.key", heads, head_size, [0, 2, 3, 1])
        value = graph.heads(state, f"{attention}.value", heads, head_size, [0, 2, 1, 3])
        scores = graph.add("MatMul", query, key)
        scores = graph.add("Div", scores, graph.number(math.sqrt(head_size)))
        shares = graph.add("Softmax", graph.add("Add", scores, penalty), axis=-1)
        mixed = graph.add("Transpose", graph.add("MatMul", shares, value), perm=[0, 2, 1, 3])
        mixed = graph.add("Reshape", mixed, graph.numbers(0, 0, config["hidden_size"]))
        mixed = graph.add("Add", graph.dense(mixed, f"{layer}.attention.output.dense"), state)
        state = graph.normalised(mixed, f"{layer}.attention.output.LayerNorm")
        wide = graph.gelu(graph.dense(state, f"{layer}.intermediate.dense"))
        narrow = graph.add("Add", graph.dense(wide, f"{layer}.output.dense"), state)
        state = graph.normalised(narrow, f"{layer}.output.LayerNorm")

    weighted = graph.add("Mul", state, graph.add("Unsqueeze", mask, graph.numbers(2)))
    summed = graph.add("ReduceSum", weighted, graph.numbers(1), keepdims=0)
    counted = graph.add("ReduceSum", mask, graph.numbers(1), keepdims=1)
    pooled = graph.add("Div", summed, counted)
    norm = graph.add("ReduceL2", pooled, axes=[1], keepdims=1)
    graph.add("Div", pooled, norm, output="embeddings")

    shape = ["batch", "length"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, shape)
        for name in ("input_ids", "attention_mask")
    ]
    sizes = ["batch", config["hidden_size"]]
    outputs = [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, sizes)]
    made = helper.make_graph(
        graph.nodes, "minilm", inputs, outputs, list(graph.initializers.values())
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


if __name__ == "__main__":
    onnx.save(build(Path(sys.argv[1])), sys.argv[2])
