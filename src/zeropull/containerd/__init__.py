"""Typed asyncio clients of containerd's gRPC services, for containerd 1.6 and newer."""
