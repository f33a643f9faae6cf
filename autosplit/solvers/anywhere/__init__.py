"""Placements that need not be contiguous: search and bounds for the busiest device."""
