"""The connectors that kvxfer knows, one declaration a file. Nothing is imported here: `factory` loads by name."""
