# Cimported only: ArrayProto messages written.
