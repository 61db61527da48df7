"""What a second process gains, and what the sum over processes costs."""
