"""Make a strict JSON schema of a CustomResourceDefinition: what the API server would drop in silence is refused.

``python tests/deploy/schemas/from_crd.py ray.io_rayjobs.yaml v1 tests/deploy/schemas/rayjob.json.gz``
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

__all__ = ["strict_schema"]


def strict_schema(definition: dict[str, Any], version: str) -> dict[str, Any]:
    """Return the schema of one version of a resource, in which unknown fields are errors.

    Parameters
    ----------
    definition : dict
        The CustomResourceDefinition.
    version : str
        Such as "v1".
    """
    (found,) = (one for one in definition["spec"]["versions"] if one["name"] == version)
    schema = _strict(found["schema"]["openAPIV3Schema"])
    # The API server knows them for every resource.
    fields = schema["properties"]
    fields |= {"apiVersion": {"type": "string"}, "kind": {"const": definition["spec"]["names"]["kind"]}}
    fields["apiVersion"]["const"] = f"{definition['spec']['group']}/{version}"
    fields["metadata"] = {"type": "object"}
    fields.pop("status", None)
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _strict(schema: Any) -> Any:
    """Refuse unknown fields at every depth; leave out descriptions and what is Kubernetes' own."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        name: {field: _strict(one) for field, one in value.items()} if name == "properties" else _strict(value)
        for name, value in schema.items()
        if not name.startswith("x-") and name not in ("description", "default", "format")
    }
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if "properties" in schema and not open_ended:
        kept["additionalProperties"] = False
    if schema.get("nullable"):
        del kept["nullable"]
        kept["type"] = [schema["type"], "null"]
    return kept


if __name__ == "__main__":
    source, name, target = sys.argv[1:]
    made = strict_schema(yaml.safe_load(Path(source).read_text(encoding="utf-8")), name)
    text = json.dumps(made, separators=(",", ":"), sort_keys=True)
    Path(target).write_bytes(gzip.compress(text.encode(), mtime=0))
