"""Words that functions and command lines share; command lines read them without importing torch."""

ENGINES = ("auto", "eager", "compiled", "captured", "svi")  # of ``fit``
LAYOUTS = (None, "NCHW", "NHWC")  # of ``load``: the order of the axes of arrays, None where their shape shows it
EXPORTABLE = ("decoder", "encoder", "reconstruct")  # parts that ``export`` writes
