"""siltstone inside other libraries, each module with the library that it needs.

Of the Store (extra [adapters]): `zarr`, `filesystem` (fsspec). Of the Cache: `django`, `dogpile`,
and `diskcache`, which takes over its directories.
"""
