"""How rows lie in files: containers, codecs, layouts, records and sealed tables. See ../FORMAT.md."""
