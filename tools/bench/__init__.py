"""The bench: this pack's trainings timed beside what people would use instead, and beside the limit."""
