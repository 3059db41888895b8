"""Application Auto Scaling for the sagemaker namespace."""

from zeropull.api.applicationautoscaling.table import (
    autoscaling_table,
    let_go_of_component,
    let_go_of_endpoint,
    refuse_lost_targets,
)

__all__ = ["autoscaling_table", "let_go_of_component", "let_go_of_endpoint", "refuse_lost_targets"]
