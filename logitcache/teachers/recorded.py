"""The teacher that a manifest names, ready to answer as it answered for the cache."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import nn

from logitcache.data import find_modality
from logitcache.errors import CacheMismatchError, InputError, UnknownNameError
from logitcache.models import Network, hash_weights
from logitcache.store import Cache, Manifest
from logitcache.teachers.forward import Teacher, Teachers
from logitcache.teachers.given import GivenTeacher
from logitcache.teachers.servers.server import SERVERS, Asking, connect, is_server

__all__ = ["live_teacher_of", "recorded_teacher", "served_teacher_of"]


def recorded_teacher(network: Network, entry: Mapping[str, Any], manifest: Manifest, device: torch.device) -> Teacher:
    """Make a network ready to answer as a manifest says that it does.

    Args:
        network: With its weights.
        entry: The manifest's, of this teacher.
        manifest: Manifest of the cache.
        device: Device to run on.
    """
    mapped = entry["class_map"] or {"classes": len(manifest.classes), "indices": None}
    modality = find_modality(manifest.modality)
    return Teacher(
        network,
        modality.read_inputs(entry["preprocessing"]),
        modality,
        classes=mapped["classes"],
        batch_size=manifest.batch_size,
        threads=manifest.threads,
        device=device,
        class_map=mapped["indices"],
        **manifest.forward,
    )


def live_teacher_of(
    cache: Cache, teacher: str | nn.Module | None, weights: str | None, device: torch.device
) -> Teachers:
    """Build the teacher of a cache, to run as it ran for the dump; or those whose mean it holds.

    Args:
        cache: Says which teacher, batch size, threads and preprocessing.
        teacher: The network, where it has no name, or another name now.
        weights: File with the weights, if it has moved since the dump.
        device: Device to run on.

    Raises:
        CacheMismatchError: The network has other weights than the recorded teacher.
        InputError: It cannot be built.
    """
    (entry,) = cache.of(None).manifest.teachers
    if "gives" in entry:
        raise InputError(
            f"the teacher of {cache.place}, {entry['name']}, does not run here: train from the cache, without the live teacher"
        )
    members = entry["members"] or [entry]
    if len(members) > 1 and (teacher is not None or weights is not None):
        raise InputError(
            f"{cache.place} holds the {entry['name']}: one network or file cannot stand for all. They are built from the names and "
            "files that the dump used."
        )
    return Teachers([_live(cache, member, teacher, weights, device) for member in members])


def served_teacher_of(cache: Cache, address: str | None) -> Teachers:
    """Connect to the server that a cache's rows came from.

    Args:
        cache: Says which model, and where it was served.
        address: `vllm:URL` or `sglang:URL` where it is served now; None: where it was.

    Raises:
        CacheMismatchError: It serves another model.
        InputError: The rows did not come from a server, or it refuses.
        CacheIncompleteError: It does not answer.
    """
    manifest = cache.manifest
    (entry,) = cache.of(None).manifest.teachers
    if entry["gives"]["by"] not in SERVERS:
        raise InputError(
            f"the rows of {cache.place} were imported ({entry['name']}): there is no teacher that could answer again. Leave out --replay."
        )
    if address is not None and not is_server(address):
        raise InputError(f"the teacher of {cache.place} is behind a server: name it as {entry['gives']['by']}:URL")
    asking = Asking()
    server = connect(address or f"{entry['gives']['by']}:{entry['weights']}", asking)
    if entry["name"] not in (server.name, PurePath(server.name).name):  # an anonymous cache keeps the last part
        server.close()
        raise CacheMismatchError(
            f"{server.url} serves {server.name}, and {cache.place} was dumped from {entry['name']}"
        )
    inputs = find_modality(manifest.modality).read_inputs(entry["preprocessing"])
    one = GivenTeacher(
        server,
        inputs,
        k=manifest.encoding["k"],
        classes=len(manifest.classes),
        concurrency=asking.concurrency,
    )
    return Teachers([one])


def _live(
    cache: Cache, entry: Mapping[str, Any], teacher: str | nn.Module | None, weights: str | None, device: torch.device
) -> Teacher:
    manifest = cache.manifest
    file = weights or (entry["weights"] if teacher is None else None) or None
    classes = entry["class_map"]["classes"] if entry["class_map"] else len(manifest.classes)
    try:
        network = find_modality(manifest.modality).network(teacher or entry["name"], classes, file)
    except UnknownNameError as error:
        if teacher is not None:
            raise
        raise InputError(
            f"the teacher of {cache.place} was given as an object ({entry['name']}): give it again, as an object or by a name"
        ) from error
    found = hash_weights(network.module.state_dict())
    if found != entry["weights_sha256"]:
        raise CacheMismatchError(
            f"the live teacher {network.name} has weights sha256 {found[:12]}, {cache.place} was dumped with "
            f"{entry['weights_sha256'][:12]}. Name the recorded weights with --teacher-weights, or dump again."
        )
    return recorded_teacher(network, entry, manifest, device)
