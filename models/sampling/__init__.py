"""From what a user asks for to a picture that says how it was made: request, setup, session, record."""
