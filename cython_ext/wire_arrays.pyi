# Cimported only: ArrayProto messages.
