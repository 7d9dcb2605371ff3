"""Colours and the resolution that all figures share."""

DPI = 150
# Paul Tol's "muted" scheme, made for readers with any colour vision; its pale grey, meant for missing data, is here a
# blue: of all colours one of those that are furthest from the other nine, and from greys, for any colour vision.
COLOURS = ("#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#882255", "#44AA99", "#AA4499", "#999933", "#3366FF")
GREY = "#666666"  # of what has no class, such as draws from the prior
UNKNOWN = "#BBBBBB"  # of a label that is not known
TRAIN, VALID = "#88CCEE", "#332288"
