"""What is published on the Hub: repositories staged as folders, their cards, and the way there."""
