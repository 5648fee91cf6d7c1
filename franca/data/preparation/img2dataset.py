"""The command that downloads a list: img2dataset, whose engines are processes of one machine, Spark and Ray."""

import shlex
from pathlib import Path

DISTRIBUTORS = ("multiprocessing", "pyspark", "ray")
VERIFIED = ("md5", "sha256")  # columns whose value the downloaded bytes must have


def download_command(
    url_list: Path,
    columns: tuple[str, ...],
    hash_column: str,
    image_size: int,
    min_side: float,
    max_aspect: float,
    distributor: str = "multiprocessing",
) -> str:
    """One line for a shell: webdataset shards beside the list. It goes on by itself where it was stopped.

    Args:
        url_list: folder of parquet files with the columns `url`, `caption` and `columns`.
        columns: further columns, kept with every image.
        hash_column: what `hash` was called in the metadata.
        image_size: pixels of the short side that longer images are shrunk to.
        min_side, max_aspect: as in the selection, since the real images may differ from their metadata; 0: any.
        distributor: one of DISTRIBUTORS.
    """
    options = {
        "url_list": str(url_list),
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "output_format": "webdataset",
        "output_folder": str(url_list.parent / "shards"),
        "image_size": str(image_size),
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": "True",
        "skip_reencode": "True",
        "number_sample_per_shard": "10000",
        "processes_count": "16",
        "thread_count": "64",
        "distributor": distributor,
    }
    if columns:
        options["save_additional_columns"] = _names(*columns)
    if "hash" in columns and hash_column.lower() in VERIFIED:
        options["verify_hash"] = _names("hash", hash_column.lower())
        del options["save_additional_columns"]
        others = [name for name in columns if name != "hash"]
        if others:
            options["save_additional_columns"] = _names(*others)
    if min_side:
        options["min_image_size"] = str(int(min_side))
    if max_aspect:
        options["max_aspect_ratio"] = str(max_aspect)
    return "img2dataset " + " ".join(f"--{name} {shlex.quote(value)}" for name, value in options.items())


def _names(*names: str) -> str:
    return "[" + ",".join(f'"{name}"' for name in names) + "]"
