"""Write docs/shard-manifest.schema.json from the manifest's model: python tools/write_schema.py"""

import json
from pathlib import Path

from clusterq_common.shards.manifest import Manifest

if __name__ == "__main__":
    path = Path(__file__).resolve().parent.parent / "docs" / "shard-manifest.schema.json"
    path.write_text(json.dumps(Manifest.model_json_schema(), indent=2) + "\n")
    print(path)
