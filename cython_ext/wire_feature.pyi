# Cimported only: columns from PBFeature messages.
