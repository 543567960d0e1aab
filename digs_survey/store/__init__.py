"""Files and Zarr arrays on disks and object stores, done-markers, retries."""
