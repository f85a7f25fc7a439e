"""``report``: tables and pictures over finished runs."""
