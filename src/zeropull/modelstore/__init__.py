"""Model artifacts: S3-compatible stores, HTTPS objects and local directories."""

from zeropull.modelstore.artifacts import (
    ArtifactPlan,
    FetchResult,
    fetch_artifact,
    plan_artifact,
)

__all__ = ["ArtifactPlan", "FetchResult", "fetch_artifact", "plan_artifact"]
