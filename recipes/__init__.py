"""How the bundled model and the experiments were made: commands, settings, phrases, notes, results as JSON."""
