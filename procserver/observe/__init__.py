"""What a service tells about itself: metrics, slow log, request log, captures."""
