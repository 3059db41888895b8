"""OCI distribution client: tags to images, credentials, and blobs as fast ordered streams."""

from zeropull.registry.blobs import BlobSource, open_blob
from zeropull.registry.client import RegistryClient

__all__ = ["BlobSource", "RegistryClient", "open_blob"]
