"""Colours and the resolution that all figures share."""

DPI = 150
# Paul Tol's "muted" scheme, made for readers with any colour vision; its pale grey, meant for missing data, darkened.
COLOURS = ("#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#882255", "#44AA99", "#AA4499", "#999933", "#666666")
GREY = "#666666"
TRAIN, VALID = "#88CCEE", "#332288"
