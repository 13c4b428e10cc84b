"""Text to ids and byte offsets: vocabularies, engines, and what is known of both."""
