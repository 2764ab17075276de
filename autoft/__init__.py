"""autoft: search, fine-tune and compress transformers until they fit your hardware."""

__version__ = "0.1.0"
