"""Ray and Dask sessions, the pool of actors, dashboards and metrics."""
