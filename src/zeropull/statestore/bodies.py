"""Bodies of documents as they stand in the file: JSON, or JSON that is deflated if that is shorter.

Most bytes of a document are names that all of its kind have. DEFLATE (RFC 1951) with those names as
its dictionary makes a third of it. A deflated body begins with the number of its dictionary, with
which no JSON begins. A dictionary never changes once released: another one gets another number.
"""

from __future__ import annotations

import zlib

MIN_BYTES = 256
MAX_BYTES = 64 << 20
"""A body that grows beyond this when it is inflated is damaged."""
_RAW = -15  # DEFLATE without zlib's header and checksum: the document's digest covers the body
_LEVEL = 1  # 20 us for 2 KB; the best level saves 5 % more

# The text that is most frequent stands last, which is nearest.
_DICTIONARIES = {
    1: (
        b'"desired_copies":0,"current_copies":0,"waiting":"","failure_reason":"","pending":null,'
        b'"account":"000000000000","endpoint_uid":"","endpoint":"","variant":"AllTraffic",'
        b'"instance_type":"ml.g5.xlarge","deployment_id":"","state":"running","node_token":"",'
        b'"created_s":17,"reason":"","launched_s":17,"running_s":17,"draining_s":null,'
        b'"terminating_s":null,"next_attempt_s":null,"attempts":0,"address":"198.18.",'
        b'"accelerators":[],"volumes":[{"generation":1,"path":"/var/lib/zeropull/caches/",'
        b'"index_digest":"sha256:"}],"reported_s":null,"failure":"","leaving":"",'
        b'"idle_since_s":null}'
        b'{"copy_id":"c-","instance_id":"i-","account":"000000000000","endpoint_uid":"",'
        b'"endpoint":"","variant":"AllTraffic","deployment_id":"","created_s":17,'
        b'"manifest_digest":"sha256:","component":null,"container":0,"intent":"run",'
        b'"state":"healthy","host":"198.18.","port":8080,"healthy_s":17,"routed_s":17,'
        b'"draining_s":null,"restarts":0,"next_start_s":null,"failure":null,"message":"",'
        b'"accelerators":[]}'
        b'{"copy_id":"c-","instance_id":"i-","account":"000000000000","endpoint_uid":"",'
        b'"endpoint":"","variant":"AllTraffic","deployment_id":"","instance_type":"ml.m5.large",'
        b'"began_s":17,"component":null,"new_instance":true,"reason":"","ready_s":17,'
        b'"first_response_s":17,"ended_s":null,"stages":[{"stage":"detect","began_s":17,'
        b'"ended_s":17,"bytes_by_source":{"registry":0,"volume":0,"node":0,"model_store":0},'
        b'"layers_from_cache":null,"layers_total":null,"path":null,"detail":""},'
        b'{"stage":"provision"},{"stage":"image","path":"cached","detail":" layers from the cache '
        b'(100.0 %), 0 B from the registry"},{"stage":"model"},{"stage":"start"},'
        b'{"stage":"health"},{"stage":"route","began_s":17,"ended_s":17,"bytes_by_source":{},'
        b'"layers_from_cache":null,"layers_total":null,"path":null,"detail":""}]}'
    ),
}
_NEWEST = max(_DICTIONARIES)


def packed(text: bytes) -> bytes:
    """JSON as it is stored."""
    if len(text) < MIN_BYTES:
        return text
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, _RAW, zdict=_DICTIONARIES[_NEWEST])
    body = bytes((_NEWEST,)) + deflater.compress(text) + deflater.flush()
    return body if len(body) < len(text) else text


def unpacked(body: bytes) -> bytes:
    """The JSON of a stored body.

    Raises:
        ValueError: it cannot be inflated.
    """
    dictionary = _DICTIONARIES.get(body[0]) if body else None
    if dictionary is None:
        return body
    inflater = zlib.decompressobj(_RAW, zdict=dictionary)
    try:
        text = inflater.decompress(body[1:], MAX_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not inflater.eof:
        raise ValueError("its deflated bytes have no end")
    return text
