# SPDX-License-Identifier: Apache-2.0
"""The README's picture from a raised model: python -m benchmarks.picture MODEL_DIR PNG"""

import json
import sys
from pathlib import Path

from foundling.contracts.records import RunRecord
from foundling.report import summary_png

if __name__ == "__main__":
    summary_png(RunRecord.from_dict(json.loads((Path(sys.argv[1]) / "report.json").read_text())), sys.argv[2])
