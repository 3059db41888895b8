"""Java's regular expressions in Python."""

from __future__ import annotations

import pytest

from zeropull.awsprotocol.patterns import compile_pattern
from zeropull.awsprotocol.services import load_service

SERVICES = ("sagemaker", "application-autoscaling", "cloudwatch", "sagemaker-runtime")


def test_every_pattern_of_every_model_compiles() -> None:
    for name in SERVICES:
        model = load_service(name).model
        for shape_name in model.shape_names:
            pattern = model.shape_for(shape_name).metadata.get("pattern")
            if pattern:
                compile_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"([\p{L}\p{Z}\p{N}_.:/=+\-@]*)", "Größe 数 १-@", "no#hash"),
        (r"\p{ASCII}*", "plain~", "é"),
        (r"[\u0020-\uD7FF\uE000-\uFFFD\uD800\uDC00-\uDBFF\uDFFF\r\n\t]*", "a\n😀", "\x00"),
        (r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", "a--b", "a-"),
        (r"\A\S[\p{Print}]*\z", "ok then", " no"),
    ],
)
def test_patterns_of_java_mean_the_same(pattern: str, good: str, bad: str) -> None:
    assert compile_pattern(pattern).fullmatch(good)
    assert not compile_pattern(pattern).fullmatch(bad)
