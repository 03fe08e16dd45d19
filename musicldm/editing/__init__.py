"""Recordings and pieces that are changed in part: sources, regions, joins, tempo and stretching."""
