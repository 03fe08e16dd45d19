"""Scores: reading MIDI, facts and captions of it, arranging and rendering."""
