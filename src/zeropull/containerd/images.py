"""containerd's image records: a name and the manifest that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty

from zeropull.containerd._generated import images_pb2, types_pb2
from zeropull.containerd.connection import Connection
from zeropull.errors import AlreadyExists
from zeropull.oci.images import Descriptor

SERVICE = "containerd.services.images.v1.Images"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)


class ImagesClient:
    """Image records by name."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, name: str) -> ImageRecord:
        """Raises:
        NotFound: there is no such image.
        """
        answer = await self._connection.call(
            f"{SERVICE}/Get", images_pb2.GetImageRequest(name=name), images_pb2.GetImageResponse
        )
        return _record_from_message(answer.image)

    async def list(self, *filters: str) -> list[ImageRecord]:
        request = images_pb2.ListImagesRequest(filters=list(filters))
        answer = await self._connection.call(
            f"{SERVICE}/List", request, images_pb2.ListImagesResponse
        )
        return [_record_from_message(image) for image in answer.images]

    async def put(self, record: ImageRecord) -> None:
        """Create the record, or point an existing one at this target."""
        image = _record_to_message(record)
        try:
            await self._connection.call(
                f"{SERVICE}/Create",
                images_pb2.CreateImageRequest(image=image),
                images_pb2.CreateImageResponse,
            )
        except AlreadyExists:
            await self._connection.call(
                f"{SERVICE}/Update",
                images_pb2.UpdateImageRequest(image=image),
                images_pb2.UpdateImageResponse,
            )

    async def delete(self, name: str, *, sync: bool = True) -> None:
        """Forget the image. `sync`: return once garbage collection has taken what only it used.

        Raises:
            NotFound: there is no such image.
        """
        request = images_pb2.DeleteImageRequest(name=name, sync=sync)
        await self._connection.call(f"{SERVICE}/Delete", request, Empty)


def _record_from_message(message: images_pb2.Image) -> ImageRecord:
    target = message.target
    return ImageRecord(
        name=message.name,
        target=Descriptor(media_type=target.media_type, digest=target.digest, size=target.size),
        labels=dict(message.labels),
    )


def _record_to_message(record: ImageRecord) -> images_pb2.Image:
    target = types_pb2.Descriptor(
        media_type=record.target.media_type,
        digest=record.target.digest,
        size=record.target.size,
    )
    return images_pb2.Image(name=record.name, labels=dict(record.labels), target=target)
