"""Code that runs inside other people's trainers; each module stands alone and is copied whole."""
