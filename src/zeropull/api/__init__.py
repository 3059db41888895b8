"""AWS's control-plane operations: requests become desired state.

A service is an `OperationTable`; `create_api_app` serves SageMaker's and any others it is given.
"""

from zeropull.api.app import create_api_app, create_api_runner
from zeropull.api.operations import Call, Operation, OperationTable, documented_members

__all__ = [
    "Call",
    "Operation",
    "OperationTable",
    "create_api_app",
    "create_api_runner",
    "documented_members",
]
