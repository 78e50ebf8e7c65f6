"""Laws: loss as a function of what is spent. Fit them to runs, forecast from them."""
