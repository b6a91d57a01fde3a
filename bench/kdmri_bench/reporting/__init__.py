"""Reports for people: table, page, panel."""
