"""Where kvxfer meets other people's processes: one host a file. Their packages are imported where they are used."""
