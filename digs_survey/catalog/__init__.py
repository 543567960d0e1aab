"""``catalog.zarr``: its schema, reading and writing it, and rows prepared for inference."""

from digs_survey.catalog.catalog import Catalog, CatalogRows, new_catalog, validate_catalog, write_catalog
from digs_survey.catalog.schema import ValidationReport

__all__ = ["Catalog", "CatalogRows", "ValidationReport", "new_catalog", "validate_catalog", "write_catalog"]
