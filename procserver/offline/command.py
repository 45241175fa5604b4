"""``procserver transform``: feature generation over Parquet files."""

import argparse
import os
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add = parser.add_argument
    add("--fg", required=True, metavar="FG.json", help="the Feature Generator's file")
    add(
        "--input",
        required=True,
        metavar="PARQUET",
        help="a Parquet file, a folder of them, or a quoted glob pattern",
    )
    add("--output", required=True, metavar="PARQUET", help="the file to write")
    add("--assets", metavar="FOLDER", help="where vocabularies are (beside FG.json)")
    add(
        "--reserves",
        default="",
        metavar="A,B",
        help="columns to pass through, besides the reserves of FG.json",
    )
    add(
        "--farm-hash",
        action=argparse.BooleanOptionalAction,
        default=os.environ.get("USE_FARM_HASH_TO_BUCKETIZE") == "true",
        help="hash with FarmHash; by default if USE_FARM_HASH_TO_BUCKETIZE is true",
    )
    add("--rtp", action="store_true", help="FG.json was exported for RTP")
    add(
        "--bucketize-only",
        action="store_true",
        help="columns are named by feature and hold values from before bucketization",
    )
    add("--threads", type=int, metavar="N", help="default: all cores")


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from procserver.errors import BadFeature, FgConfigError, SourceError
    from procserver.fg import FeatureGenerator
    from procserver.offline.progress import Progress
    from procserver.offline.transform import (
        Unusable,
        check_output,
        find_files,
        prepare,
        transform,
    )

    threads = options.threads or len(os.sched_getaffinity(0))
    output = Path(options.output)
    reserves = [name.strip() for name in options.reserves.split(",") if name.strip()]
    try:
        if threads < 1:
            raise Unusable("--threads must be at least 1")
        files = find_files(options.input)
        check_output(output, files)
        generator = FeatureGenerator(
            options.fg,
            asset_dir=options.assets,
            farm_hash=options.farm_hash,
            rtp=options.rtp,
            bucketize_only=options.bucketize_only,
            for_parser=True,
        )
        job = prepare(files, generator, reserves)
    except (Unusable, FgConfigError) as error:
        print(f"procserver transform: {error}", file=sys.stderr)
        return 2
    progress = Progress(job.rows, sys.stderr)
    try:
        transform(job, output, threads=threads, progress=progress)
    except (BadFeature, SourceError) as error:
        print(f"procserver transform: {error}", file=sys.stderr)
        return 1
    progress.finish()
    return 0
