"""The Hugging Face Hub: who we are there, and what it says when it says no."""
