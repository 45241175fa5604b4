# The kernels in this module are cimported only.
