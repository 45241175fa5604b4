# Cimported only: protobuf primitives.
