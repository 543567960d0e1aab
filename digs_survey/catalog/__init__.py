"""``catalog.zarr``: its schema, reading and writing it, and rows prepared for inference."""

from digs_survey.catalog.catalog import Catalog, CatalogRows, validate_catalog
from digs_survey.catalog.schema import ValidationReport
from digs_survey.catalog.writing import new_catalog, write_catalog

__all__ = ["Catalog", "CatalogRows", "ValidationReport", "new_catalog", "validate_catalog", "write_catalog"]
