# Cimported only: first pass over PBFeature messages.
