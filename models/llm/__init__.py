"""A client of chat servers, and the rewriting of prompts."""
