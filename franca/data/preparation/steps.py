"""Each step of the preparation, from the arguments of the command line to its report."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from franca.data.preparation.apply import apply, find_tars
from franca.data.preparation.decontaminate import decontaminate
from franca.data.preparation.deduplicate import deduplicate
from franca.data.preparation.embed import embed, load_embedder
from franca.data.preparation.rules import SelectionConfig
from franca.data.sources.folder import ImageFolder
from franca.data.sources.tars import TarFolder


def run_select(given: argparse.Namespace) -> dict[str, Any]:
    from franca.data.preparation.select import select  # needs duckdb, the other steps don't

    kinds = None if given.duplicates is None else tuple(kind for kind in given.duplicates if kind != "none")
    config = SelectionConfig(
        min_side=given.min_side,
        max_aspect=given.max_aspect,
        max_unsafe=given.max_unsafe,
        max_watermark=given.max_watermark,
        nsfw_tags=tuple(given.nsfw_tags),
        min_similarity=given.min_similarity,
        duplicates=kinds,
    )
    return select(
        given.metadata,
        given.output,
        config,
        columns=dict(given.column),
        memory=given.memory,
        threads=given.threads,
        image_size=given.image_size,
        distributor=given.distributor,
        restart=given.restart,
    )


def run_embed(given: argparse.Namespace) -> dict[str, Any]:
    tars = find_tars(Path(given.images).expanduser())
    embedder = load_embedder(given.model, given.size)
    channels = embedder.model.config["in_chans"]
    source = TarFolder(given.images, channels) if tars else ImageFolder(given.images, channels)
    return embed(
        source, tars, given.output, embedder, given.batch_size, given.workers, given.device, restart=given.restart
    )


def run_deduplicate(given: argparse.Namespace) -> dict[str, Any]:
    options = (given.threshold, given.clusters, given.probes, given.engine, given.device, given.restart)
    return deduplicate(given.embeddings, given.output, *options)


def run_decontaminate(given: argparse.Namespace) -> dict[str, Any]:
    options = (given.threshold, given.engine, given.device, given.restart)
    return decontaminate(given.embeddings, given.evaluation, given.output, *options)


def run_apply(given: argparse.Namespace) -> dict[str, Any]:
    return apply(given.images, given.lists, given.output, given.restart)


STEPS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "select": run_select,
    "embed": run_embed,
    "deduplicate": run_deduplicate,
    "decontaminate": run_decontaminate,
    "apply": run_apply,
}
