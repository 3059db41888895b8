"""SageMaker's control plane: operations that write the desired state and show the observed one."""

from zeropull.api.sagemaker.endpoints import EndpointHooks
from zeropull.api.sagemaker.table import sagemaker_table

__all__ = ["EndpointHooks", "sagemaker_table"]
