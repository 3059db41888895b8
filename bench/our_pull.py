"""Our side of the image benchmark, in a process of its own: the node agent's image stage, with its
model download where ENDPOINT is not "-", or that download alone. Says "ready", begins at a line on
standard input, answers with a line of JSON for each of the two.

    python -m bench.our_pull image NODE_JSON ENDPOINT warm-up|no-warm-up
                                  REFERENCE MANIFEST_DIGEST [VOLUME_PATH INDEX_DIGEST]
    python -m bench.our_pull model ENDPOINT TARGET_FOLDER
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from bench.rig import MODEL_BUCKET, MODEL_KEYS, MODEL_OBJECT, MODEL_REGION
from zeropull.containerd.client import ContainerdClient
from zeropull.controlapi.messages import ImageAssignment, NodeAssignment, VolumeMount
from zeropull.modelstore import fetch_artifact
from zeropull.nodeagent.containers.containers import Containers
from zeropull.nodeagent.disk import NodeDisk
from zeropull.nodeagent.images.catalog import Catalog
from zeropull.nodeagent.images.node_images import NodeImages
from zeropull.nodeagent.images.start_profiles import StartProfiles
from zeropull.nodeagent.link_share import LinkShare
from zeropull.nodeagent.models import NodeModels
from zeropull.nodeagent.quiet_times import LaunchesUnderWay
from zeropull.nodeagent.records import AgentRecords
from zeropull.oci.references import parse_reference
from zeropull.providers.node_file import read_node_config
from zeropull.resources.sources import ModelArtifact, RegistryAccess, StoreAccess
from zeropull.telemetry.logs import configure_logging


async def pull_image(
    node_json: str, endpoint: str, warm_up: str, reference: str, digest: str, *volume: str
) -> None:
    config = read_node_config(Path(node_json))
    access = RegistryAccess(parse_reference(reference).registry, plain_http=True)
    image = ImageAssignment(reference, digest, registry=access)
    volumes = (VolumeMount(1, *volume),) if volume else ()
    assignment = NodeAssignment(1, config.instance_id, volumes=volumes, images=(image,))
    async with ContainerdClient(config.containerd_socket, config.containerd_namespace) as client:
        records = AgentRecords(config.agent_dir)
        catalog = Catalog(config.catalog_dir, config.layers_dir, records)
        disk = NodeDisk(config, lambda: images.layers_in_use(), catalog.forget)
        link = LinkShare(config.model_link_share)
        images = NodeImages(
            config, client, catalog, records, lambda: assignment, asyncio.Condition(), disk, link
        )
        models = NodeModels(config.models_dir, disk=disk, link=link, in_use=tuple)
        containers = Containers(client, runc="runc")
        _wait_for_go()
        began_s = time.monotonic()
        model = asyncio.create_task(_model_beside(models, link, endpoint))
        outcome = await images.ensure(image)
        seconds = time.monotonic() - began_s
        # As the node agent does: the profile that the volume has is read ahead from here on.
        starts = LaunchesUnderWay()
        profiles = StartProfiles(
            config, catalog, lambda: assignment, starts, _condemn, containers.layers_of
        )
        if warm_up == "warm-up":
            profiles.warm_up(outcome)
        _answer(seconds=seconds, path=outcome.path, name=outcome.name, detail=outcome.detail)
        await model
        while line := await asyncio.to_thread(sys.stdin.readline):
            if line == "starts\n":
                starts.note("bench", is_launching=True)
            else:
                starts.note("bench", is_launching=False)
        await profiles.close()


async def pull_model(endpoint: str, target: str) -> None:
    artifact = _artifact(endpoint)
    _wait_for_go()
    began_s = time.monotonic()
    await fetch_artifact(artifact, Path(target))
    _answer(model_s=time.monotonic() - began_s, link="")


async def _model_beside(models: NodeModels, link: LinkShare, endpoint: str) -> None:
    if endpoint == "-":
        return
    began_s, before = time.monotonic(), link.shared
    await models.ensure(_artifact(endpoint), enable_caching=True, claim=lambda _: None)
    _answer(model_s=time.monotonic() - began_s, link=link.told(before))


def _artifact(endpoint: str) -> ModelArtifact:
    key_id, secret = MODEL_KEYS
    access = StoreAccess(endpoint, MODEL_REGION, key_id, secret)
    return ModelArtifact(f"s3://{MODEL_BUCKET}/{MODEL_OBJECT}", access=access)


def _condemn(chain_id: str, reason: str) -> None:
    raise RuntimeError(f"layer {chain_id} is damaged: {reason}")


def _wait_for_go() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def _answer(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    configure_logging("bench", level="info")  # to standard error
    if sys.argv[1] == "image":
        asyncio.run(pull_image(*sys.argv[2:]))
    else:
        asyncio.run(pull_model(*sys.argv[2:]))
