"""The whole pipeline, as a recipe says: stages in a folder that keeps their results, gates, outputs."""
