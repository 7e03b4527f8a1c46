"""siltstone: Python data that outgrows RAM, kept on local flash."""

__version__ = "0.1.0"
