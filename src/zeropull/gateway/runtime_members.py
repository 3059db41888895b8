"""The members of InvokeEndpoint and InvokeEndpointWithResponseStream that travel in headers.

Limits and patterns are those of botocore's service model sagemaker-runtime 2017-05-13, which a unit
test compares: the model itself takes longer to load than a gateway takes to start.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from zeropull.gateway import refusals
from zeropull.gateway.refusals import Refusal

_ASCII = r"\p{ASCII}*"
_PRINTABLE = r"\A\S[\p{Print}]*\z"
_NAME = r"^[a-zA-Z0-9](-*[a-zA-Z0-9])*"
# Python's patterns for those of the model. A name's is matched as a whole, as AWS does.
_COMPILED = {
    _ASCII: re.compile(r"[\x00-\x7f]*"),
    _PRINTABLE: re.compile(r"[!-~][ -~]*"),
    _NAME: re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*"),
}


@dataclass(frozen=True, slots=True)
class RuntimeMember:
    """One member. `refusal` is the text for a member that no endpoint here serves; "" = served.

    `{endpoint}` in it is the endpoint's name. `without_effect`: why it changes nothing here.
    """

    name: str
    header: bytes  # lower case
    longest: int
    shortest: int = 0
    pattern: str = ""  # as the model writes it; "" = any text
    is_sensitive: bool = False
    refusal: str = ""
    without_effect: str = ""

    def problem(self, value: str) -> Refusal | None:
        """Why AWS refuses this value; None = it does not."""
        if not self.shortest <= len(value):
            rule = f"have length greater than or equal to {self.shortest}"
        elif len(value) > self.longest:
            rule = f"have length less than or equal to {self.longest}"
        elif self.pattern and not _compiled(self.pattern).fullmatch(value):
            rule = f"satisfy regular expression pattern: {self.pattern}"
        else:
            return None
        said = "Value" if self.is_sensitive else f"Value '{value}'"
        member = self.name[0].lower() + self.name[1:]
        return refusals.validation_error(
            f"1 validation error detected: {said} at '{member}' failed to satisfy constraint: "
            f"Member must {rule}"
        )


SESSION = RuntimeMember(
    "SessionId",
    b"x-amzn-sagemaker-session-id",
    256,
    pattern=r"^(NEW_SESSION)$|^[a-zA-Z0-9](-*[a-zA-Z0-9])*$",
)
_COMPONENT = r"^[a-zA-Z0-9]([\-a-zA-Z0-9]*[a-zA-Z0-9])?$"

MEMBERS = (
    RuntimeMember("ContentType", b"content-type", 1024, pattern=_ASCII),
    RuntimeMember("Accept", b"accept", 1024, pattern=_ASCII),
    RuntimeMember("Accept", b"x-amzn-sagemaker-accept", 1024, pattern=_ASCII),
    RuntimeMember(
        "CustomAttributes",
        b"x-amzn-sagemaker-custom-attributes",
        1024,
        pattern=_ASCII,
        is_sensitive=True,
    ),
    RuntimeMember(
        "TargetModel",
        b"x-amzn-sagemaker-target-model",
        1024,
        1,
        _PRINTABLE,
        refusal="Endpoint {endpoint} is not a multi-model endpoint and does not support target "
        "model header.",
    ),
    RuntimeMember("TargetVariant", b"x-amzn-sagemaker-target-variant", 63, pattern=_NAME),
    RuntimeMember(
        "TargetContainerHostname",
        b"x-amzn-sagemaker-target-container-hostname",
        63,
        pattern=_NAME,
        refusal="Endpoint {endpoint} is not a multi-container endpoint with direct invocation and "
        "does not support target container hostname header.",
    ),
    RuntimeMember("InferenceId", b"x-amzn-sagemaker-inference-id", 64, 1, _PRINTABLE),
    RuntimeMember(
        "EnableExplanations",
        b"x-amzn-sagemaker-enable-explanations",
        64,
        1,
        ".*",
        refusal="Endpoint {endpoint} has no explainer and does not support enable explanations "
        "header.",
    ),
    RuntimeMember(
        "InferenceComponentName", b"x-amzn-sagemaker-inference-component", 63, pattern=_COMPONENT
    ),
    SESSION,
    RuntimeMember(
        "PrefixAwareId",
        b"x-amzn-sagemaker-prefix-aware-id",
        64,
        1,
        _PRINTABLE,
        without_effect="any copy answers",
    ),
)
# A stream cannot begin a session.
STREAM_SESSION = replace(SESSION, pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9])*$")
BY_HEADER = {member.header: member for member in MEMBERS}


def _compiled(pattern: str) -> re.Pattern[str]:
    found = _COMPILED.get(pattern)
    if found is None:
        found = _COMPILED[pattern] = re.compile(pattern)
    return found
