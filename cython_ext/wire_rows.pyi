# Cimported only: plain columns from PBFeature messages.
