"""The Dagster skin, in data order: a few lines of wiring per artefact. Work belongs to the domain packages."""
