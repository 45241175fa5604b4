"""Text work through optional libraries, one module for each library."""
