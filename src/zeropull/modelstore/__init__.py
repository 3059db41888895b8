"""Model artifacts: S3-compatible stores, HTTPS objects and local directories."""

from zeropull.modelstore.artifacts import FetchResult, artifact_identity, fetch_artifact

__all__ = ["FetchResult", "artifact_identity", "fetch_artifact"]
