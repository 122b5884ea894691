"""Pure maths of the two flows: clocks, schedules, paths and steps. No model in here."""
