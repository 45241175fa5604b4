# Cimported only: second pass over PBFeature messages.
