"""The embedded model: a miniature of CLIP that knows coloured shapes, with all it takes to make it again."""
