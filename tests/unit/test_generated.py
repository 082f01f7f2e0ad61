"""What is generated from proto/ is what stands in the repository."""

import re
import subprocess
import sys
from pathlib import Path

from tocsin.records.field_table import SCHEMA_DIGEST

ROOT = Path(__file__).resolve().parents[2]


def test_every_generated_file_is_fresh() -> None:
    check = subprocess.run(
        [sys.executable, ROOT / "proto/generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr


def test_the_document_of_events_and_the_field_table_come_from_the_same_schema() -> None:
    found = re.search(r"^Schema digest: `([0-9a-f]{64})`$", (ROOT / "docs/EVENTS.md").read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == SCHEMA_DIGEST.hex()
