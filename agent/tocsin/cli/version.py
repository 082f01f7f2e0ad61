"""`tocsin version`."""

import argparse
import importlib.metadata
import json

from tocsin.cli import arguments as shared
from tocsin.records.field_table import SCHEMA_DIGEST


def configure(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    shared.add_json(parser, "a JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Prints the version and the digest of the event schema."""
    version = importlib.metadata.version("tocsin")
    if arguments.json:
        print(json.dumps({"version": version, "schema_digest": SCHEMA_DIGEST.hex()}))
    else:
        print(f"tocsin {version}, event schema {SCHEMA_DIGEST.hex()[:16]}")
    return 0
