"""What a fit and the operator cost, compared with what one would run instead."""
