"""SageMaker's control plane: operations that write desired state and show what has come of it."""

from zeropull.api.sagemaker.endpoints import EndpointHooks
from zeropull.api.sagemaker.table import sagemaker_table

__all__ = ["EndpointHooks", "sagemaker_table"]
