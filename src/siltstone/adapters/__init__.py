"""Faces of the Store for other libraries: `zarr` (extra [adapters]), `filesystem` (fsspec)."""
